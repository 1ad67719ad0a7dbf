//! The ends of connections, and the reuse of their ports and entries.

use std::{
    hint,
    sync::atomic::{
        AtomicUsize,
        Ordering::{Acquire, Release},
    },
    thread,
    time::Duration,
};

use lb_common::{
    maps::{SLOTS_PER_BUCKET, ended},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, CLOSING_IDLE, ESTABLISHED_IDLE, HALF_OPEN_IDLE},
    call::{CLIENT_START, Call, WORKER_START},
    datapath::Edge,
    frame::{ACK, FIN, PSH, RST},
    lan::{CLIENT, MANAGER, OTHER_CLIENT, OTHER_SOURCE, Station, WORKER1, WORKER2},
    outcome::Action,
};

const A_WHILE: Duration = Duration::from_millis(500);

#[packet_test(in_both_modes)]
fn a_closed_tuple_begins_a_new_flow_at_once(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    closes(&call, bench);
    bench.select(WORKER2.id);
    let old = call.reply_key(WORKER1);
    call.connects(bench, WORKER2);
    assert_eq!(bench.entry(old), None);
    assert_eq!(bench.entries().len(), 2);
}

#[packet_test(in_both_modes)]
fn a_closing_flow_carries_its_last_packets(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    call.requests(bench, WORKER1, &call.request(FIN | ACK));
    // Half closed: the worker may go on.
    call.replies(
        bench,
        WORKER1,
        &call.reply(WORKER1, PSH | ACK).payload(*b"more"),
    );
    call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
    call.requests(bench, WORKER1, &call.ack());
    call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
    call.requests(bench, WORKER1, &call.ack());
    let established = bench.entries();
    assert_eq!(established[&call.request_key()].ended, ended::FIN);
    assert_eq!(established[&call.reply_key(WORKER1)].ended, ended::FIN);
}

#[packet_test(in_both_modes)]
fn a_half_closed_flow_is_not_over(bench: &mut Bench) {
    for (port, client_closes) in [(40_000, true), (40_001, false)] {
        let call = bench.call(CLIENT, port).connected(bench, WORKER1);
        if client_closes {
            call.requests(bench, WORKER1, &call.request(FIN | ACK));
        } else {
            call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
        }
        // The client, which has ended its part only, may wait for long.
        let longest = if client_closes {
            ESTABLISHED_IDLE
        } else {
            CLOSING_IDLE
        };
        bench.wait(longest - A_WHILE);
        call.requests(bench, WORKER1, &call.syn());
    }
}

#[packet_test(at_both_edges)]
fn a_client_that_does_not_answer_its_workers_end_leaves_its_port_to_others(bench: &mut Bench) {
    let holder = holds_the_only_port(bench);
    for end in [FIN | ACK, FIN | PSH | ACK] {
        holder.replies(bench, WORKER1, &holder.reply(WORKER1, end));
        bench.wait(CLOSING_IDLE - A_WHILE);
        is_refused(bench);
        // Half closed: the client may go on for long, but not be silent.
        holder.requests(bench, WORKER1, &holder.request(PSH | ACK).payload(*b"more"));
    }
    bench.wait(CLOSING_IDLE - A_WHILE);
    is_refused(bench);
    bench.wait(A_WHILE * 2);
    takes_the_port_from(&holder, bench);
}

/// RFC 5961, sections 3 and 4; RFC 9293, section 3.10.7.4: the receiver ignores such a segment.
#[packet_test(at_both_edges)]
fn a_fin_or_rst_out_of_window_ends_nothing(bench: &mut Bench) {
    const FAR: [u32; 4] = [1 << 21, 1 << 31, 1 << 30, 0_u32.wrapping_sub(1 << 21)];
    let call = holds_the_only_port(bench);
    for far in FAR {
        for flags in [RST, RST | ACK, FIN | ACK, FIN | RST | ACK] {
            let [request, reply] = [call.request(flags), call.reply(WORKER1, flags)];
            let forged = request
                .clone()
                .numbers(CLIENT_START.wrapping_add(far), 1 << 28);
            call.requests(bench, WORKER1, &forged);
            let forged = reply
                .clone()
                .numbers(WORKER_START.wrapping_add(far), 1 << 28);
            call.replies(bench, WORKER1, &forged);
        }
    }
    assert_eq!(bench.active(WORKER1.id), 1);
    assert!(bench.entries().values().all(|flow| flow.ended == 0));
    bench.wait(CLOSING_IDLE + A_WHILE);
    is_refused(bench);
}

