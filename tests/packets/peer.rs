//! Two managers: connections that the other one has reported, and packets that only it may know.

use std::time::Duration;

use lb_common::{
    maps::{Admission, FlowRecord, direction, ended, record_kind},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge},
    call::{Call, WORKER_START},
    frame::{ACK, FIN, Mac, PSH, RST, SYN},
    lan::{CLIENT, FAR1, MANAGER, OTHER_CLIENT, WORKER1},
    message::Problem,
    outcome::{Action, Outcome},
    segment::Segment,
    sniffer::Sniffer,
};

const PEER: Mac = [2, 0, 0, 0, 1, 77];
const OTHER_PEER: Mac = [2, 0, 0, 0, 1, 78];

/// Makes a connection, and returns it with its record.
fn opened(bench: &mut Bench, port: u16) -> (Call, FlowRecord) {
    bench.reports();
    let call = bench.call(CLIENT, port).connected(bench, WORKER1);
    let records = bench.records();
    let [record] = records[..] else {
        panic!("one record: {records:?}");
    };
    (call, record)
}

/// Forgets all connections, as a manager that never had them.
fn forgets(bench: &mut Bench) {
    for key in bench.keys() {
        bench.evict(key);
    }
    bench.has_open(WORKER1.id, 0);
}

#[packet_test(in_both_modes)]
fn a_reported_connection_continues(bench: &mut Bench) {
    let (call, record) = opened(bench, 40_000);
    assert_eq!(record.kind, record_kind::OPENED);
    let entries = bench.entries();
    forgets(bench);
    let outcome = bench.admits(&[record, record]);
    assert_eq!(outcome.count(Admission::Inserted), 1);
    assert_eq!(outcome.count(Admission::Refreshed), 1);
    assert_eq!(bench.active(WORKER1.id), 1);
    for (key, entry) in bench.entries() {
        let before = entries[&key];
        assert_eq!(entry.bytes, 0);
        assert_eq!(entry.translated, before.translated);
        assert_eq!(entry.client_mac, before.client_mac);
        assert_eq!(entry.manager_mac, before.manager_mac);
        assert_eq!(entry.client_interface, before.client_interface);
        assert_eq!(entry.created_ticks, before.created_ticks);
        let is_request = entry.direction == direction::REQUEST;
        assert_eq!(entry.counted, u8::from(is_request));
    }
    call.requests(bench, WORKER1, &call.request(PSH | ACK).payload(*b"GET /"));
    call.replies(
        bench,
        WORKER1,
        &call.reply(WORKER1, PSH | ACK).payload(*b"200"),
    );
    call.requests(bench, WORKER1, &call.request(FIN | ACK));
    call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
    assert_eq!(bench.active(WORKER1.id), 0);
    let records = bench.records();
    let [end] = records[..] else {
        panic!("one record: {records:?}");
    };
    assert_eq!(end.kind, record_kind::ENDED);
    assert_eq!(end.ended, [ended::FIN; 2]);
}

#[packet_test(at_edge(Edge::Tc))]
fn many_records_are_admitted_at_once(bench: &mut Bench) {
    let (_, record) = opened(bench, 40_000);
    forgets(bench);
    let records: Vec<_> = (0..100_u16)
        .map(|number| FlowRecord {
            client_port: (41_000 + number).to_be_bytes(),
            source_port: (10_000 + number).to_be_bytes(),
            ..record
        })
        .collect();
    assert_eq!(bench.admits(&records).count(Admission::Inserted), 100);
    assert_eq!(bench.active(WORKER1.id), 100);
    let ends: Vec<_> = records
        .iter()
        .map(|record| FlowRecord {
            kind: record_kind::ENDED,
            ..*record
        })
        .collect();
    assert_eq!(bench.admits(&ends).count(Admission::Removed), 100);
    assert_eq!(bench.active(WORKER1.id), 0);
    assert!(bench.keys().is_empty());
    let unknown = FlowRecord {
        backend: 7,
        ..record
    };
    assert_eq!(bench.admits(&[unknown]).count(Admission::UnknownBackend), 1);
}

#[packet_test(at_both_edges)]
fn no_handshake_is_reported(bench: &mut Bench) {
    bench.reports();
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    assert_eq!(bench.records(), []);
    call.replies(bench, WORKER1, &call.reply(WORKER1, RST | ACK));
    assert_eq!(bench.records(), []);
}

