//! Refused handshakes: the SYN goes to another worker in place of the RST.

use std::time::Duration;

use lb_common::{
    maps::{Traffic, mode},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge},
    call::{CLIENT_START, Call},
    frame::{ACK, CWR, ECE, Family, PSH, RST, SYN},
    lan::{CLIENT, MANAGER, Server, WORKER1, WORKER2},
    local::ITSELF,
    outcome::{Action, Counted, Outcome},
    segment::Segment,
};

const BOTH: [Server; 2] = [WORKER1, WORKER2];

#[packet_test(in_both_modes)]
fn a_refused_syn_goes_to_another_worker_at_once(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    let before = call.clone();
    goes_on(bench, &mut call, &before.syn());
    let [handshake] = bench.handshakes()[..] else {
        panic!("{:?}", bench.handshakes());
    };
    assert_eq!(handshake.refused_by, [WORKER1.id, 0, 0]);
    assert_eq!(refused(bench), [[1, 1], [0, 0]]);

    // The first worker has no part in it any more.
    let late = before.syn_ack(WORKER1);
    bench.receives(&late).passes(Verdict::NotOurs);
    call.establishes(bench, WORKER2);
    call.requests(bench, WORKER2, &call.request(PSH | ACK).payload(*b"hello"));
    assert!(bench.handshakes().is_empty());
    assert_eq!(bench.active(WORKER1.id), 0);
    assert_eq!(bench.active(WORKER2.id), 1);
}

#[packet_test(in_both_modes)]
fn the_last_refusal_reaches_the_client(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    let syn = call.syn();
    goes_on(bench, &mut call, &syn);
    passes_on(bench, &call, WORKER2, &refusal(&call, WORKER2));
    assert!(bench.handshakes().is_empty());
    assert_eq!(refused(bench), [[1, 1], [1, 0]]);
}

#[packet_test(in_both_modes)]
fn options_flags_and_fields_of_the_syn_are_kept(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    for words in 0..=10_u16 {
        let mut call = bench.call(CLIENT, 40_000 + words);
        let options: Vec<u8> = (0..4 * words).map(|at| 1 + (at % 7) as u8).collect();
        let mut syn = call.syn().tcp_options(&options);
        if words % 2 == 1 {
            syn = syn.flags(SYN | ECE | CWR);
        }
        syn.ip.time_to_live = 2 + words as u8;
        call.begins_with(bench, WORKER1, &syn);
        goes_on(bench, &mut call, &syn);
    }
}

#[packet_test(in_both_modes)]
fn a_padded_refusal_is_one(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    let mut padded = refusal(&call, WORKER1).frame();
    padded.resize(padded.len().max(60), 0xa5);
    let syn = call.syn();
    is_sent_again(decides(bench, padded), &mut call, &syn);
}

#[packet_test(in_both_modes)]
fn no_other_refusal_leads_to_another_worker(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    // With data, which the worker may have taken before it reset the connection.
    let mut with_data = bench.call(CLIENT, 40_001);
    let syn = with_data.syn().payload(*b"GET /");
    with_data.begins_with(bench, WORKER1, &syn);
    passes_on(bench, &with_data, WORKER1, &refusal(&with_data, WORKER1));

    // Forged: they acknowledge something else.
    for acknowledged in [0, 2, 7] {
        let mut forged = bench.call(CLIENT, 40_010 + acknowledged as u16);
        forged.begins(bench, WORKER1);
        let number = CLIENT_START.wrapping_add(acknowledged);
        let segment = forged.reply(WORKER1, RST | ACK).numbers(0, number);
        forged.replies(bench, WORKER1, &segment);
    }
    // After an answer.
    let answered = bench.call(CLIENT, 40_003).begun(bench, WORKER1);
    answered.is_answered(bench, WORKER1);
    answered.replies(bench, WORKER1, &answered.reply(WORKER1, RST | ACK));
}

#[packet_test(in_both_modes)]
fn the_client_is_refused_if_no_other_worker_is_up(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    bench.goes_down(WORKER2.id);
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    passes_on(bench, &call, WORKER1, &refusal(&call, WORKER1));
    assert_eq!(refused(bench), [[1, 0], [0, 0]]);
}

#[packet_test(in_both_modes)]
fn refusals_reach_the_client_without_the_setting(bench: &mut Bench) {
    bench.ranks(&BOTH);
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.replies(bench, WORKER1, &refusal(&call, WORKER1));
    assert!(bench.handshakes().is_empty());
    assert_eq!(refused(bench), [[1, 0], [0, 0]]);
}

/// The SYN that the client repeats meanwhile stays with the worker that has its first one.
#[packet_test(in_both_modes)]
fn a_repeated_syn_follows(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    let syn = call.syn();
    goes_on(bench, &mut call, &syn);
    call.is_answered(bench, WORKER2);
    bench.waited(call.request_key(), Duration::from_secs(1));
    call.requests(bench, WORKER2, &call.syn());
}

#[packet_test(over(Family::V4))]
fn a_client_on_the_manager_gets_another_worker(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    let mut call = bench.call(ITSELF, 40_000);
    let syn = call.syn();
    let outcome = bench.loops(&syn);
    call.nat_port = outcome.nat_port();
    outcome.is(Action::Redirect);
    goes_on(bench, &mut call, &syn);
}

