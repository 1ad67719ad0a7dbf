//! Workers that see their clients' addresses and answer by way of the manager (`routed`): what differs from
//! `nat`, which the other tests use.

use std::time::Duration;

use lb_common::{maps::mode, verdict::Verdict};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge},
    call::Call,
    frame::{ACK, SYN},
    lan::{CLIENT, OTHER_CLIENT, WORKER1, WORKER2},
    local::{ITSELF, leaving, returns},
};

const CLIENT_PATIENCE: Duration = Duration::from_secs(1);

#[packet_test(at_both_edges)]
fn no_port_is_taken(bench: &mut Bench) {
    bench.routes();
    bench.settings(|settings| settings.nat_port_count = 0);
    for mut call in both_protocols(bench) {
        call.connects(bench, WORKER1);
        assert_eq!(call.nat_port, call.port);
        call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
    }
    assert_eq!(bench.entries().len(), 4);
}

#[packet_test(at_both_edges)]
fn a_workers_other_packets_pass_unchanged(bench: &mut Bench) {
    bench.routes();
    for mut call in both_protocols(bench) {
        call.begins(bench, WORKER1);
        let other_client = bench.call(OTHER_CLIENT, call.port);
        let other_port = bench.call(CLIENT, call.port + 1);
        for stranger in [other_client, other_port] {
            let mut stranger = stranger;
            stranger.protocol = call.protocol;
            let answer = stranger.reply(WORKER1, SYN | ACK);
            bench.receives(&answer).passes(Verdict::NotOurs);
        }
        // Nor does another worker answer for it.
        let answer = call.reply(WORKER2, SYN | ACK);
        bench.receives(&answer).passes(Verdict::NotOurs);
        call.is_answered(bench, WORKER1);
    }
}

#[packet_test(at_both_edges)]
fn a_handshake_whose_answer_passed_elsewhere_is_counted(bench: &mut Bench) {
    bench.routes();
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    assert_eq!(bench.unanswered(WORKER1.id), 0);
    // An acknowledgement of what never passed.
    call.requests(bench, WORKER1, &call.ack());
    assert_eq!(bench.unanswered(WORKER1.id), 1);
    bench.waited(call.request_key(), CLIENT_PATIENCE);
    call.requests(bench, WORKER1, &call.syn());
    assert_eq!(bench.unanswered(WORKER1.id), 2);
    assert!(bench.entries().is_empty());

    call.establishes(bench, WORKER1);
    assert_eq!(bench.unanswered(WORKER1.id), 2);
}

/// Else the worker's SYN-ACK would be taken for a packet of the connection before.
#[packet_test(at_both_edges)]
fn a_leftover_entry_is_no_answer_for_the_next_connection(bench: &mut Bench) {
    bench.routes();
    for mut call in both_protocols(bench) {
        call.connects(bench, WORKER1);
        bench.evict(call.request_key());
        call.connects(bench, WORKER1);
        assert!(bench.handshakes().is_empty());
    }
    assert_eq!(bench.keys().len(), 4);
}

#[packet_test(at_both_edges)]
fn a_worker_of_another_mode_is_not_taken_for_a_routed_one(bench: &mut Bench) {
    bench.routes();
    bench.backend(WORKER1.id, |backend| backend.mode = mode::DSR);
    let call = bench.call(CLIENT, 40_000);
    let syn = call.syn();
    bench
        .receives(&syn)
        .opens(WORKER1, &call.at_dsr_worker(WORKER1, &syn));
    // Its own answers, where the manager is a router on their way.
    let mut answer = call.syn_ack(WORKER1);
    answer.source = call.service();
    bench.receives(&answer).passes(Verdict::NotOurs);
}

#[packet_test(at_edge(Edge::Tc))]
fn a_client_on_the_manager_is_answered(bench: &mut Bench) {
    bench.routes();
    for call in [bench.call(ITSELF, 40_000), bench.datagrams(ITSELF, 40_000)] {
        let (syn, ack) = (call.syn(), call.ack());
        bench.loops(&syn).opens(WORKER1, &leaving(&call, &syn));
        returns(bench, &call, &call.syn_ack(WORKER1));
        // Datagrams take two exchanges and a third request.
        for _ in 0..2 {
            bench.loops(&ack).goes_to(WORKER1, &leaving(&call, &ack));
            returns(bench, &call, &call.reply(WORKER1, ACK));
        }
    }
    assert_eq!(bench.entries().len(), 4);
}

fn both_protocols(bench: &Bench) -> [Call; 2] {
    [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)]
}
