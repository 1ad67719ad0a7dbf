//! Flows of datagrams: beginning, retry at another worker, continuation, restart.

use std::time::Duration;

use lb_common::{maps::state, verdict::Verdict};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, CLOSING_IDLE, DATAGRAM_IDLE, Edge, HALF_OPEN_IDLE},
    frame::{ACK, PSH},
    lan::{CLIENT, FALLBACK, OTHER_CLIENT, WORKER1, WORKER2},
    local::{ITSELF, answers, leaving, returns, takes},
};

const A_WHILE: Duration = Duration::from_millis(500);
/// After this time, an unanswered datagram goes to another worker.
const RETRY: Duration = Duration::from_millis(250);

#[packet_test(at_both_edges)]
fn a_first_datagram_takes_a_place_among_the_handshakes(bench: &mut Bench) {
    let call = bench.datagrams(CLIENT, 40_000).begun(bench, WORKER1);
    assert!(bench.entries().is_empty());
    let [handshake] = bench.handshakes()[..] else {
        panic!("{:?}", bench.handshakes());
    };
    assert_eq!(handshake.client, call.request_key());
    assert_eq!(handshake.translated.reversed(), call.reply_key(WORKER1));
    assert_eq!((handshake.answered, handshake.retries), (0, 0));
}

/// So a flood of datagrams with forged senders, which never answer an answer, leaves the flow table alone.
#[packet_test(in_both_modes)]
fn a_second_answer_and_the_clients_next_datagram_establish_the_flow(bench: &mut Bench) {
    let call = bench.datagrams(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    assert_eq!(bench.handshake(call.request_key()).unwrap().answered, 1);
    for _ in 0..3 {
        call.requests(bench, WORKER1, &call.ack());
    }
    assert!(bench.entries().is_empty());
    call.is_answered(bench, WORKER1);
    assert!(bench.entries().is_empty());
    call.requests(bench, WORKER1, &call.ack());
    assert!(bench.handshakes().is_empty());
    let established = bench.entries();
    assert_eq!(established.len(), 2);
    let request = established[&call.request_key()];
    let reply = established[&call.reply_key(WORKER1)];
    assert!(request.bytes > reply.bytes);
    assert_eq!(bench.active(WORKER1.id), 1);
    assert_eq!(bench.connections(WORKER1.id), 1);
}

#[packet_test(at_both_edges)]
fn datagrams_of_every_length_go_both_ways(bench: &mut Bench) {
    let call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    for length in (0..40).chain([511, 512, 1_451, 1_452]) {
        let body: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
        call.requests(bench, WORKER1, &call.request(0).payload(body.clone()));
        call.replies(bench, WORKER1, &call.reply(WORKER1, 0).payload(body));
    }
}

#[packet_test(in_both_modes)]
fn several_answers_to_one_datagram_reach_the_client(bench: &mut Bench) {
    let call = bench.datagrams(CLIENT, 40_000).begun(bench, WORKER1);
    for _ in 0..5 {
        call.is_answered(bench, WORKER1);
    }
    assert!(bench.entries().is_empty());
}

#[packet_test(at_both_edges)]
fn datagrams_that_follow_at_once_go_to_the_same_worker(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    let call = bench.datagrams(CLIENT, 40_000).begun(bench, WORKER1);
    bench.select(WORKER2.id);
    for _ in 0..5 {
        call.requests(bench, WORKER1, &call.request(0).payload(*b"more"));
    }
    assert_eq!(bench.handshakes().len(), 1);
}

#[packet_test(in_both_modes)]
fn unanswered_datagrams_try_other_workers_three_times_and_then_stay(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    let mut call = bench.datagrams(CLIENT, 40_000).begun(bench, WORKER1);
    for (retry, worker) in (1..).zip([WORKER2, WORKER1, WORKER2]) {
        bench.wait(RETRY);
        call.begins(bench, worker);
        let handshake = bench.handshake(call.request_key()).unwrap();
        assert_eq!(handshake.retries, retry);
    }
    for _ in 0..4 {
        bench.wait(RETRY);
        call.requests(bench, WORKER2, &call.syn());
    }
    // For as long as it is heard of.
    bench.wait(HALF_OPEN_IDLE + A_WHILE);
    call.begins(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn an_answer_ends_the_search_for_another_worker(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    let mut call = bench.datagrams(CLIENT, 40_000).begun(bench, WORKER1);
    bench.wait(RETRY);
    call.begins(bench, WORKER2);
    call.is_answered(bench, WORKER2);
    bench.wait(RETRY * 2);
    call.requests(bench, WORKER2, &call.ack());
}

#[packet_test(in_both_modes)]
fn an_answer_that_comes_after_another_worker_was_tried_is_unrelated(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    let mut call = bench.datagrams(CLIENT, 40_000).begun(bench, WORKER1);
    let late = call.syn_ack(WORKER1);
    bench.wait(RETRY);
    call.begins(bench, WORKER2);
    bench.receives(&late).passes(Verdict::NotOurs);
}

#[packet_test(at_both_edges)]
fn unanswered_datagrams_stay_where_no_other_worker_is_up(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    bench.goes_down(WORKER2.id);
    let call = bench.datagrams(CLIENT, 40_000).begun(bench, WORKER1);
    for _ in 0..5 {
        bench.wait(RETRY);
        call.requests(bench, WORKER1, &call.syn());
    }
    assert_eq!(bench.connections(WORKER1.id), 1);
}

#[packet_test(at_both_edges)]
fn a_datagram_leaves_a_worker_that_went_down_before_the_flow_was_established(bench: &mut Bench) {
    for (port, answered) in [(40_000, false), (40_001, true)] {
        bench.state(WORKER1.id, state::UP);
        bench.select(WORKER1.id);
        let mut call = bench.datagrams(CLIENT, port).begun(bench, WORKER1);
        if answered {
            call.is_answered(bench, WORKER1);
        }
        bench.goes_down(WORKER1.id);
        bench.select(WORKER2.id);
        call.connects(bench, WORKER2);
    }
}

#[packet_test(in_both_modes)]
fn a_flow_leaves_a_worker_that_is_down_at_its_next_datagram(bench: &mut Bench) {
    let mut call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    bench.goes_down(WORKER1.id);
    // What the worker has sent already still arrives.
    let last = call.reply(WORKER1, 0).payload(*b"last words");
    call.replies(bench, WORKER1, &last);
    bench.select(WORKER2.id);
    call.connects(bench, WORKER2);
    bench.receives(&last).passes(Verdict::NotOurs);
    assert_eq!(bench.entries().len(), 2);
    let active = [WORKER1, WORKER2].map(|worker| bench.active(worker.id));
    assert_eq!(active, [0, 1]);
}

#[packet_test(at_both_edges)]
fn a_flow_whose_worker_is_down_is_unrelated_while_no_other_is_up(bench: &mut Bench) {
    let mut call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    bench.goes_down(WORKER1.id);
    bench.receives(&call.ack()).passes(Verdict::NoBackend);
    assert!(bench.entries().is_empty());
    bench.state(WORKER1.id, state::UP);
    call.connects(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn a_draining_worker_keeps_its_datagrams_and_gets_no_new_ones(bench: &mut Bench) {
    let open = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    let answered = bench.datagrams(CLIENT, 40_001).begun(bench, WORKER1);
    answered.is_answered(bench, WORKER1);
    let mut unanswered = bench.datagrams(CLIENT, 40_002).begun(bench, WORKER1);

    bench.state(WORKER1.id, state::DRAINING);
    bench.select(WORKER2.id);
    open.requests(bench, WORKER1, &open.ack());
    open.replies(bench, WORKER1, &open.reply(WORKER1, 0));
    answered.requests(bench, WORKER1, &answered.ack());
    unanswered.begins(bench, WORKER2);
    bench.datagrams(CLIENT, 40_003).begins(bench, WORKER2);
}

#[packet_test(at_both_edges)]
fn an_idle_flow_begins_again_after_its_timeout(bench: &mut Bench) {
    let mut call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    bench.select(WORKER2.id);
    bench.wait(DATAGRAM_IDLE - A_WHILE);
    call.requests(bench, WORKER1, &call.ack());
    bench.wait(DATAGRAM_IDLE + A_WHILE);
    call.connects(bench, WORKER2);
    assert_eq!(bench.entries().len(), 2);
    assert_eq!(bench.active(WORKER1.id), 0);
}

#[packet_test(at_both_edges)]
fn the_timeout_of_an_idle_flow_is_a_setting(bench: &mut Bench) {
    let idle = Duration::from_secs(3);
    bench.settings(|settings| settings.datagram_idle_ns = idle.as_nanos() as u64);
    let mut call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    let tcp = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.select(WORKER2.id);
    bench.wait(idle - A_WHILE);
    call.requests(bench, WORKER1, &call.ack());
    bench.wait(idle + A_WHILE);
    call.begins(bench, WORKER2);
    tcp.requests(bench, WORKER1, &tcp.ack());
}

#[packet_test(at_both_edges)]
fn a_flow_with_packets_of_the_worker_only_is_not_idle(bench: &mut Bench) {
    let call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    bench.select(WORKER2.id);
    for _ in 0..3 {
        bench.wait(DATAGRAM_IDLE - A_WHILE);
        call.replies(bench, WORKER1, &call.reply(WORKER1, 0).payload(*b"news"));
    }
    call.requests(bench, WORKER1, &call.ack());
}

#[packet_test(at_both_edges)]
fn the_port_of_an_idle_flow_of_datagrams_is_reused_after_its_timeout(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_000);
    let holder = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    let mut other = bench.datagrams(OTHER_CLIENT, 41_000);
    bench.wait(DATAGRAM_IDLE - A_WHILE);
    bench.receives(&other.syn()).passes(Verdict::PortsExhausted);
    bench.wait(A_WHILE * 2);
    other.connects(bench, WORKER1);
    assert_eq!(other.nat_port, 5_000);
    bench
        .receives(&holder.reply(WORKER1, 0).to(other.nat_address()))
        .comes_from(WORKER1, &other.at_client(&holder.reply(WORKER1, 0)));
    assert!(CLOSING_IDLE < DATAGRAM_IDLE);
}

#[packet_test(at_both_edges)]
fn datagrams_and_a_connection_of_one_port_are_two_flows(bench: &mut Bench) {
    let mut tcp = bench.call(CLIENT, 40_000);
    let mut udp = bench.datagrams(CLIENT, 40_000);
    tcp.begins(bench, WORKER1);
    bench.select(WORKER2.id);
    udp.begins(bench, WORKER2);
    assert_eq!(bench.handshakes().len(), 2);
    tcp.is_answered(bench, WORKER1);
    udp.establishes(bench, WORKER2);
    udp.establishes(bench, WORKER2);
    tcp.requests(bench, WORKER1, &tcp.ack());
    assert_eq!(bench.entries().len(), 4);
    udp.replies(bench, WORKER2, &udp.reply(WORKER2, 0).payload(*b"udp"));
    tcp.replies(
        bench,
        WORKER1,
        &tcp.reply(WORKER1, PSH | ACK).payload(*b"tcp"),
    );
}

#[packet_test(at_both_edges)]
fn datagrams_without_a_route_pass_to_the_kernel(bench: &mut Bench) {
    let first = bench.datagrams(CLIENT, 40_000).syn();
    bench.select(0);
    bench.receives(&first).passes(Verdict::NoBackend);
    bench.select(WORKER1.id);
    bench.backend(WORKER1.id, |backend| backend.interface = 0);
    bench.receives(&first).passes(Verdict::NoRoute);
    bench.select(WORKER2.id);
    bench.settings(|settings| settings.nat_port_count = 0);
    bench.receives(&first).passes(Verdict::PortsExhausted);
    assert!(bench.handshakes().is_empty());
}

#[packet_test(in_both_modes)]
fn a_datagrams_ttl_does_not_expire_at_the_manager(bench: &mut Bench) {
    let mut call = bench.datagrams(CLIENT, 40_000);
    let first = call.syn().time_to_live(1);
    call.begins_with(bench, WORKER1, &first);
    for hops in [0, 1] {
        call.requests(bench, WORKER1, &call.request(0).time_to_live(hops));
        let reply = call.reply(WORKER1, 0).time_to_live(hops);
        call.replies(bench, WORKER1, &reply);
    }
}

#[packet_test(at_both_edges)]
fn the_managers_own_server_takes_over_datagrams(bench: &mut Bench) {
    bench.select(FALLBACK.id);
    let call = bench.datagrams(CLIENT, 40_000);
    takes(bench.receives(&call.syn()), &call.syn(), 1);
    answers(bench, &call, 0);
    takes(bench.receives(&call.ack()), &call.ack(), 0);
    answers(bench, &call, 0);
    takes(bench.receives(&call.ack()), &call.ack(), 0);
    assert_eq!(bench.entries().len(), 2);
    for length in [1, 2, 1_452] {
        let data = call.request(0).payload(vec![b'x'; length]);
        takes(bench.receives(&data), &data, 0);
        answers(bench, &call, 0);
    }
    let silent = call.request(0).payload(*b"no checksum").checksum(0);
    takes(bench.receives(&silent), &silent, 0);
}

#[packet_test(at_edge(Edge::Tc))]
fn datagrams_of_a_client_on_the_manager_reach_a_worker_and_are_answered(bench: &mut Bench) {
    let mut call = bench.datagrams(ITSELF, 40_000);
    let first = call.syn().payload(*b"?");
    let outcome = bench.loops(&first);
    call.nat_port = outcome.nat_port();
    outcome.opens(WORKER1, &leaving(&call, &first));
    returns(bench, &call, &call.syn_ack(WORKER1));
    let next = call.ack();
    bench.loops(&next).goes_to(WORKER1, &leaving(&call, &next));
    returns(bench, &call, &call.reply(WORKER1, 0).payload(*b"!"));
}
