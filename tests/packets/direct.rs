//! Workers that answer their clients themselves (`dsr`): requests go on as they came.

use std::time::Duration;

use lb_common::{
    maps::{Neighbour, direction, ended, mode, progress, state},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, DATAGRAM_IDLE, ESTABLISHED_IDLE, Edge},
    call::{CLIENT_START, Call, WORKER_START},
    frame::{ACK, FIN, PSH, RST, SYN},
    lan::{CLIENT, WORKER1, WORKER2},
    local::ITSELF,
    message::Problem,
    outcome::Action,
    segment::Segment,
};

const A_WHILE: Duration = Duration::from_millis(500);
const CLIENT_PATIENCE: Duration = Duration::from_secs(1);

#[packet_test(at_both_edges)]
fn a_syn_goes_on_as_it_came(bench: &mut Bench) {
    let call = directly(bench);
    begins(bench, &call);
    let [handshake] = bench.handshakes()[..] else {
        panic!("{:?}", bench.handshakes());
    };
    assert_eq!(handshake.client, call.request_key());
    assert_eq!(handshake.translated, call.request_key());
}

#[packet_test(at_both_edges)]
fn a_packet_after_the_acknowledgement_makes_a_flow(bench: &mut Bench) {
    let call = directly(bench);
    begins(bench, &call);
    for _ in 0..3 {
        requests(bench, &call, &call.ack());
    }
    assert!(bench.entries().is_empty());
    goes_on(bench, &call);
    assert!(bench.handshakes().is_empty());
    let established = bench.entries();
    assert_eq!(established.len(), 2);
    let request = established[&call.request_key()];
    assert_eq!(request.translated, call.request_key());
    assert_eq!(
        (request.direction, request.counted),
        (direction::REQUEST, 1)
    );
    let reply = established[&call.request_key().reversed()];
    assert_eq!(
        (reply.direction, reply.ended),
        (direction::REPLY, ended::FIN)
    );
    assert_eq!(bench.active(WORKER1.id), 1);
}

#[packet_test(at_both_edges)]
fn a_wrong_sequence_number_does_not_complete_the_handshake(bench: &mut Bench) {
    let call = directly(bench);
    begins(bench, &call);
    for sequence in [
        CLIENT_START,
        CLIENT_START.wrapping_sub(1),
        CLIENT_START.wrapping_add(1 + 65_536),
        CLIENT_START.wrapping_add(1 << 31),
    ] {
        requests(bench, &call, &call.request(ACK).numbers(sequence, 1));
        assert_eq!(bench.handshakes()[0].progress, progress::NONE);
    }
    let beyond = CLIENT_START.wrapping_add(65_536);
    requests(bench, &call, &call.request(PSH | ACK).numbers(beyond, 1));
    assert_eq!(bench.handshakes()[0].progress, progress::CLIENT);
}

#[packet_test(at_both_edges)]
fn requests_of_every_length_are_forwarded_unchanged(bench: &mut Bench) {
    for call in [directly(bench), directly(bench).of_datagrams()] {
        begins(bench, &call);
        goes_on(bench, &call);
        for length in (0..20).chain([1_000, 1_428]) {
            let up = call.request(PSH | ACK).payload(vec![b'u'; length]);
            requests(bench, &call, &up);
        }
        // Not even a wrong checksum changes.
        requests(bench, &call, &call.request(ACK).checksum(0x1234));
    }
}

#[packet_test(at_both_edges)]
fn no_port_is_taken(bench: &mut Bench) {
    bench.settings(|settings| settings.nat_port_count = 0);
    for call in [directly(bench), directly(bench).of_datagrams()] {
        begins(bench, &call);
        goes_on(bench, &call);
    }
    assert_eq!(bench.entries().len(), 4);
}

#[packet_test(at_both_edges)]
fn the_clients_end_is_the_end(bench: &mut Bench) {
    for flags in [FIN | ACK, RST] {
        let call = directly(bench);
        begins(bench, &call);
        goes_on(bench, &call);
        assert_eq!(bench.active(WORKER1.id), 1);
        requests(bench, &call, &call.request(flags));
        assert_eq!(bench.active(WORKER1.id), 0);
        if flags & FIN != 0 {
            // What is still to be acknowledged.
            requests(bench, &call, &call.ack());
        }
        begins(bench, &call);
        requests(bench, &call, &call.request(RST));
    }
    assert_eq!(bench.connections(WORKER1.id), 4);
}

#[packet_test(at_both_edges)]
fn a_repeated_syn_stays_with_a_worker_that_may_have_answered(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    let mut call = directly(bench);
    begins(bench, &call);
    requests(bench, &call, &call.syn());
    bench.wait(CLIENT_PATIENCE);
    requests(bench, &call, &call.syn());
    bench.goes_down(WORKER1.id);
    bench.select(WORKER2.id);
    call.begins(bench, WORKER2);
    // This one's answers come by here.
    bench.state(WORKER1.id, state::UP);
    bench.wait(CLIENT_PATIENCE);
    begins(bench, &call);
    goes_on(bench, &call);
}