#[packet_test(at_both_edges)]
fn numbers_are_followed_as_far_as_a_connection_gets(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let step = 1 << 19;
    for number in 1..10_u32 {
        let sequence = CLIENT_START.wrapping_add(number * step);
        call.requests(bench, WORKER1, &call.request(ACK).numbers(sequence, 1));
    }
    let last = CLIENT_START.wrapping_add(9 * step);
    // Who begins with the first numbers knows those of the handshake only.
    call.requests(bench, WORKER1, &call.request(RST));
    assert_eq!(bench.active(WORKER1.id), 1);
    call.requests(bench, WORKER1, &call.request(RST).numbers(last, 1));
    assert_eq!(bench.active(WORKER1.id), 0);
}

#[packet_test(at_both_edges)]
fn a_side_that_goes_on_after_its_reset_has_not_sent_it(bench: &mut Bench) {
    let call = holds_the_only_port(bench);
    for by_client in [true, false] {
        let sends = |bench: &Bench, flags| {
            if by_client {
                call.requests(bench, WORKER1, &call.request(flags));
            } else {
                call.replies(bench, WORKER1, &call.reply(WORKER1, flags));
            }
        };
        sends(bench, RST | ACK);
        assert_eq!(bench.active(WORKER1.id), 0);
        // Another processor may have handled the RST before an older packet.
        sends(bench, ACK);
        assert_eq!(bench.active(WORKER1.id), 0);
        bench.wait(Duration::from_millis(300));
        sends(bench, ACK);
        assert_eq!(bench.active(WORKER1.id), 1);
        sends(bench, ACK);
        assert_eq!(bench.active(WORKER1.id), 1);
    }
    bench.wait(CLOSING_IDLE + A_WHILE);
    is_refused(bench);
}

#[packet_test(at_both_edges)]
fn a_side_that_goes_on_for_long_was_not_reset(bench: &mut Bench) {
    for by_client in [true, false] {
        let call = holds_the_only_port(bench);
        let (reset, other) = (call.request(RST), call.reply(WORKER1, ACK));
        let (back, forth) = (call.reply(WORKER1, RST), call.request(ACK));
        let resets = |bench: &Bench| match by_client {
            true => call.requests(bench, WORKER1, &reset),
            false => call.replies(bench, WORKER1, &back),
        };
        let goes_on = |bench: &Bench| match by_client {
            // By which way does not matter here: the client is silent.
            true => bench.runs_on(&other.frame()),
            false => call.requests(bench, WORKER1, &forth),
        };
        resets(bench);
        // What was under way.
        goes_on(bench);
        assert_eq!(bench.active(WORKER1.id), 0);
        bench.wait(Duration::from_secs(2));
        goes_on(bench);
        assert_eq!(bench.active(WORKER1.id), 1);
        bench.wait(CLOSING_IDLE + A_WHILE);
        is_refused(bench);
        goes_on(bench);
        assert_eq!(bench.active(WORKER1.id), 1);
        // And a true one ends it again.
        resets(bench);
        assert_eq!(bench.active(WORKER1.id), 0);
        bench.reset();
    }
}

#[packet_test(at_both_edges)]
fn a_side_that_sends_more_after_its_end_has_not_sent_it(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    call.requests(bench, WORKER1, &call.request(FIN | ACK));
    call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
    // The last acknowledgement, and what was lost and is repeated.
    let last = CLIENT_START.wrapping_add(2);
    call.requests(bench, WORKER1, &call.request(ACK).numbers(last, 1));
    call.requests(bench, WORKER1, &call.request(FIN | ACK));
    assert_eq!(bench.active(WORKER1.id), 0);
    let more = CLIENT_START.wrapping_add(2_000);
    call.requests(bench, WORKER1, &call.request(PSH | ACK).numbers(more, 1));
    assert_eq!(bench.active(WORKER1.id), 1);
    let request = bench.entry(call.request_key()).unwrap();
    assert_eq!((request.ended, request.counted), (0, 1));
}

/// A restored entry has no sequence number: a packet with the other side's number is accepted.
#[packet_test(at_both_edges)]
fn a_direction_that_was_evicted_finds_its_number_again(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.evict(call.reply_key(WORKER1));
    bench.wait(Duration::from_secs(2));
    // Its first packet after that acknowledges nothing.
    call.requests(
        bench,
        WORKER1,
        &call.request(PSH).numbers(CLIENT_START, 1 << 30),
    );
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
    bench.wait(Duration::from_secs(2));
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
    call.replies(bench, WORKER1, &call.reply(WORKER1, RST | ACK));
    assert_eq!(bench.active(WORKER1.id), 0);
}

