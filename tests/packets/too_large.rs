//! Packets that are too large for the next link: their senders get the allowed size (RFC 1191, section 3;
//! RFC 4443, section 3.2).

use lb_common::verdict::Verdict;
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge},
    call::Call,
    frame::{ACK, Family, PSH, at, checksum, with_ip_field},
    lan::{self, CLIENT, ETH2, MANAGER, WORKER1},
    message::{Message, Problem},
    outcome::{Action, Outcome},
    segment::Segment,
};

const MTU: u16 = 1_300;

/// A connection to a worker behind a narrow link, and one of its segments that does not fit there.
fn too_large(bench: &mut Bench) -> (Call, Segment) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    lan::narrow("eth2", MTU);
    bench.backend(WORKER1.id, |backend| backend.interface = ETH2);
    let headers = bench.family.header_bytes() + 20;
    let fitting = usize::from(MTU) - headers;
    let segment = call.request(PSH | ACK);
    // One that fits goes on.
    let fits = bench.receives(&segment.clone().payload(vec![b'x'; fitting]));
    fits.was_sent_to(WORKER1, 0);
    (call, segment.payload(vec![b'x'; fitting + 1]))
}

/// The frame that answers `about`, without what only the test's frames have.
fn reply(about: &Segment) -> Vec<u8> {
    let family = about.family();
    let service = lan::service(family).ip();
    let message = Message::new(service, Problem::TooBig(MTU), about.clone());
    let message = message.macs(MANAGER.mac, CLIENT.mac).quotes_the_least();
    let mut frame = message.frame();
    match family {
        Family::V4 => {
            frame[at::IP + 4..at::IP + 8].fill(0);
            frame[at::IP + 10..at::IP + 12].fill(0);
            let sum = checksum(&frame[at::IP..at::IP + 20]);
            frame[at::IP + 10..at::IP + 12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::V6 => frame[at::IP + 1..at::IP + 4].fill(0),
    }
    frame
}

#[track_caller]
fn is_answered(outcome: Outcome, about: &Segment) {
    outcome.is(Action::Redirect);
    outcome.is_counted_as(Verdict::TooLarge);
    outcome.leaves_as(reply(about));
}

#[packet_test(at_both_edges)]
fn the_sender_of_a_packet_too_large_gets_an_error(bench: &mut Bench) {
    let (call, large) = too_large(bench);
    let before = bench.entry(call.request_key()).unwrap().bytes;
    if bench.edge == Edge::Xdp {
        bench.receives(&large).passes(Verdict::HandedOver);
        assert_eq!(bench.entry(call.request_key()).unwrap().bytes, before);
    }
    is_answered(bench.behind_xdp(&large), &large);
}

#[packet_test(at_edge(Edge::Tc))]
fn a_first_datagram_too_large_is_answered_and_its_connection_counted_once(bench: &mut Bench) {
    _ = too_large(bench);
    let datagram = bench.datagrams(CLIENT, 40_001).syn();
    let large = datagram.clone().payload(vec![b'x'; MTU.into()]);
    let connections = bench.connections(WORKER1.id);
    let outcome = bench.receives(&large);
    outcome.is(Action::Redirect);
    outcome.leaves_as(reply(&large));
    bench
        .receives(&datagram.payload(*b"x"))
        .was_sent_to(WORKER1, 0);
    assert_eq!(bench.connections(WORKER1.id), connections + 1);
}

#[test]
fn fragmentable_packets_are_dropped_and_counted() {
    crate::bench::run_at(Edge::Tc, Family::V4, |bench| {
        let (_, large) = too_large(bench);
        let frame = with_ip_field(large.frame(), at::IP + 6, &[0, 0]);
        let outcome = bench.receives(frame);
        outcome.is(Action::Drop);
        outcome.is_counted_as(Verdict::TooLarge);
    });
}
