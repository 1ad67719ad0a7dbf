//! Which worker gets a packet when selection, states and routes change.

use lb_common::{
    maps::{Backend, state},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::Bench,
    frame::{ACK, FIN, PSH, RST},
    lan::{CLIENT, WORKER1, WORKER2},
};

#[packet_test(in_both_modes)]
fn a_changed_selection_moves_new_connections_only(bench: &mut Bench) {
    let early = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let begun = bench.call(CLIENT, 40_001).begun(bench, WORKER1);

    bench.select(WORKER2.id);
    bench.call(CLIENT, 40_002).connected(bench, WORKER2);
    let data = early.request(PSH | ACK).payload(*b"to worker 1");
    early.requests(bench, WORKER1, &data);
    early.replies(bench, WORKER1, &early.reply(WORKER1, ACK));
    begun.requests(bench, WORKER1, &begun.syn());
    begun.establishes(bench, WORKER1);
}

#[packet_test(in_both_modes)]
fn a_worker_that_is_down_loses_its_flows_to_the_kernels_reset(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.goes_down(WORKER1.id);
    // What the worker has sent already still arrives.
    let last = call.reply(WORKER1, PSH | ACK).payload(*b"last words");
    call.replies(bench, WORKER1, &last);

    bench.receives(&call.ack()).passes(Verdict::BackendDown);
    assert!(bench.entries().is_empty());
    bench.receives(&call.ack()).passes(Verdict::NoFlow);
    bench.receives(&last).passes(Verdict::NotOurs);
}

#[packet_test(at_both_edges)]
fn a_closing_flow_of_a_worker_that_is_down_ends_too(bench: &mut Bench) {
    for (port, flags) in [(40_000, FIN | ACK), (40_001, RST)] {
        bench.state(WORKER1.id, state::UP);
        let call = bench.call(CLIENT, port).connected(bench, WORKER1);
        bench.goes_down(WORKER1.id);
        bench
            .receives(&call.request(flags))
            .passes(Verdict::BackendDown);
        assert!(bench.entries().is_empty());
    }
}

#[packet_test(at_both_edges)]
fn a_handshake_with_a_worker_that_goes_down_begins_again_with_another(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    let old = call.reply_key(WORKER1);
    bench.goes_down(WORKER1.id);
    bench.select(WORKER2.id);
    call.connects(bench, WORKER2);
    assert_eq!(bench.handshake(old), None);
}

#[packet_test(at_both_edges)]
fn an_acknowledgement_to_a_worker_that_went_down_is_left_to_the_kernel(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    bench.goes_down(WORKER1.id);
    bench.receives(&call.ack()).passes(Verdict::BackendDown);
    assert!(bench.handshakes().is_empty());
}

#[packet_test(at_both_edges)]
fn a_syn_moves_from_a_worker_that_is_down_to_another_one(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.goes_down(WORKER1.id);
    bench.select(WORKER2.id);
    call.connects(bench, WORKER2);
    assert_eq!(bench.active(WORKER1.id), 0);
}

#[packet_test(at_both_edges)]
fn a_duplicate_of_an_answered_syn_stays_with_a_draining_worker(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    bench.state(WORKER1.id, state::DRAINING);
    bench.select(WORKER2.id);
    call.requests(bench, WORKER1, &call.syn());
    call.requests(bench, WORKER1, &call.ack());
}

#[packet_test(in_both_modes)]
fn a_draining_worker_keeps_its_flows_and_gets_no_new_one(bench: &mut Bench) {
    let open = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let answered = bench.call(CLIENT, 40_001).begun(bench, WORKER1);
    answered.is_answered(bench, WORKER1);

    bench.state(WORKER1.id, state::DRAINING);
    open.requests(bench, WORKER1, &open.request(PSH | ACK).payload(*b"more"));
    open.replies(bench, WORKER1, &open.reply(WORKER1, ACK));
    answered.requests(bench, WORKER1, &answered.ack());
    let late = bench.call(CLIENT, 40_002);
    bench.receives(&late.syn()).passes(Verdict::NoBackend);
}

#[packet_test(at_both_edges)]
fn a_repeated_syn_leaves_a_draining_worker(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    bench.state(WORKER1.id, state::DRAINING);
    bench.select(WORKER2.id);
    call.connects(bench, WORKER2);
}

#[packet_test(at_both_edges)]
fn connections_pass_to_the_kernel_without_a_backend_that_is_up(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000);
    for selected in [0, 7, 1_000, u32::MAX] {
        bench.select(selected);
        bench.receives(&call.syn()).passes(Verdict::NoBackend);
    }
    bench.select(WORKER1.id);
    for state in [state::UNKNOWN, state::DOWN, state::DRAINING, 77] {
        bench.state(WORKER1.id, state);
        bench.receives(&call.syn()).passes(Verdict::NoBackend);
    }
    assert!(bench.handshakes().is_empty());
}

#[packet_test(at_both_edges)]
fn a_worker_without_a_route_is_refused(bench: &mut Bench) {
    bench.backend(WORKER1.id, |backend| backend.interface = 0);
    let call = bench.call(CLIENT, 40_000);
    bench.receives(&call.syn()).passes(Verdict::NoRoute);
    assert!(bench.handshakes().is_empty());
}

#[packet_test(at_both_edges)]
fn flows_of_a_removed_backend_end(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.backend(WORKER1.id, |backend| *backend = Backend::default());
    bench.receives(&call.ack()).passes(Verdict::BackendDown);
}

#[packet_test(at_both_edges)]
fn a_flow_whose_backend_has_no_entry_is_left_to_the_kernel(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let mut flow = bench.entry(call.request_key()).unwrap();
    flow.backend = 4_000;
    bench.put(call.request_key(), flow);
    bench.receives(&call.ack()).passes(Verdict::NoBackend);
}

/// What is addressed to the service, or to the manager's port, has arrived (RFC 1122, section 3.2.1.7).
#[packet_test(in_both_modes)]
fn the_ttl_does_not_expire_at_the_manager(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    for hops in [0, 1, 2, 255] {
        call.requests(bench, WORKER1, &call.ack().time_to_live(hops));
        let reply = call.reply(WORKER1, ACK).time_to_live(hops);
        call.replies(bench, WORKER1, &reply);
        let mut other = bench.call(CLIENT, 41_000 + u16::from(hops));
        let syn = other.syn().time_to_live(hops);
        other.begins_with(bench, WORKER1, &syn);
    }
}

#[packet_test(in_both_modes)]
fn flows_of_two_workers_do_not_mix(bench: &mut Bench) {
    let mut calls = Vec::new();
    for (index, worker) in [WORKER1, WORKER2].into_iter().cycle().take(64).enumerate() {
        bench.select(worker.id);
        let mut call = bench.call(CLIENT, 40_000 + index as u16);
        call.connects(bench, worker);
        calls.push((call, worker));
    }
    for (call, worker) in &calls {
        let body = call.port.to_string();
        let down = call.reply(*worker, PSH | ACK).payload(body.clone());
        call.replies(bench, *worker, &down);
        let up = call.request(PSH | ACK).payload(body);
        call.requests(bench, *worker, &up);
    }
    assert_eq!(bench.connections(WORKER1.id), 32);
    assert_eq!(bench.connections(WORKER2.id), 32);
}
