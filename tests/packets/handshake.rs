//! The beginning of connections.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Release},
    thread,
    time::Duration,
};

use lb_common::{
    maps::{direction, ended},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::Bench,
    call::{CLIENT_START, WORKER_START},
    closing::wait_for,
    frame::{ACK, CWR, ECE, FIN, Family, PSH, RST, SYN},
    lan::{
        self, CLIENT, ETH1, ETH2, FIRST_NAT_PORT, MANAGER, OTHER_CLIENT, ROUTER, Station, WORKER1,
        WORKER2,
    },
};

/// After so long a client repeats its SYN (RFC 6298).
const CLIENT_PATIENCE: Duration = Duration::from_secs(1);

#[packet_test(at_both_edges)]
fn a_syn_begins_a_half_open_flow_to_the_selected_worker(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    assert!((FIRST_NAT_PORT..32_768).contains(&call.nat_port));

    assert!(bench.entries().is_empty());
    let [handshake] = bench.handshakes()[..] else {
        panic!("{:?}", bench.handshakes());
    };
    assert_eq!(handshake.client, call.request_key());
    assert_eq!(handshake.translated.reversed(), call.reply_key(WORKER1));
    assert_eq!(handshake.backend, WORKER1.id);
    assert_eq!(handshake.client_interface, ETH1);
    assert_eq!(handshake.client_mac.bytes(), CLIENT.mac);
    assert_eq!(handshake.manager_mac.bytes(), MANAGER.mac);
    assert_eq!((handshake.ended, handshake.answered), (0, 0));
    assert!(handshake.bytes_in > 0);
    assert_eq!(handshake.bytes_out, 0);
}

/// Clients in 0.0.0.0/8 and 240.0.0.0/4 are served as the kernel's own servers serve them; from 0.0.0.0,
/// 127.0.0.0/8, a group or the broadcast address there is no client (RFC 1122, section 3.2.1.3).
#[packet_test(over(Family::V4))]
fn valid_host_addresses_are_clients(bench: &mut Bench) {
    for address in [[0, 77, 0, 10], [240, 77, 0, 10], [255, 255, 255, 254]] {
        let client = Station {
            v4: address.into(),
            ..CLIENT
        };
        bench.call(client, 40_000).connects(bench, WORKER1);
    }
    for address in [[0; 4], [127, 0, 0, 1], [239, 0, 0, 1], [255; 4]] {
        let spoofed = Station {
            v4: address.into(),
            ..CLIENT
        };
        let syn = bench.call(spoofed, 40_000).syn();
        bench.receives(&syn).passes(Verdict::Malformed);
    }
}

#[packet_test(in_both_modes)]
fn the_syn_ack_is_restored_to_the_clients_tuple(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);

    let request = bench.handshake(call.request_key()).unwrap();
    assert_eq!(
        (request.answered, request.worker_sequence),
        (1, WORKER_START)
    );
    assert!(bench.entries().is_empty());
}

#[packet_test(in_both_modes)]
fn the_clients_acknowledgement_establishes_the_flow(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);

    assert!(bench.handshakes().is_empty());
    let established = bench.entries();
    assert_eq!(established.len(), 2);
    let request = established[&call.request_key()];
    let reply = established[&call.reply_key(WORKER1)];
    assert_eq!(request.translated.reversed(), call.reply_key(WORKER1));
    assert_eq!(reply.translated.reversed(), call.request_key());
    assert!(request.bytes > reply.bytes);
    assert_eq!(
        (request.direction, reply.direction),
        (direction::REQUEST, direction::REPLY)
    );
    assert_eq!((request.counted, reply.counted), (1, 0));
}

#[packet_test(in_both_modes)]
fn data_flows_both_ways_at_every_length(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    for length in (0..40).chain([511, 512, 1_427, 1_428]) {
        let body: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
        let up = call.request(PSH | ACK).payload(body.clone());
        call.requests(bench, WORKER1, &up);
        let down = call.reply(WORKER1, PSH | ACK).payload(body);
        call.replies(bench, WORKER1, &down);
    }
}