#[packet_test(at_both_edges)]
fn a_refusal_of_a_server_on_the_manager_leads_to_another_worker(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    is_on_the_manager(bench, WORKER1);
    let mut call = bench.call(CLIENT, 40_000);
    let syn = call.syn();
    bench.receives(&syn).was_sent_to(WORKER1, 1);
    let outcome = bench.sends(&refusal_here(&call, WORKER1));
    is_sent_again(outcome, &mut call, &syn);
    assert_eq!(refused(bench), [[1, 1], [0, 0]]);
    call.establishes(bench, WORKER2);

    // The last refusal reaches the client.
    bench.goes_down(WORKER2.id);
    let call = bench.call(CLIENT, 40_001);
    bench.receives(&call.syn()).was_sent_to(WORKER1, 1);
    let outcome = bench.sends(&refusal_here(&call, WORKER1));
    outcome.was_sent_by(WORKER1);
    outcome.is(Action::Pass);
}

#[packet_test(over(Family::V4))]
fn a_client_on_the_manager_whose_server_there_refuses_gets_another_worker(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    is_on_the_manager(bench, WORKER1);
    let mut call = bench.call(ITSELF, 40_000);
    let syn = call.syn();
    bench.loops(&syn).was_sent_to(WORKER1, 1);
    let outcome = bench.loops(&refusal_here(&call, WORKER1));
    is_sent_again(outcome, &mut call, &syn);
}

#[packet_test(at_both_edges)]
fn a_refused_syn_arrives_once_more_for_a_server_on_the_manager(bench: &mut Bench) {
    bench.retries_refused(&BOTH);
    is_on_the_manager(bench, WORKER2);
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    let outcome = decides(bench, &refusal(&call, WORKER1));
    outcome.is(Action::Redirect);
    let mut syn = call.syn();
    syn.ip.time_to_live -= 1;
    outcome.leaves_as(&syn);
    assert_eq!(refused(bench), [[1, 1], [0, 0]]);
    assert_eq!(bench.tally(WORKER2.id, |traffic| traffic.connections), 1);

    let outcome = bench.behind_xdp(&syn);
    outcome.was_sent_to(WORKER2, 0);
    outcome.is(Action::Pass);
    outcome.leaves_as(&syn.to(WORKER2.address(bench.family)));
}

fn is_on_the_manager(bench: &mut Bench, server: Server) {
    bench.backend(server.id, |backend| {
        backend.mode = mode::LOCAL;
        (backend.interface, backend.reply_interface) = (0, 0);
    });
    bench.uses([server.port], true);
}

/// The RST of the manager itself, where no server listens.
fn refusal_here(call: &Call, server: Server) -> Segment {
    call.segment(call.at(server), call.client_address(), RST | ACK)
        .macs(MANAGER.mac, call.client.mac)
        .numbers(0, CLIENT_START.wrapping_add(1))
}

/// The RST of a worker on which no server listens.
fn refusal(call: &Call, server: Server) -> Segment {
    let acknowledgement = CLIENT_START.wrapping_add(1);
    call.reply(server, RST | ACK).numbers(0, acknowledgement)
}

/// Feeds a refusal; XDP leaves those that it could act upon to TC.
#[track_caller]
fn decides(bench: &Bench, frame: impl Into<Vec<u8>>) -> Outcome {
    let frame = frame.into();
    if bench.edge == Edge::Xdp {
        bench.receives(frame.clone()).passes(Verdict::HandedOver);
    }
    bench.behind_xdp(frame)
}

/// The first worker refuses, and the SYN must reach the second one.
#[track_caller]
fn goes_on(bench: &Bench, call: &mut Call, syn: &Segment) {
    let outcome = decides(bench, &refusal(call, WORKER1));
    is_sent_again(outcome, call, syn);
}

#[track_caller]
fn is_sent_again(outcome: Outcome, call: &mut Call, syn: &Segment) {
    outcome.is(Action::Redirect);
    call.nat_port = outcome.nat_port();
    let mut expected = call.at_worker(WORKER2, syn);
    (expected.from_mac, expected.to_mac) = (syn.from_mac, syn.to_mac);
    let expected = expected.frame();
    assert_eq!(
        outcome.counted,
        [
            Counted::Verdict {
                verdict: Verdict::Retried,
                packets: 1,
                bytes: outcome.sent.len() as u64,
            },
            Counted::ToBackend {
                id: WORKER2.id,
                connections: 1,
                packets: 1,
                bytes: expected.len() as u64,
            },
        ]
    );
    outcome.leaves_as(expected);
}

/// A refusal that XDP leaves to TC must reach the client.
#[track_caller]
fn passes_on(bench: &Bench, call: &Call, server: Server, refusal: &Segment) {
    let outcome = decides(bench, refusal);
    outcome.is(Action::Redirect);
    outcome.was_sent_by(server);
    outcome.leaves_as(&call.at_client(refusal));
}

/// How many handshakes each worker refused, and how many of these went to another one.
fn refused(bench: &Bench) -> [[u64; 2]; 2] {
    let fields: [fn(&Traffic) -> u64; 2] = [|traffic| traffic.refused, |traffic| traffic.retried];
    BOTH.map(|server| fields.map(|field| bench.tally(server.id, field)))
}
