//! The programs' counters of workers' answers.

use std::time::Duration;

use lb_common::maps::{Traffic, mode};
use memlb_tests::packet_test;

use crate::{
    bench::Bench,
    call::{CLIENT_START, Call},
    frame::{ACK, FIN, RST},
    lan::{CLIENT, WORKER1},
    message::Problem,
    segment::Segment,
};

const CLIENT_PATIENCE: Duration = Duration::from_secs(1);

#[packet_test(in_both_modes)]
fn an_answer_is_counted_once(bench: &mut Bench) {
    for mut call in both_protocols(bench) {
        let before = counted(bench);
        call.begins(bench, WORKER1);
        assert_eq!(counted(bench), before);
        call.is_answered(bench, WORKER1);
        call.is_answered(bench, WORKER1);
        let [answered, rest @ ..] = before;
        assert_eq!(counted(bench)[0], answered + 1);
        assert_eq!(counted(bench)[1..], rest);
        assert!(bench.last_answer_ns(WORKER1.id) > 0);
    }
}

#[packet_test(in_both_modes)]
fn a_reset_in_place_of_an_answer_is_a_refusal(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    // Forged: it does not acknowledge the SYN.
    let forged = refusal(&call).numbers(0, CLIENT_START);
    call.replies(bench, WORKER1, &forged);
    assert_eq!(counted(bench), [0; 4]);
    call.replies(bench, WORKER1, &refusal(&call));
    assert_eq!(counted(bench), [0, 1, 0, 0]);
    assert!(bench.handshakes().is_empty());
}

#[packet_test(in_both_modes)]
fn a_port_unreachable_error_is_a_refusal(bench: &mut Bench) {
    for (number, mut call) in (1..).zip(both_protocols(bench)) {
        call.begins(bench, WORKER1);
        for problem in [Problem::HostUnreachable, Problem::PortUnreachable] {
            let message = call.worker_complains(WORKER1, problem, &call.syn());
            _ = bench.receives(&message);
        }
        assert_eq!(counted(bench), [0, number, 0, 0]);
    }
}

#[packet_test(in_both_modes)]
fn a_worker_that_resets_a_connection_is_counted_once(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    call.replies(bench, WORKER1, &call.reply(WORKER1, RST | ACK));
    assert_eq!(counted(bench), [1, 0, 0, 1]);

    call.connects(bench, WORKER1);
    for _ in 0..2 {
        call.replies(bench, WORKER1, &call.reply(WORKER1, RST));
    }
    assert_eq!(counted(bench), [2, 0, 0, 2]);

    // What ends otherwise is no reset, nor is a RST after the end.
    call.connects(bench, WORKER1);
    call.requests(bench, WORKER1, &call.request(FIN | ACK));
    call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
    call.replies(bench, WORKER1, &call.reply(WORKER1, RST));
    call.connects(bench, WORKER1);
    call.requests(bench, WORKER1, &call.request(RST));
    assert_eq!(counted(bench), [4, 0, 0, 2]);
}

#[packet_test(in_both_modes)]
fn an_error_about_established_datagrams_is_a_reset(bench: &mut Bench) {
    let mut calls = both_protocols(bench);
    for call in &mut calls {
        call.connects(bench, WORKER1);
        let message = call.worker_complains(WORKER1, Problem::PortUnreachable, &call.ack());
        _ = bench.receives(&message);
    }
    // A segment of TCP has a RST for that.
    assert_eq!(counted(bench), [2, 0, 0, 1]);
}

#[packet_test(in_both_modes)]
fn a_handshake_without_an_answer_expires(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    // A new connection from the same port: too soon to say anything of the worker.
    let again = call.syn().numbers(CLIENT_START + 7, 0);
    call.nat_port = begins_with(bench, &call, &again);
    assert_eq!(counted(bench), [0; 4]);
    bench.wait(CLIENT_PATIENCE);
    begins_with(bench, &call, &call.syn());
    assert_eq!(counted(bench), [0, 0, 1, 0]);
    assert_eq!(bench.unanswered(WORKER1.id), 0);
}

#[packet_test(in_both_modes)]
fn an_established_worker_is_heard_once_a_second(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let begun = bench.last_answer_ns(WORKER1.id);
    std::thread::sleep(Duration::from_millis(20));
    let key = call.reply_key(WORKER1);
    // A RST, and a packet that its worker cannot have sent, show nothing.
    bench.was_silent(key, 2 * CLIENT_PATIENCE);
    let implausible = call.reply(WORKER1, ACK).numbers(1 << 30, 1 << 30);
    call.replies(bench, WORKER1, &implausible);
    assert_eq!(bench.last_answer_ns(WORKER1.id), begun);
    bench.was_silent(key, 2 * CLIENT_PATIENCE);
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
    let heard = bench.last_answer_ns(WORKER1.id);
    assert!(heard > begun, "{heard} {begun}");
    bench.was_silent(key, 2 * CLIENT_PATIENCE);
    call.replies(bench, WORKER1, &call.reply(WORKER1, RST));
    assert_eq!(bench.last_answer_ns(WORKER1.id), heard);
}

/// Of a worker that answers its clients itself, their acknowledgements tell.
#[packet_test(at_both_edges)]
fn a_direct_answer_is_counted_by_its_acknowledgement(bench: &mut Bench) {
    bench.backend(WORKER1.id, |backend| backend.mode = mode::DSR);
    let call = bench.call(CLIENT, 40_000);
    _ = bench.receives(&call.syn());
    bench.waited(call.request_key(), CLIENT_PATIENCE);
    _ = bench.receives(&call.syn());
    assert_eq!(bench.unanswered(WORKER1.id), 1);
    for _ in 0..2 {
        _ = bench.receives(&call.ack());
    }
    assert_eq!(counted(bench), [1, 0, 0, 0]);
    bench.waited(call.request_key(), CLIENT_PATIENCE);
    _ = bench.receives(&call.syn());
    assert_eq!(bench.unanswered(WORKER1.id), 1);
}

/// Answered, refused, expired, resets of the first worker.
fn counted(bench: &Bench) -> [u64; 4] {
    let fields: [fn(&Traffic) -> u64; 4] = [
        |traffic| traffic.answered,
        |traffic| traffic.refused,
        |traffic| traffic.expired,
        |traffic| traffic.resets,
    ];
    fields.map(|field| bench.tally(WORKER1.id, field))
}

fn both_protocols(bench: &Bench) -> [Call; 2] {
    [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)]
}

/// The RST of a worker on which no server listens.
fn refusal(call: &Call) -> Segment {
    let acknowledgement = CLIENT_START.wrapping_add(1);
    call.reply(WORKER1, RST | ACK).numbers(0, acknowledgement)
}

/// Sends a SYN, which must begin a connection; returns the manager's port.
#[track_caller]
fn begins_with(bench: &Bench, call: &Call, syn: &Segment) -> u16 {
    let outcome = bench.receives(syn);
    let mut begun = call.clone();
    begun.nat_port = outcome.nat_port();
    outcome.opens(WORKER1, &begun.at_worker(WORKER1, syn));
    begun.nat_port
}