#[packet_test(at_both_edges)]
fn tcp_options_of_every_length_are_kept(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    for words in 0..=10 {
        let options = vec![1; 4 * words];
        let up = call.request(ACK).tcp_options(&options).payload(*b"odd");
        call.requests(bench, WORKER1, &up);
        let down = call.reply(WORKER1, ACK).tcp_options(&options);
        call.replies(bench, WORKER1, &down);
    }
}

#[packet_test(at_both_edges)]
fn every_combination_of_flags_is_forwarded_on_an_established_flow(bench: &mut Bench) {
    for flags in 0..=u8::MAX {
        let mut call = bench.call(CLIENT, 40_000 + u16::from(flags));
        call.connects(bench, WORKER1);
        call.requests(bench, WORKER1, &call.request(flags));
        call.replies(bench, WORKER1, &call.reply(WORKER1, flags));
    }
}

#[packet_test(in_both_modes)]
fn a_handshake_with_ecn_is_accepted(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000);
    let syn = call.syn().flags(SYN | ECE | CWR);
    call.begins_with(bench, WORKER1, &syn);
    let syn_ack = call.syn_ack(WORKER1).flags(SYN | ACK | ECE);
    call.replies(bench, WORKER1, &syn_ack);
    call.requests(bench, WORKER1, &call.ack());
    assert!(bench.handshakes().is_empty());
}

#[packet_test(in_both_modes)]
fn a_wrong_acknowledgement_does_not_complete_the_handshake(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    // Before the SYN-ACK, any is wrong.
    call.requests(bench, WORKER1, &call.ack());
    assert!(bench.entries().is_empty());

    call.is_answered(bench, WORKER1);
    for acknowledgement in [
        CLIENT_START,
        WORKER_START,
        WORKER_START.wrapping_sub(1),
        WORKER_START.wrapping_add(1 + 65_536),
        WORKER_START.wrapping_add(1 << 31),
    ] {
        let guess = call.request(ACK).numbers(1, acknowledgement);
        call.requests(bench, WORKER1, &guess);
        assert!(bench.entries().is_empty());
    }
    call.requests(bench, WORKER1, &call.ack());
    assert_eq!(bench.entries().len(), 2);
}

#[packet_test(in_both_modes)]
fn what_follows_an_early_answer_completes_the_handshake(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    let beyond = WORKER_START.wrapping_add(1 + 65_535);
    let late = call.request(ACK).numbers(1, beyond);
    call.requests(bench, WORKER1, &late);
    assert_eq!(bench.entries().len(), 2);
}

#[packet_test(in_both_modes)]
fn a_first_segment_with_data_or_fin_completes_the_handshake(bench: &mut Bench) {
    for (port, flags) in [(40_000, PSH | ACK), (40_001, FIN | ACK)] {
        let call = bench.call(CLIENT, port).begun(bench, WORKER1);
        call.is_answered(bench, WORKER1);
        let first = call.request(flags).payload(*b"GET / HTTP/1.1\r\n\r\n");
        call.requests(bench, WORKER1, &first);
        let flow = bench.entry(call.request_key()).unwrap();
        assert_eq!(flow.ended, if flags & FIN == 0 { 0 } else { ended::FIN });
    }
}

#[packet_test(at_both_edges)]
fn a_repeated_syn_keeps_port_and_worker(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    for _ in 0..3 {
        call.requests(bench, WORKER1, &call.syn());
    }
    assert_eq!(bench.handshakes().len(), 1);
    call.is_answered(bench, WORKER1);
    // The SYN-ACK was lost on the way.
    call.requests(bench, WORKER1, &call.syn());
    call.establishes(bench, WORKER1);
    assert_eq!(bench.connections(WORKER1.id), 1);
}

#[packet_test(at_both_edges)]
fn another_syn_from_the_same_port_is_a_new_connection(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    bench.select(WORKER2.id);
    let other = call.syn().numbers(CLIENT_START.wrapping_add(1 << 20), 0);
    call.begins_with(bench, WORKER2, &other);
    assert_eq!(bench.handshakes().len(), 1);
}

