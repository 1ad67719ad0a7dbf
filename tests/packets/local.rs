//! The manager's own server, and clients on the manager itself.

use std::time::Duration;

use lb_common::{
    maps::{LOOPBACK, mode},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, DATAGRAM_IDLE, Edge, FrameContext, Hook},
    call::Call,
    frame::{ACK, FIN, PSH, SYN},
    lan::{self, CLIENT, FALLBACK, MANAGER, SERVICE_PORT, Station, WORKER1},
    outcome::{Action, Outcome},
    segment::Segment,
};

#[packet_test(at_both_edges)]
fn the_managers_own_server_takes_over_in_place(bench: &mut Bench) {
    let call = connects_here(bench);
    assert_eq!(bench.handshakes().len(), 0);
    assert_eq!(bench.entries().len(), 2);

    for length in [1, 2, 1_448] {
        let data = call.request(PSH | ACK).payload(vec![b'x'; length]);
        takes(bench.receives(&data), &data, 0);
        answers(bench, &call, PSH | ACK);
    }
    let fin = call.request(FIN | ACK);
    takes(bench.receives(&fin), &fin, 0);
    answers(bench, &call, FIN | ACK);
    takes(bench.receives(&call.syn()), &call.syn(), 1);
}

#[packet_test(at_both_edges)]
fn flows_of_the_managers_own_server_stay_when_a_worker_returns(bench: &mut Bench) {
    let call = connects_here(bench);
    bench.select(WORKER1.id);
    takes(bench.receives(&call.ack()), &call.ack(), 0);
    answers(bench, &call, ACK);
    bench.call(CLIENT, 40_001).connects(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn a_direct_connection_to_the_managers_own_server_is_not_taken_for_an_ended_one(bench: &mut Bench) {
    let call = connects_here(bench);
    let fin = call.request(FIN | ACK);
    takes(bench.receives(&fin), &fin, 0);
    answers(bench, &call, FIN | ACK);
    for flags in [SYN | ACK, ACK] {
        let direct = call.segment(call.at(FALLBACK), call.client_address(), flags);
        bench.sends(&direct).passes(Verdict::NotOurs);
    }
    takes(bench.receives(&call.syn()), &call.syn(), 1);
}

#[packet_test(at_both_edges)]
fn datagrams_of_the_managers_own_server_belong_to_a_flow_until_its_timeout(bench: &mut Bench) {
    bench.select(FALLBACK.id);
    let call = bench.datagrams(CLIENT, 40_000);
    takes(bench.receives(&call.request(0)), &call.request(0), 1);
    answers(bench, &call, 0);
    takes(bench.receives(&call.request(0)), &call.request(0), 0);
    answers(bench, &call, 0);
    bench.wait(DATAGRAM_IDLE + Duration::from_secs(2));
    let direct = call.segment(call.at(FALLBACK), call.client_address(), 0);
    bench.sends(&direct).passes(Verdict::NotOurs);
}

#[packet_test(at_both_edges)]
fn a_worker_on_the_manager_itself_is_reached_in_place(bench: &mut Bench) {
    bench.backend(WORKER1.id, |backend| {
        backend.mode = mode::LOCAL;
        backend.interface = 0;
    });
    let syn = bench.call(CLIENT, 40_000).syn();
    let outcome = bench.receives(&syn);
    outcome.was_sent_to(WORKER1, 1);
    outcome.is(Action::Pass);
    outcome.leaves_as(&syn.to(WORKER1.address(bench.family)));
}

#[packet_test(at_both_edges)]
fn the_last_hop_may_be_the_manager(bench: &mut Bench) {
    bench.select(FALLBACK.id);
    let syn = bench.call(CLIENT, 40_000).syn().time_to_live(1);
    takes(bench.receives(&syn), &syn, 1);
}

#[packet_test(at_both_edges)]
fn the_managers_own_traffic_is_ignored(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    // A connection of its own to the very server that the service uses.
    let own = call
        .segment(MANAGER.at(bench.family, 50_000), call.at(WORKER1), SYN)
        .macs(MANAGER.mac, WORKER1.station.mac);
    bench.sends(&own).passes(Verdict::NotOurs);
    let answer = call
        .segment(own.destination, own.source, SYN | ACK)
        .macs(WORKER1.station.mac, MANAGER.mac);
    bench.receives(&answer).passes(Verdict::NotOurs);
    // To the service's own port on another machine.
    let elsewhere = WORKER1.station.at(bench.family, SERVICE_PORT);
    bench.sends(&own.to(elsewhere)).passes(Verdict::NotOurs);
}

#[packet_test(at_both_edges)]
fn no_flow_begins_at_the_egress_hook(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000);
    bench.sends(&call.syn()).passes(Verdict::NotOurs);
    assert!(bench.handshakes().is_empty());
}

#[packet_test(at_both_edges)]
fn forwarded_packets_are_not_processed_again(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let leaving = FrameContext {
        hook: Hook::Egress,
        forwarded_from: lan::ETH1,
        ..FrameContext::received_on(lan::ETH1)
    };
    bench.meets(&call.ack(), leaving).is_skipped();
    bench
        .meets(&call.at_worker(WORKER1, &call.ack()), leaving)
        .is_skipped();
}

#[packet_test(at_both_edges)]
fn the_managers_own_server_may_be_behind_nat(bench: &mut Bench) {
    bench.select(FALLBACK.id);
    let call = bench.call(CLIENT, 40_000);
    takes(bench.receives(&call.syn()), &call.syn(), 1);
    // The kernel has translated a container's address back, and forwards the reply.
    let answer = reply(&call, SYN | ACK);
    let leaving = FrameContext {
        hook: Hook::Egress,
        forwarded_from: lan::ETH2,
        ..FrameContext::received_on(lan::ETH1)
    };
    is_restored(bench.meets(&answer, leaving), answer);
    takes(bench.receives(&call.ack()), &call.ack(), 0);
    assert_eq!(bench.entries().len(), 2);
}

#[packet_test(at_edge(Edge::Tc))]
fn a_client_on_the_manager_reaches_the_managers_own_server(bench: &mut Bench) {
    bench.select(FALLBACK.id);
    let call = bench.call(ITSELF, 40_000);
    takes(bench.loops(&call.syn()), &call.syn(), 1);
    answers_on(Hook::Loopback, bench, &call, SYN | ACK);
    takes(bench.loops(&call.ack()), &call.ack(), 0);
    answers_on(Hook::Loopback, bench, &call, PSH | ACK);
    assert_eq!(bench.entries().len(), 2);
}

#[packet_test(at_both_edges)]
fn a_client_on_the_manager_reaches_a_worker_and_is_answered_through_loopback(bench: &mut Bench) {
    let mut call = bench.call(ITSELF, 40_000);
    let syn = call.syn();
    let outcome = bench.loops(&syn);
    call.nat_port = outcome.nat_port();
    outcome.opens(WORKER1, &leaving(&call, &syn));
    let flow = bench.handshake(call.request_key()).unwrap();
    assert_eq!(flow.client_interface, LOOPBACK);

    returns(bench, &call, &call.syn_ack(WORKER1));
    let ack = call.ack();
    bench.loops(&ack).goes_to(WORKER1, &leaving(&call, &ack));
    assert_eq!(bench.entries().len(), 2);
    let page = call.reply(WORKER1, PSH | ACK).payload(*b"Worker1");
    returns(bench, &call, &page);
    let fin = call.request(FIN | ACK);
    bench.loops(&fin).goes_to(WORKER1, &leaving(&call, &fin));
    returns(bench, &call, &call.reply(WORKER1, FIN | ACK));
}

#[packet_test(at_edge(Edge::Tc))]
fn other_loopback_traffic_is_ignored(bench: &mut Bench) {
    let call = bench.call(ITSELF, 40_000);
    let ssh = MANAGER.at(bench.family, 22);
    bench.loops(&call.syn().to(ssh)).passes(Verdict::NotOurs);
    bench.loops(&call.ack()).passes(Verdict::NoFlow);
    bench
        .loops(&call.syn().to(ssh).in_udp())
        .passes(Verdict::NotOurs);
    bench
        .loops(call.syn().as_ping())
        .passes(Verdict::OtherProtocol);
}

/// The manager as its own client: frames on the loopback interface have no link addresses.
pub const ITSELF: Station = Station {
    mac: [0; 6],
    ..MANAGER
};

/// As a client's segment leaves the loopback interface for the worker.
pub fn leaving(call: &Call, segment: &Segment) -> Segment {
    let mut segment = call.at_worker(WORKER1, segment);
    (segment.from_mac, segment.to_mac) = (ITSELF.mac, MANAGER.mac);
    segment
}

/// The worker's segment must come back to the client on the manager; XDP leaves it to TC.
#[track_caller]
pub fn returns(bench: &Bench, call: &Call, segment: &Segment) {
    if bench.edge == Edge::Xdp {
        bench.receives(segment).passes(Verdict::HandedOver);
    }
    let outcome = bench.behind_xdp(segment);
    let mut restored = call.at_client(segment);
    (restored.from_mac, restored.to_mac) = (segment.from_mac, [0; 6]);
    outcome.comes_from(WORKER1, &restored);
}

/// A client's connection to the manager's own server.
#[track_caller]
fn connects_here(bench: &mut Bench) -> Call {
    bench.select(FALLBACK.id);
    let call = bench.call(CLIENT, 40_000);
    takes(bench.receives(&call.syn()), &call.syn(), 1);
    answers(bench, &call, SYN | ACK);
    takes(bench.receives(&call.ack()), &call.ack(), 0);
    call
}

/// The manager's own server must get `segment`, with nothing changed but the destination.
#[track_caller]
pub fn takes(outcome: Outcome, segment: &Segment, connections: u64) {
    outcome.was_sent_to(FALLBACK, connections);
    outcome.is(Action::Pass);
    outcome.leaves_as(&segment.clone().to(FALLBACK.address(segment.family())));
}

/// The manager's own server answers; the client must see the service.
#[track_caller]
pub fn answers(bench: &Bench, call: &Call, flags: u8) {
    answers_on(Hook::Egress, bench, call, flags);
}

#[track_caller]
fn answers_on(hook: Hook, bench: &Bench, call: &Call, flags: u8) {
    let answer = reply(call, flags);
    let outcome = match hook {
        Hook::Loopback => bench.loops(&answer),
        Hook::Egress | Hook::Ingress => bench.sends(&answer),
    };
    is_restored(outcome, answer);
}

/// A segment of the manager's own server.
fn reply(call: &Call, flags: u8) -> Segment {
    let numbers = call.syn_ack(WORKER1);
    call.segment(call.at(FALLBACK), call.client_address(), flags)
        .macs(MANAGER.mac, call.client.mac)
        .numbers(numbers.sequence, numbers.acknowledgement)
        .payload(*b"Manager")
}

#[track_caller]
fn is_restored(outcome: Outcome, answer: Segment) {
    outcome.was_sent_by(FALLBACK);
    outcome.is(Action::Pass);
    let mut restored = answer;
    restored.source = lan::service(restored.family());
    outcome.leaves_as(&restored);
}