#[packet_test(in_both_modes)]
fn a_reset_from_either_side_ends_the_flow(bench: &mut Bench) {
    for (port, client_resets) in [(40_000, true), (40_001, false)] {
        let mut call = bench.call(CLIENT, port).connected(bench, WORKER1);
        if client_resets {
            call.requests(bench, WORKER1, &call.request(RST));
        } else {
            call.replies(bench, WORKER1, &call.reply(WORKER1, RST | ACK));
        }
        call.connects(bench, WORKER1);
    }
}

#[packet_test(in_both_modes)]
fn a_syn_on_an_open_tuple_goes_to_the_same_worker(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.select(WORKER2.id);
    bench.wait(ESTABLISHED_IDLE - A_WHILE);
    call.requests(bench, WORKER1, &call.syn());
    // The worker answers with what it expects, at which the client resets and tries again.
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
    call.requests(bench, WORKER1, &call.request(RST));
    call.connects(bench, WORKER2);
}

#[packet_test(in_both_modes)]
fn a_syn_on_a_tuple_that_was_long_silent_begins_a_new_flow(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.select(WORKER2.id);
    bench.wait(ESTABLISHED_IDLE + A_WHILE);
    call.connects(bench, WORKER2);
}

#[packet_test(at_both_edges)]
fn an_idle_flow_continues_until_its_port_is_needed(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.wait(ESTABLISHED_IDLE * 2);
    call.requests(bench, WORKER1, &call.ack());
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
}

#[packet_test(at_both_edges)]
fn an_overwritten_handshake_begins_again(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    bench.wait(HALF_OPEN_IDLE + A_WHILE);
    call.begins(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn a_port_is_refused_while_it_is_in_use(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_000);
    let holder = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    assert_eq!(holder.nat_port, 5_000);
    let other = bench.call(OTHER_CLIENT, 40_000);
    bench.receives(&other.syn()).passes(Verdict::PortsExhausted);
    assert_eq!(bench.handshakes().len(), 0);
    // The same port towards another worker is another tuple.
    bench.select(WORKER2.id);
    let mut other = other;
    other.connects(bench, WORKER2);
    assert_eq!(other.nat_port, 5_000);
}

#[packet_test(at_both_edges)]
fn an_empty_range_of_ports_is_refused(bench: &mut Bench) {
    bench.settings(|settings| settings.nat_port_count = 0);
    let call = bench.call(CLIENT, 40_000);
    bench.receives(&call.syn()).passes(Verdict::PortsExhausted);
}

#[packet_test(at_both_edges)]
fn every_port_of_a_small_range_is_used_once(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_015);
    let mut given = Vec::new();
    for port in 0..16 {
        let mut call = bench.call(CLIENT, 40_000 + 16 * port);
        call.connects(bench, WORKER1);
        given.push(call.nat_port);
    }
    given.sort_unstable();
    assert_eq!(given, Vec::from_iter(5_000..=5_015));
    let one_more = bench.call(CLIENT, 50_000);
    bench
        .receives(&one_more.syn())
        .passes(Verdict::PortsExhausted);
}

#[packet_test(at_both_edges)]
fn the_last_port_of_the_highest_range_is_valid(bench: &mut Bench) {
    bench.nat_ports(65_535..=65_535);
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    assert_eq!(call.nat_port, 65_535);
}

#[packet_test(at_both_edges)]
fn the_only_port_is_reused_after_a_closed_flow(bench: &mut Bench) {
    let holder = holds_the_only_port(bench);
    closes(&holder, bench);
    takes_the_port_from(&holder, bench);
}

#[packet_test(at_both_edges)]
fn the_only_port_is_reused_after_a_reset_flow(bench: &mut Bench) {
    let holder = holds_the_only_port(bench);
    holder.requests(bench, WORKER1, &holder.request(RST));
    takes_the_port_from(&holder, bench);
}

/// Who closes first keeps TIME_WAIT (RFC 9293, section 3.6).
#[packet_test(at_both_edges)]
fn ports_in_time_wait_are_reused_last(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_002);
    let [closed_by_worker, reset, closed_by_client] =
        [40_000, 40_001, 40_002].map(|port| connected(bench, CLIENT, port));
    closes(&closed_by_client, bench);
    let worker_closes = closed_by_worker.reply(WORKER1, FIN | ACK);
    closed_by_worker.replies(bench, WORKER1, &worker_closes);
    closed_by_worker.requests(bench, WORKER1, &closed_by_worker.request(FIN | ACK));
    reset.requests(bench, WORKER1, &reset.request(RST));
    let next = [42_000, 42_001, 42_002].map(|port| connected(bench, OTHER_CLIENT, port));
    let [.., last] = next.map(|call| call.nat_port);
    assert_eq!(last, closed_by_worker.nat_port);
    is_refused(bench);
}