#[packet_test(in_both_modes)]
fn a_repeated_unanswered_syn_goes_to_the_next_worker(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    bench.wait(CLIENT_PATIENCE);
    call.begins(bench, WORKER2);
    // Too late.
    bench
        .receives(&call.syn_ack(WORKER1))
        .passes(Verdict::NotOurs);
    bench.wait(CLIENT_PATIENCE);
    call.begins(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    bench.wait(CLIENT_PATIENCE);
    call.requests(bench, WORKER1, &call.syn());
    call.requests(bench, WORKER1, &call.ack());
}

#[packet_test(in_both_modes)]
fn a_repeated_syn_stays_where_no_other_worker_is_up(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    bench.goes_down(WORKER2.id);
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    bench.wait(CLIENT_PATIENCE);
    call.requests(bench, WORKER1, &call.syn());
    bench.select(0);
    call.requests(bench, WORKER1, &call.syn());
}

#[packet_test(at_both_edges)]
fn a_syn_with_data_is_forwarded(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000);
    let syn = call.syn().payload(*b"early");
    call.begins_with(bench, WORKER1, &syn);
}

#[packet_test(in_both_modes)]
fn a_refused_connection_reaches_the_client_and_can_be_tried_again(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.replies(bench, WORKER1, &call.reply(WORKER1, RST | ACK));
    call.begins(bench, WORKER1);
    call.establishes(bench, WORKER1);
    assert_eq!(bench.connections(WORKER1.id), 2);
}

#[packet_test(in_both_modes)]
fn a_client_that_gives_up_can_begin_again(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    call.requests(bench, WORKER1, &call.request(RST));
    call.begins(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn clients_with_one_port_get_flows_of_their_own(bench: &mut Bench) {
    let calls =
        [CLIENT, OTHER_CLIENT].map(|client| bench.call(client, 40_000).connected(bench, WORKER1));
    assert_ne!(calls[0].nat_port, calls[1].nat_port);
    for call in calls {
        call.replies(bench, WORKER1, &call.reply(WORKER1, ACK).payload(*b"yours"));
    }
}

#[packet_test(at_both_edges)]
fn packets_of_no_flow_other_than_syns_pass_to_the_kernel(bench: &mut Bench) {
    for flags in [
        0,
        ACK,
        PSH | ACK,
        FIN,
        FIN | ACK,
        RST,
        RST | ACK,
        SYN | ACK,
        SYN | FIN,
        SYN | RST,
        0xff,
    ] {
        let stray = bench.call(CLIENT, 40_000);
        bench
            .receives(&stray.request(flags))
            .passes(Verdict::NoFlow);
    }
    assert!(bench.handshakes().is_empty());
    assert!(bench.entries().is_empty());
}

#[packet_test(at_both_edges)]
fn late_fins_and_rsts_of_an_earlier_connection_end_nothing(bench: &mut Bench) {
    bench.nat_ports(5_000..=5_000);
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    for last in [FIN | ACK, RST | ACK] {
        let last = call.reply(WORKER1, last);
        call.replies(bench, WORKER1, &last);
        call.requests(bench, WORKER1, &call.request(FIN | ACK));
        // The next one, with a sequence number far beyond.
        let start = 1_000_000_000;
        let syn = call.syn().numbers(start, 0);
        assert_eq!(bench.receives(&syn).nat_port(), call.nat_port);
        call.replies(bench, WORKER1, &last);
        // A late SYN-ACK of the one before answers this one as little.
        call.is_answered(bench, WORKER1);
        call.requests(
            bench,
            WORKER1,
            &call
                .request(ACK)
                .numbers(start + 1, WORKER_START.wrapping_add(1)),
        );
        assert!(bench.handshake(call.request_key()).is_some());
        call.replies(
            bench,
            WORKER1,
            &call.syn_ack(WORKER1).numbers(WORKER_START, start + 1),
        );
        let next = |flags| {
            call.request(flags)
                .numbers(start + 1, WORKER_START.wrapping_add(1))
        };
        call.requests(bench, WORKER1, &next(ACK));
        // Closed by the client only.
        call.requests(bench, WORKER1, &next(FIN | ACK));
        assert_eq!(bench.active(WORKER1.id), 1);
    }
}

/// What the client sends after its handshake may meet two processors at once (RPS, several queues).
#[packet_test(at_both_edges)]
fn two_processors_that_finish_one_handshake_make_one_connection(bench: &mut Bench) {
    const OTHERS: u64 = 100;
    // On one processor nothing is at once.
    let alone = thread::available_parallelism().unwrap().get() == 1;
    let rounds = if alone { 10 } else { 1_000 };
    let mut call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.has_open(WORKER1.id, OTHERS + 1);
    let end = call.request(RST).frame();
    let data = call.request(PSH | ACK).payload(*b"GET /");
    let [first, second] = [call.ack(), data].map(|it| it.frame());
    let (bench, turn) = (&*bench, &AtomicUsize::new(0));
    let mut wrong = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=rounds {
                wait_for(turn, 2 * round - 1);
                bench.runs_on(&second);
                turn.store(2 * round, Release);
            }
        });
        for round in 1..=rounds {
            bench.runs_on(&end);
            call.begins(bench, WORKER1);
            bench.runs_on(&call.syn_ack(WORKER1).frame());
            turn.store(2 * round - 1, Release);
            bench.runs_on(&first);
            wait_for(turn, 2 * round);
            wrong += u32::from(bench.active(WORKER1.id) != OTHERS + 1);
        }
    });
    assert_eq!(wrong, 0, "of {rounds}");
    for refusal in [
        Verdict::TableFull,
        Verdict::NoFlow,
        Verdict::BackendDown,
        Verdict::NotOurs,
    ] {
        assert_eq!(bench.counted(refusal), 0, "{}", refusal.name());
    }
}