/// Lets a frame arrive that belongs to nothing known here.
fn is_handed_to_peers(bench: &Bench, frame: &[u8]) {
    if bench.edge == Edge::Xdp {
        bench.receives(frame).passes(Verdict::HandedOver);
    }
    let outcome = bench.behind_xdp(frame);
    outcome.is(Action::Drop);
    outcome.is_counted_as(Verdict::ToPeer);
}

/// The frame between a manager and its peer.
fn between(frame: &[u8], to: Mac, from: Mac) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

#[packet_test(at_both_edges)]
fn an_unknown_packet_is_sent_unchanged_to_every_peer(bench: &mut Bench) {
    let wire = Sniffer::on(FAR1).unwrap();
    let mut call = bench.call(CLIENT, 40_000);
    call.nat_port = 5_000;
    let request = call.request(PSH | ACK).payload(*b"hello").frame();
    bench.receives(&*request).passes(Verdict::NoFlow);
    bench.has_peers(&[PEER, OTHER_PEER]);
    let error = call
        .complains(
            Problem::HostUnreachable,
            &call.at_client(&call.reply(WORKER1, ACK)),
        )
        .frame();
    for frame in [
        request.clone(),
        call.syn_ack(WORKER1).frame(),
        call.reply(WORKER1, PSH | ACK).payload(*b"hi").frame(),
        error,
    ] {
        is_handed_to_peers(bench, &frame);
        for peer in [PEER, OTHER_PEER] {
            let sent = wire.next().unwrap();
            assert_eq!(sent.frame, between(&frame, peer, MANAGER.mac));
        }
    }
    // After a second, no peer knows it.
    bench.waits_for_peers(Duration::from_secs(1));
    bench.behind_xdp(request).passes(Verdict::NoFlow);
    let other = bench.call(OTHER_CLIENT, 40_000).syn();
    bench.receives(&other).was_sent_to(WORKER1, 1);
}

fn from_peer(segment: &Segment) -> Vec<u8> {
    between(&segment.frame(), MANAGER.mac, PEER)
}

#[packet_test(at_both_edges)]
fn an_unknown_packet_of_a_peer_is_not_forwarded_again(bench: &mut Bench) {
    bench.has_peers(&[PEER]);
    let mut call = bench.call(CLIENT, 40_000);
    call.nat_port = 5_000;
    for segment in [call.request(ACK), call.reply(WORKER1, ACK)] {
        let outcome: Outcome = bench.receives(from_peer(&segment));
        outcome.is_dropped(Verdict::UnknownToPeer);
    }
}

#[packet_test(in_both_modes)]
fn a_peers_packet_is_forwarded_without_learning_its_link_address(bench: &mut Bench) {
    let (call, _) = opened(bench, 40_000);
    bench.has_peers(&[PEER]);
    let neighbour = bench.known_neighbour(WORKER1.id);
    let request = call.request(PSH | ACK).payload(*b"hello");
    let outcome = bench.receives(from_peer(&request));
    outcome.was_sent_to(WORKER1, 0);
    let reply = call
        .reply(WORKER1, PSH | ACK)
        .payload(*b"hi")
        .numbers(WORKER_START.wrapping_add(1), 0);
    let outcome = bench.receives(from_peer(&reply));
    outcome.was_sent_by(WORKER1);
    assert_eq!(bench.known_neighbour(WORKER1.id), neighbour);
    for entry in bench.entries().values() {
        assert_eq!(entry.client_mac, CLIENT.mac.into());
    }
    // It is reported to the peer once a second.
    bench.records();
    bench.wait(Duration::from_secs(2));
    bench.receives(from_peer(&request)).was_sent_to(WORKER1, 0);
    bench.receives(from_peer(&request)).was_sent_to(WORKER1, 0);
    let records = bench.records();
    let [record] = records[..] else {
        panic!("one record: {records:?}");
    };
    assert_eq!(record.kind, record_kind::PRESENT);
}

#[packet_test(at_both_edges)]
fn a_handshake_completes_by_a_peers_packet(bench: &mut Bench) {
    bench.has_peers(&[PEER]);
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    bench
        .receives(from_peer(&call.syn_ack(WORKER1)))
        .was_sent_by(WORKER1);
    let ack = bench.receives(from_peer(&call.ack()));
    ack.was_sent_to(WORKER1, 0);
    let entry = bench.entry(call.request_key()).unwrap();
    assert_eq!(entry.client_mac, CLIENT.mac.into());
    // A SYN is no one else's.
    let syn = bench.call(OTHER_CLIENT, 41_000).request(SYN);
    bench.receives(&syn).was_sent_to(WORKER1, 1);
}
