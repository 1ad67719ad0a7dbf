//! Link addresses and interfaces: clients that move, workers behind another interface, what XDP
//! learns and what it leaves to TC.

use std::time::Duration;

use lb_common::{
    maps::{Neighbour, direction},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, ESTABLISHED_IDLE, Edge, FrameContext},
    call::Call,
    frame::{ACK, Family, PSH, RST, SYN},
    lan::{CLIENT, ETH2, MANAGER, MANAGER_ETH2, OTHER_CLIENT, WORKER1, WORKER2},
    outcome::Action,
    segment::Segment,
};

/// After so long a flow looks after its other direction's entry.
const OVER_A_SECOND: Duration = Duration::from_millis(1_100);

#[packet_test(at_both_edges)]
fn replies_follow_a_client_whose_link_address_changes(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    call.client.mac = OTHER_CLIENT.mac;
    call.requests(bench, WORKER1, &call.ack());
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
}

#[packet_test(in_both_modes)]
fn replies_follow_a_client_to_another_interface(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let from_there = call.ack().macs(CLIENT.mac, MANAGER_ETH2);
    let outcome = bench.meets(&from_there, FrameContext::received_on(ETH2));
    outcome.is(Action::Redirect);
    outcome.was_sent_to(WORKER1, 0);

    let reply = call.reply(WORKER1, PSH | ACK).payload(*b"there");
    let outcome = bench.receives(&reply);
    outcome.is(Action::Redirect);
    outcome.was_sent_by(WORKER1);
    outcome.leaves_as(&call.at_client(&reply).macs(MANAGER_ETH2, CLIENT.mac));
    for flow in bench.entries().values() {
        assert_eq!(flow.client_interface, ETH2);
    }
}

/// Longer than a client that is there takes to acknowledge.
const OVER_TWO_SECONDS: Duration = Duration::from_millis(2_500);

#[packet_test(in_both_modes)]
fn replies_take_the_managers_route_by_turns_while_the_client_does_not_acknowledge(
    bench: &mut Bench,
) {
    let mut call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.wait(OVER_TWO_SECONDS);
    let reply = call.reply(WORKER1, PSH | ACK).payload(*b"event");
    // The client had nothing to acknowledge yet.
    call.replies(bench, WORKER1, &reply);
    bench.wait(OVER_A_SECOND);
    leaves_by_route(bench, &call, &reply);
    leaves_by_route(bench, &call, &reply);
    bench.wait(OVER_A_SECOND);
    call.replies(bench, WORKER1, &reply);
    bench.wait(OVER_A_SECOND);
    leaves_by_route(bench, &call, &reply);

    // It speaks again, by another router.
    call.client.mac = OTHER_CLIENT.mac;
    call.requests(bench, WORKER1, &call.ack());
    call.replies(bench, WORKER1, &reply);
    bench.wait(OVER_A_SECOND);
    call.replies(bench, WORKER1, &reply);
}

/// The kernel fills in the link addresses; XDP leaves the packet to TC.
fn leaves_by_route(bench: &mut Bench, call: &Call, reply: &Segment) {
    let outcome = match bench.edge {
        Edge::Tc => bench.receives(reply),
        Edge::Xdp => {
            let handed_over = bench.receives(reply);
            handed_over.is(Action::Pass);
            handed_over.is_untouched();
            bench.behind_xdp(reply)
        }
    };
    outcome.is(Action::Redirect);
    outcome.was_sent_by(WORKER1);
    let as_received = |segment: Segment| segment.macs(WORKER1.station.mac, MANAGER.mac);
    outcome.leaves_as(&as_received(call.at_client(reply)));
}

#[packet_test(at_both_edges)]
fn replies_to_a_pausing_client_keep_their_path(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let datagrams = bench.datagrams(CLIENT, 40_001).connected(bench, WORKER1);
    let event = call.reply(WORKER1, PSH | ACK).payload(*b"event");
    for _ in 0..3 {
        bench.wait(OVER_TWO_SECONDS);
        call.replies(bench, WORKER1, &event);
        call.requests(bench, WORKER1, &call.ack());
        datagrams.replies(bench, WORKER1, &datagrams.reply(WORKER1, 0));
    }
}

#[packet_test(over(Family::V4))]
fn a_worker_without_a_known_next_hop_is_reached_by_a_route_lookup(bench: &mut Bench) {
    bench.backend(WORKER1.id, |backend| backend.next_hop = [0; 16]);
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
}