#[packet_test(in_both_modes)]
fn answers_follow_a_client_whose_link_address_changes(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    let station = Station {
        mac: ROUTER.mac,
        ..CLIENT
    };
    let mut moved = bench.call(station, 40_000);
    moved.nat_port = call.nat_port;
    moved.requests(bench, WORKER1, &moved.syn());
    moved.replies(bench, WORKER1, &moved.syn_ack(WORKER1));
}

/// A SYN, or a new datagram, whose sender cannot be there.
#[packet_test(at_both_edges)]
fn spoofed_local_senders_begin_no_flow(bench: &mut Bench) {
    bench.is_at_home(MANAGER, 0);
    bench.is_at_home(WORKER1.station, ETH1);
    bench.is_at_home(WORKER2.station, ETH2);
    let own = Station {
        mac: CLIENT.mac,
        ..MANAGER
    };
    for call in [bench.call(own, 40_000), bench.datagrams(own, 40_000)] {
        let mut syn = call.syn();
        syn.destination = lan::service(bench.family);
        bench.receives(&syn).passes(Verdict::Malformed);
    }
    for call in [
        bench.call(WORKER2.station, 40_000),
        bench.datagrams(WORKER2.station, 40_000),
    ] {
        bench.receives(&call.syn()).passes(Verdict::Malformed);
    }
    for mac in [
        [0; 6],
        [0xff; 6],
        [1, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
    ] {
        for call in [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)] {
            let syn = call.syn().macs(mac, MANAGER.mac);
            bench.receives(&syn).is_dropped(Verdict::Malformed);
        }
    }
    assert!(bench.handshakes().is_empty());

    // From where it is, a worker is a client like any other.
    bench.call(WORKER1.station, 40_000).begun(bench, WORKER1);
    let last = bench.call(WORKER1.station, 40_001).syn().time_to_live(1);
    bench.receives(&last).is_dropped(Verdict::TimeToLive);
}

#[packet_test(at_both_edges)]
fn answers_do_not_follow_a_client_to_a_group_address(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let stray = call.ack().macs([0xff; 6], MANAGER.mac);
    bench.receives(&stray).was_sent_to(WORKER1, 0);
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
}