#[packet_test(at_both_edges)]
fn of_the_ports_in_time_wait_the_oldest_is_reused_first(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_199);
    let calls: Vec<_> = (40_000..40_200)
        .map(|port| connected(bench, CLIENT, port))
        .collect();
    // One in each word of ports.
    let closed = [180, 100, 30];
    for number in closed {
        let call = &calls[number];
        call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
        call.requests(bench, WORKER1, &call.request(FIN | ACK));
        bench.wait(A_WHILE);
    }
    for (port, number) in (42_000..).zip(closed) {
        let next = connected(bench, OTHER_CLIENT, port);
        assert_eq!(next.nat_port, calls[number].nat_port);
    }
    is_refused(bench);
}

#[packet_test(at_both_edges)]
fn each_address_for_nat_has_all_ports(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_000);
    bench.nat_sources(&[MANAGER, OTHER_SOURCE]);
    bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let mut second = bench.call(CLIENT, 40_001);
    second.source = OTHER_SOURCE;
    second.connects(bench, WORKER1);
    second.replies(bench, WORKER1, &second.reply(WORKER1, PSH | ACK));
    is_refused(bench);
    second.requests(bench, WORKER1, &second.request(RST));
    let mut third = bench.call(OTHER_CLIENT, 40_000);
    third.source = OTHER_SOURCE;
    third.connects(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn a_closed_tuple_gets_its_own_port_back_at_once(bench: &mut Bench) {
    let mut holder = holds_the_only_port(bench);
    closes(&holder, bench);
    holder.connects(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn the_port_of_an_idle_flow_is_reused_after_its_timeout(bench: &mut Bench) {
    let holder = holds_the_only_port(bench);
    bench.wait(ESTABLISHED_IDLE - A_WHILE);
    is_refused(bench);
    bench.wait(A_WHILE * 2);
    takes_the_port_from(&holder, bench);
}

#[packet_test(at_both_edges)]
fn the_port_of_a_flow_with_packets_in_one_direction_is_kept(bench: &mut Bench) {
    let holder = holds_the_only_port(bench);
    for client_speaks in [true, false] {
        for _ in 0..3 {
            bench.wait(ESTABLISHED_IDLE - A_WHILE);
            if client_speaks {
                holder.requests(bench, WORKER1, &holder.ack());
            } else {
                // By which way does not matter here: the client was silent for long.
                bench.runs_on(&holder.reply(WORKER1, ACK).frame());
            }
            is_refused(bench);
        }
    }
}

#[packet_test(at_both_edges)]
fn the_oldest_handshake_is_replaced_if_all_places_are_used(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_001);
    let mut calls = [40_000, 40_001, 40_002].map(|port| bench.call(CLIENT, port));
    for call in &mut calls {
        bench.wait(A_WHILE);
        call.begins(bench, WORKER1);
    }
    let [oldest, second, newest] = calls;
    assert_eq!(newest.nat_port, oldest.nat_port);
    bench.receives(&oldest.ack()).passes(Verdict::NoFlow);
    for call in [second, newest] {
        call.establishes(bench, WORKER1);
    }
    assert_eq!(bench.entries().len(), 4);
}

/// Else the worker would answer the next SYN from the same port with a bare ACK.
#[packet_test(at_both_edges)]
fn the_worker_of_an_evicted_handshake_is_reset(bench: &mut Bench) {
    const APART: Duration = Duration::from_millis(100);
    bench.settings(|settings| settings.half_open_buckets = 1);
    let ports = 40_000..40_000 + SLOTS_PER_BUCKET as u16;
    let mut calls: Vec<_> = ports.map(|port| bench.call(CLIENT, port)).collect();
    for call in &mut calls {
        call.begins(bench, WORKER1);
        bench.wait(APART);
    }
    let oldest = &calls[0];
    let mut next = bench.call(OTHER_CLIENT, 40_000);
    let syn = next.syn();
    let outcome = bench.receives(&syn);
    if outcome.edge == Edge::Xdp {
        return outcome.passes(Verdict::HandedOver);
    }
    outcome.is(Action::Redirect);
    outcome.is_counted_as(Verdict::HandshakeEvicted);
    let mut reset = oldest
        .request(RST)
        .numbers(CLIENT_START.wrapping_add(1), 0)
        .payload(syn.tcp_options);
    reset.from_mac = syn.from_mac;
    outcome.leaves_as(&oldest.at_worker(WORKER1, &reset));
    // The copy.
    next.begins(bench, WORKER1);
    assert_eq!(bench.handshakes().len(), SLOTS_PER_BUCKET as usize);
}

#[packet_test(at_both_edges)]
fn an_abandoned_handshake_is_unrelated_after_its_timeout(bench: &mut Bench) {
    for answered in [false, true] {
        let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
        if answered {
            call.is_answered(bench, WORKER1);
        }
        bench.wait(HALF_OPEN_IDLE + A_WHILE);
        bench.receives(&call.ack()).passes(Verdict::NoFlow);
        let late = call.syn_ack(WORKER1);
        bench.receives(&late).passes(Verdict::NotOurs);
    }
}

#[packet_test(at_both_edges)]
fn the_port_of_a_live_flow_is_never_reused(bench: &mut Bench) {
    let holder = holds_the_only_port(bench);
    for _ in 0..5 {
        bench.wait(ESTABLISHED_IDLE - A_WHILE);
        is_refused(bench);
        holder.requests(
            bench,
            WORKER1,
            &holder.request(PSH | ACK).payload(*b"still here"),
        );
        holder.replies(bench, WORKER1, &holder.reply(WORKER1, ACK));
    }
}

fn connected(bench: &Bench, client: Station, port: u16) -> Call {
    bench.call(client, port).connected(bench, WORKER1)
}

fn holds_the_only_port(bench: &mut Bench) -> Call {
    bench.nat_ports(5_000..=5_000);
    bench.call(CLIENT, 40_000).connected(bench, WORKER1)
}

#[track_caller]
fn is_refused(bench: &Bench) {
    let other = bench.call(OTHER_CLIENT, 41_000);
    bench.receives(&other.syn()).passes(Verdict::PortsExhausted);
}

#[track_caller]
fn takes_the_port_from(holder: &Call, bench: &Bench) {
    let other = bench.call(OTHER_CLIENT, 41_000).connected(bench, WORKER1);
    assert_eq!(other.nat_port, holder.nat_port);
    other.replies(bench, WORKER1, &other.reply(WORKER1, ACK));
    bench.receives(&holder.ack()).passes(Verdict::NoFlow);
    assert_eq!(bench.entries().len(), 2);
    assert_eq!(bench.handshakes().len(), 0);
}

fn closes(call: &Call, bench: &Bench) {
    call.requests(bench, WORKER1, &call.request(FIN | ACK));
    call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
    call.requests(bench, WORKER1, &call.ack());
}

#[packet_test(at_both_edges)]
fn a_connection_that_both_sides_end_at_once_is_subtracted_once(bench: &mut Bench) {
    const OTHERS: u64 = 100;
    // On one processor nothing is at once.
    let alone = thread::available_parallelism().unwrap().get() == 1;
    let rounds = if alone { 10 } else { 2_000 };
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.has_open(WORKER1.id, OTHERS + 1);
    let ends = [call.request(FIN | ACK), call.reply(WORKER1, FIN | ACK)].map(|it| it.frame());
    let beginning = [call.syn(), call.syn_ack(WORKER1), call.ack()].map(|it| it.frame());
    let (bench, turn) = (&*bench, &AtomicUsize::new(0));
    let mut wrong = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=rounds {
                wait_for(turn, 2 * round - 1);
                bench.runs_on(&ends[1]);
                turn.store(2 * round, Release);
            }
        });
        for round in 1..=rounds {
            beginning.iter().for_each(|it| bench.runs_on(it));
            turn.store(2 * round - 1, Release);
            bench.runs_on(&ends[0]);
            wait_for(turn, 2 * round);
            wrong += u32::from(bench.active(WORKER1.id) != OTHERS);
        }
    });
    assert_eq!(wrong, 0, "of {rounds}");
}

/// Waits without sleeping, so that two processors go on as one; only the wait for a processor is long.
pub fn wait_for(turn: &AtomicUsize, to_come: usize) {
    const LONG: usize = 1_000;
    for spins in 1.. {
        if turn.load(Acquire) >= to_come {
            return;
        }
        if spins % LONG == 0 {
            thread::yield_now();
        }
        hint::spin_loop();
    }
}