#[packet_test(in_both_modes)]
fn a_worker_behind_another_interface_is_reached_and_answers(bench: &mut Bench) {
    let far = FrameContext::received_on(ETH2);
    bench.backend(WORKER1.id, |backend| {
        backend.interface = ETH2;
        backend.reply_interface = ETH2;
    });
    bench.neighbour(
        WORKER1.id,
        Neighbour {
            worker: WORKER1.station.mac.into(),
            manager: MANAGER_ETH2.into(),
        },
    );
    let mut call = bench.call(CLIENT, 40_000);
    let across = |call: &Call, segment: &Segment| {
        let mut left = call.at_worker(WORKER1, segment);
        if bench.edge == Edge::Xdp {
            left.from_mac = MANAGER_ETH2;
        }
        left
    };
    let outcome = bench.receives(&call.syn());
    outcome.is(Action::Redirect);
    outcome.was_sent_to(WORKER1, 1);
    call.nat_port = outcome.nat_port();
    outcome.leaves_as(&across(&call, &call.syn()));

    for segment in [
        call.syn_ack(WORKER1),
        call.reply(WORKER1, PSH | ACK).payload(*b"early"),
    ] {
        let segment = segment.macs(WORKER1.station.mac, MANAGER_ETH2);
        let outcome = bench.meets(&segment, far);
        outcome.is(Action::Redirect);
        outcome.was_sent_by(WORKER1);
        outcome.leaves_as(&call.at_client(&segment));
    }
    let outcome = bench.receives(&call.ack());
    outcome.is(Action::Redirect);
    outcome.was_sent_to(WORKER1, 0);
    outcome.leaves_as(&across(&call, &call.ack()));
    assert_eq!(bench.entries().len(), 2);
}

#[packet_test(at_edge(Edge::Xdp))]
fn xdp_passes_packets_for_an_unresolved_worker_to_tc(bench: &mut Bench) {
    bench.neighbour(WORKER1.id, Neighbour::default());
    let mut call = bench.call(CLIENT, 40_000);
    let syn = call.syn();
    let handed_over = bench.receives(&syn);
    handed_over.is(Action::Pass);
    handed_over.is_untouched();
    assert_eq!(bench.connections(WORKER1.id), 1);
    let outcome = bench.behind_xdp(&syn);
    call.nat_port = outcome.nat_port();
    // TC leaves the link addresses to the kernel.
    let unresolved = call.at_worker(WORKER1, &syn).macs(CLIENT.mac, MANAGER.mac);
    outcome.goes_to(WORKER1, &unresolved);
    assert_eq!(bench.connections(WORKER1.id), 1);

    call.is_answered(bench, WORKER1);
    let learnt = bench.known_neighbour(WORKER1.id);
    assert_eq!(learnt.worker.bytes(), WORKER1.station.mac);
    assert_eq!(learnt.manager.bytes(), MANAGER.mac);
    call.requests(bench, WORKER1, &call.ack());
}

#[packet_test(at_edge(Edge::Xdp))]
fn xdp_learns_a_workers_new_link_address(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let mut replaced = WORKER1;
    replaced.station.mac = [2, 0, 0, 0, 9, 9];
    call.replies(bench, replaced, &call.reply(replaced, ACK));
    call.requests(bench, replaced, &call.ack());
    assert_eq!(
        bench.known_neighbour(WORKER2.id).worker.bytes(),
        WORKER2.station.mac
    );
}

#[packet_test(at_edge(Edge::Xdp))]
fn xdp_learns_only_from_packets_of_flows(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let mut stranger = call.reply(WORKER1, ACK);
    stranger.from_mac = [2, 0, 0, 0, 9, 9];
    stranger.destination.set_port(50_000);
    bench.receives(&stranger).passes(Verdict::NotOurs);
    let known = bench.known_neighbour(WORKER1.id);
    assert_eq!(known.worker.bytes(), WORKER1.station.mac);
}