#[packet_test(at_both_edges)]
fn an_open_tuple_keeps_its_worker(bench: &mut Bench) {
    let mut call = directly(bench);
    begins(bench, &call);
    goes_on(bench, &call);
    bench.select(WORKER2.id);
    bench.wait(ESTABLISHED_IDLE - A_WHILE);
    requests(bench, &call, &call.syn());
    bench.wait(ESTABLISHED_IDLE + A_WHILE);
    call.connects(bench, WORKER2);
}

#[packet_test(at_both_edges)]
fn a_worker_that_is_down_loses_its_flows(bench: &mut Bench) {
    let call = directly(bench);
    begins(bench, &call);
    goes_on(bench, &call);
    bench.state(WORKER1.id, state::DRAINING);
    requests(bench, &call, &call.ack());
    bench.goes_down(WORKER1.id);
    bench.receives(&call.ack()).passes(Verdict::BackendDown);
    bench.receives(&call.ack()).passes(Verdict::NoFlow);
}

#[packet_test(at_both_edges)]
fn datagrams_are_forwarded_without_an_answer(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    let mut call = directly(bench).of_datagrams();
    begins(bench, &call);
    bench.wait(CLIENT_PATIENCE);
    requests(bench, &call, &call.ack());
    requests(bench, &call, &call.ack().checksum(0));
    assert_eq!(bench.entries().len(), 2);
    bench.select(WORKER2.id);
    bench.wait(DATAGRAM_IDLE - A_WHILE);
    requests(bench, &call, &call.ack());
    bench.goes_down(WORKER1.id);
    call.connects(bench, WORKER2);
}

#[packet_test(at_both_edges)]
fn a_requests_ttl_does_not_expire_at_the_manager(bench: &mut Bench) {
    let call = directly(bench);
    let syn = call.syn().time_to_live(1);
    bench
        .receives(&syn)
        .opens(WORKER1, &call.at_dsr_worker(WORKER1, &syn));
    requests(bench, &call, &call.ack().time_to_live(1));
    requests(bench, &call, &call.ack().time_to_live(1));
}

#[packet_test(at_edge(Edge::Tc))]
fn clients_on_the_manager_cannot_use_a_dsr_worker(bench: &mut Bench) {
    directly(bench);
    for call in [bench.call(ITSELF, 40_000), bench.datagrams(ITSELF, 40_000)] {
        bench.loops(&call.syn()).passes(Verdict::NoRoute);
    }
    assert!(bench.handshakes().is_empty());
}

#[packet_test(at_edge(Edge::Xdp))]
fn xdp_passes_packets_for_an_unresolved_dsr_worker_to_tc(bench: &mut Bench) {
    let call = directly(bench);
    bench.neighbour(WORKER1.id, Neighbour::default());
    let handed_over = bench.receives(&call.syn());
    handed_over.is(Action::Pass);
    handed_over.is_untouched();
    let mut unresolved = call.syn();
    unresolved.ip.time_to_live -= 1;
    bench.behind_xdp(&call.syn()).goes_to(WORKER1, &unresolved);
}

#[packet_test(at_both_edges)]
fn an_error_about_the_workers_answer_is_forwarded_to_it(bench: &mut Bench) {
    for call in [directly(bench), directly(bench).of_datagrams()] {
        begins(bench, &call);
        gets_error(bench, &call);
        requests(bench, &call, &call.ack());
        gets_error(bench, &call);
    }
}

/// The worker must get the messages about what it has sent to the client.
#[track_caller]
fn gets_error(bench: &Bench, call: &Call) {
    let answer = call.segment(call.service(), call.client_address(), SYN | ACK);
    for problem in Problem::ALL {
        let message = call.complains(problem, &answer);
        let sent_on = call.complaint_at_dsr_worker(WORKER1, &message);
        bench.receives(&message).goes_to(WORKER1, &sent_on);
    }
}

#[packet_test(at_both_edges)]
fn an_idle_connection_keeps_its_entry(bench: &mut Bench) {
    let call = directly(bench);
    begins(bench, &call);
    requests(bench, &call, &call.ack());
    bench.waited(call.request_key(), ESTABLISHED_IDLE - A_WHILE);
    goes_on(bench, &call);
    assert_eq!(bench.entries().len(), 2);
}

/// Acknowledges the handshake, and then more: what a flow of its own takes. Of datagrams, sends two.
#[track_caller]
fn goes_on(bench: &Bench, call: &Call) {
    requests(bench, call, &call.ack());
    let beyond = WORKER_START.wrapping_add(101);
    let more = call.ack().numbers(CLIENT_START.wrapping_add(1), beyond);
    requests(bench, call, &more);
}

/// A call to worker 1, which answers clients itself from now on.
fn directly(bench: &mut Bench) -> Call {
    bench.backend(WORKER1.id, |backend| backend.mode = mode::DSR);
    bench.call(CLIENT, 40_000)
}

#[track_caller]
fn begins(bench: &Bench, call: &Call) {
    let syn = call.syn();
    bench
        .receives(&syn)
        .opens(WORKER1, &call.at_dsr_worker(WORKER1, &syn));
}

#[track_caller]
fn requests(bench: &Bench, call: &Call, segment: &Segment) {
    bench
        .receives(segment)
        .goes_to(WORKER1, &call.at_dsr_worker(WORKER1, segment));
}