#[packet_test(in_both_modes)]
fn an_evicted_entry_is_rebuilt_from_the_other_direction(bench: &mut Bench) {
    for (port, lost) in [(40_000, direction::REQUEST), (40_001, direction::REPLY)] {
        let mut call = bench.call(CLIENT, port).connected(bench, WORKER1);
        call.client.mac = OTHER_CLIENT.mac;
        call.requests(bench, WORKER1, &call.ack());
        bench.wait(OVER_A_SECOND);
        let reply = call.reply(WORKER1, ACK);
        if lost == direction::REQUEST {
            bench.evict(call.request_key());
            bench.receives(&call.ack()).passes(Verdict::NoFlow);
            call.replies(bench, WORKER1, &reply);
            // Otherwise it would not be counted any more.
            assert_eq!(bench.entry(call.request_key()).unwrap().counted, 1);
        } else {
            bench.evict(call.reply_key(WORKER1));
            bench.receives(&reply).passes(Verdict::NotOurs);
            call.requests(bench, WORKER1, &call.ack());
        }
        call.requests(bench, WORKER1, &call.ack());
        call.replies(bench, WORKER1, &reply);
    }
}

#[packet_test(at_both_edges)]
fn an_evicted_flow_sends_nothing_into_the_next_flow_of_its_port(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_000);
    let evicted = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.evict(evicted.reply_key(WORKER1));
    let heir = bench.call(OTHER_CLIENT, 40_000).connected(bench, WORKER1);
    bench.wait(OVER_A_SECOND);

    bench.receives(&evicted.ack()).passes(Verdict::NoFlow);
    heir.replies(bench, WORKER1, &heir.reply(WORKER1, ACK));
    heir.requests(bench, WORKER1, &heir.ack());
    assert_eq!(bench.entries().len(), 2);
}

#[packet_test(at_both_edges)]
fn leftover_entries_of_an_earlier_flow_do_not_affect_the_current_one(bench: &mut Bench) {
    let (earlier, present) = flows_of_one_tuple(bench);
    bench.wait(OVER_A_SECOND);
    // The worker still believes in the earlier connection, and ends it.
    bench
        .receives(&earlier.reply(WORKER1, RST))
        .passes(Verdict::NoFlow);
    bench.select(WORKER2.id);
    // A SYN on an open tuple: not a new connection.
    present.requests(bench, WORKER1, &present.syn());
    present.replies(bench, WORKER1, &present.reply(WORKER1, ACK));
}

#[packet_test(at_both_edges)]
fn reusing_the_port_of_an_earlier_flow_does_not_affect_the_current_one(bench: &mut Bench) {
    let (_, present) = flows_of_one_tuple(bench);
    for _ in 0..2 {
        bench.wait(ESTABLISHED_IDLE * 2 / 3);
        present.requests(bench, WORKER1, &present.ack());
        present.replies(bench, WORKER1, &present.reply(WORKER1, ACK));
    }
    bench.call(OTHER_CLIENT, 41_000).connects(bench, WORKER1);
    present.requests(bench, WORKER1, &present.ack());
    present.replies(bench, WORKER1, &present.reply(WORKER1, ACK));
}

/// A flow of which only the worker's side is left, and the client's next one from the same port.
fn flows_of_one_tuple(bench: &mut Bench) -> (Call, Call) {
    bench.nat_ports(5_000..=5_001);
    let earlier = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.evict(earlier.request_key());
    let present = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    assert_ne!(earlier.nat_port, present.nat_port);
    (earlier, present)
}

#[packet_test(at_both_edges)]
fn a_handshake_that_lost_its_port_by_eviction_does_not_take_it_back(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_000);
    let evicted = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    evicted.is_answered(bench, WORKER1);
    bench.forget(evicted.request_key());
    let heir = bench.call(OTHER_CLIENT, 40_000).connected(bench, WORKER1);

    let outcome = bench.receives(&evicted.ack());
    outcome.is(Action::Pass);
    outcome.is_untouched();
    heir.replies(bench, WORKER1, &heir.reply(WORKER1, SYN | ACK));
    heir.requests(bench, WORKER1, &heir.ack());
}

#[packet_test(at_both_edges)]
fn a_handshake_that_was_replaced_begins_again(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    bench.forget(call.request_key());
    bench
        .receives(&call.syn_ack(WORKER1))
        .passes(Verdict::NotOurs);
    call.connects(bench, WORKER1);

    let mut call = bench.call(CLIENT, 40_001).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    bench.forget(call.request_key());
    bench.receives(&call.ack()).passes(Verdict::NoFlow);
    call.connects(bench, WORKER1);
}
