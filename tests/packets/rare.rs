//! Rare TCP packets, each with the requirements of the standards.

use lb_common::verdict::Verdict;
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, FrameContext},
    call::{CLIENT_START, Call, WORKER_START},
    frame::{ACK, CWR, ECE, FIN, Family, PSH, RST, SYN},
    lan::{self, CLIENT, ETH2, MANAGER, MANAGER_ETH2, ROUTER, SERVICE_PORT, Station, WORKER1},
    segment::Segment,
};

const TO_WORKER: bool = true;
const TO_CLIENT: bool = false;

/// A packet of a story, where it goes, and what it is.
type Case = (&'static str, bool, Segment);

#[track_caller]
fn all_pass(bench: &Bench, call: &Call, rows: Vec<Case>) {
    for (what, to_worker, segment) in rows {
        println!("{what}");
        if to_worker {
            call.requests(bench, WORKER1, &segment);
        } else {
            call.replies(bench, WORKER1, &segment);
        }
    }
}

#[packet_test(at_both_edges)]
fn data_in_the_syn_is_carried_and_its_answer_completes_the_handshake(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000);
    let early = *b"GET / HTTP/1.1\r\n\r\n";
    let cookie = [34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
    let syn = call.syn().tcp_options(&cookie).payload(early);
    call.begins_with(bench, WORKER1, &syn);
    let taken = CLIENT_START.wrapping_add(1 + early.len() as u32);
    let answered = WORKER_START.wrapping_add(1 + 4);
    all_pass(
        bench,
        &call,
        vec![
            (
                "RFC 7413, 4.2: the SYN-ACK takes the data, too",
                TO_CLIENT,
                call.syn_ack(WORKER1).numbers(WORKER_START, taken),
            ),
            (
                "RFC 7413, 4.2: the server answers before the handshake is complete",
                TO_CLIENT,
                call.reply(WORKER1, PSH | ACK)
                    .numbers(WORKER_START.wrapping_add(1), taken)
                    .payload(*b"page"),
            ),
            (
                "RFC 7413, 4.2: the client acknowledges both",
                TO_WORKER,
                call.request(ACK).numbers(taken, answered),
            ),
        ],
    );
    assert_eq!(bench.active(WORKER1.id), 1);
    assert!(bench.handshakes().is_empty());
}

#[packet_test(at_both_edges)]
fn both_sides_may_open_at_once_but_no_server_does(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    all_pass(
        bench,
        &call,
        vec![
            (
                "RFC 9293, 3.5, figure 7: the other side's SYN crosses the client's",
                TO_CLIENT,
                call.reply(WORKER1, SYN).numbers(WORKER_START, 0),
            ),
            (
                "RFC 9293, 3.5, figure 7: the client answers it",
                TO_WORKER,
                call.request(SYN | ACK)
                    .numbers(CLIENT_START, WORKER_START.wrapping_add(1)),
            ),
            (
                "RFC 9293, 3.5, figure 7: and so does the other side",
                TO_CLIENT,
                call.syn_ack(WORKER1),
            ),
            ("RFC 9293, 3.5: both are established", TO_WORKER, call.ack()),
        ],
    );
    assert_eq!(bench.active(WORKER1.id), 1);
}

#[packet_test(at_both_edges)]
fn ecn_is_negotiated_and_refused(bench: &mut Bench) {
    let refusal = bench.call(CLIENT, 40_000);
    for (port, answer) in [(40_000, SYN | ACK | ECE), (40_001, SYN | ACK)] {
        let mut call = bench.call(CLIENT, port);
        // RFC 3168, 6.1.1: an ECN-setup SYN has ECE and CWR.
        let syn = call.syn().flags(SYN | ECE | CWR);
        call.begins_with(bench, WORKER1, &syn);
        all_pass(
            bench,
            &call,
            vec![
                (
                    "RFC 3168, 6.1.1: the server agrees with ECE, or does not",
                    TO_CLIENT,
                    call.syn_ack(WORKER1).flags(answer),
                ),
                ("the handshake is one", TO_WORKER, call.ack()),
                (
                    "RFC 3168, 6.1.2: the sender has reduced its window",
                    TO_WORKER,
                    call.request(PSH | ACK | CWR).payload(*b"?"),
                ),
                (
                    "RFC 3168, 6.1.3: the receiver echoes congestion",
                    TO_CLIENT,
                    call.reply(WORKER1, ACK | ECE),
                ),
            ],
        );
    }
    // RFC 3168, 6.1.1.1: refused with RST, a client tries again without.
    let mut call = refusal;
    call.port = 40_002;
    let syn = call.syn().flags(SYN | ECE | CWR);
    call.nat_port = bench.receives(&syn).nat_port();
    call.replies(bench, WORKER1, &call.reply(WORKER1, RST | ACK));
    call.connects(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn retransmissions_and_probes_end_nothing(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let far = CLIENT_START.wrapping_add(1 << 28);
    all_pass(
        bench,
        &call,
        vec![
            (
                "RFC 9293, 3.8.4: a keep-alive has the number before the next",
                TO_WORKER,
                call.request(ACK)
                    .numbers(CLIENT_START, WORKER_START.wrapping_add(1)),
            ),
            (
                "RFC 9293, 3.8.4: and is acknowledged",
                TO_CLIENT,
                call.reply(WORKER1, ACK),
            ),
            (
                "RFC 9293, 3.8.4: a keep-alive of the worker's, with a byte of rubbish",
                TO_CLIENT,
                call.reply(WORKER1, ACK)
                    .numbers(WORKER_START, CLIENT_START.wrapping_add(1))
                    .payload([0]),
            ),
            (
                "RFC 5961, 4.2: a SYN within a connection, whatever its number",
                TO_WORKER,
                call.syn().numbers(far, 0),
            ),
            (
                "RFC 5961, 4.2: is answered with a challenge ACK",
                TO_CLIENT,
                call.reply(WORKER1, ACK),
            ),
            (
                "RFC 5961, 3.2: a RST far from the window, which its receiver drops",
                TO_WORKER,
                call.request(RST).numbers(far, 0),
            ),
            (
                "RFC 5961, 5.2: an ACK of what was never sent",
                TO_WORKER,
                call.request(ACK).numbers(CLIENT_START.wrapping_add(1), far),
            ),
            (
                "RFC 9293, 3.10.7.4: a SYN-ACK that comes twice",
                TO_CLIENT,
                call.syn_ack(WORKER1),
            ),
        ],
    );
    assert_eq!(bench.active(WORKER1.id), 1);
    // RFC 5961, 4.2: whose client has forgotten the connection resets it with the challenge's number.
    call.requests(bench, WORKER1, &call.request(RST));
    assert_eq!(bench.active(WORKER1.id), 0);
}

/// RFC 9293, section 3.4.3 and 3.10.7: a port used again, and what is late of the connection before.
#[packet_test(at_both_edges)]
fn late_duplicates_of_an_earlier_connection_end_nothing(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let (client, worker) = (1 << 30, 1 << 29);
    let first = [FIN | ACK, RST, PSH | ACK].map(|flags| call.request(flags));
    call.requests(bench, WORKER1, &first[0]);
    call.replies(bench, WORKER1, &call.reply(WORKER1, FIN | ACK));
    let syn = call.syn().numbers(client, 0);
    call.nat_port = bench.receives(&syn).nat_port();
    let other = [FIN | ACK, RST | ACK, ACK].map(|flags| call.reply(WORKER1, flags));
    let accepts = call.syn_ack(WORKER1);
    let late = |bench: &Bench| {
        first
            .iter()
            .for_each(|it| call.requests(bench, WORKER1, it));
        other.iter().for_each(|it| call.replies(bench, WORKER1, it));
        call.replies(bench, WORKER1, &accepts);
    };
    late(bench);
    let syn_ack = call.syn_ack(WORKER1).numbers(worker, client + 1);
    call.replies(bench, WORKER1, &syn_ack);
    late(bench);
    call.requests(
        bench,
        WORKER1,
        &call.request(ACK).numbers(client + 1, worker + 1),
    );
    assert_eq!(bench.active(WORKER1.id), 1);
    late(bench);
    assert_eq!(bench.active(WORKER1.id), 1);
    assert!(bench.entries().values().all(|flow| flow.ended == 0));
}

/// RFC 9293, section 3.9.2.3, RFC 1122, section 3.2.1.3, and RFC 6890: no host sends from there. RFC 4291, section
/// 2.5.5.2: an IPv4-mapped address stands for an IPv4 host.
#[packet_test(at_both_edges)]
fn a_syn_from_an_invalid_address_begins_no_flow(bench: &mut Bench) {
    let land = lan::service(bench.family);
    let sources = match bench.family {
        Family::V4 => vec![
            "0.0.0.0",
            "127.0.0.1",
            "127.9.9.9",
            "224.0.0.1",
            "255.255.255.255",
        ],
        Family::V6 => vec!["::", "::1", "ff02::1", "ff0e::1", "::ffff:192.168.56.10"],
    };
    let martians = sources.iter().map(|it| it.parse().unwrap());
    let call = bench.call(CLIENT, 40_000);
    for (source, port) in martians
        .map(|it| (it, 40_000))
        .chain([(land.ip(), SERVICE_PORT), (land.ip(), 40_000)])
    {
        let mut syn = call.syn();
        syn.source = (source, port).into();
        bench.receives(&syn).passes(Verdict::Malformed);
    }
    assert!(bench.handshakes().is_empty());
}

#[packet_test(in_both_modes)]
fn a_workers_packet_is_one_on_its_own_interface_only(bench: &mut Bench) {
    let mut call = bench.call(CLIENT, 40_000);
    let elsewhere = |segment: &Segment| {
        let segment = segment.clone().macs(WORKER1.station.mac, MANAGER_ETH2);
        let outcome = bench.meets(&segment, FrameContext::received_on(ETH2));
        outcome.passes(Verdict::WrongInterface);
    };
    call.begins(bench, WORKER1);
    elsewhere(&call.syn_ack(WORKER1));
    elsewhere(&call.reply(WORKER1, RST | ACK));
    call.establishes(bench, WORKER1);
    for flags in [ACK, FIN | ACK, RST | ACK] {
        elsewhere(&call.reply(WORKER1, flags));
    }
    assert_eq!(bench.active(WORKER1.id), 1);
    call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
}

#[packet_test(at_both_edges)]
fn a_forged_packet_redirects_no_answer(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let known = bench.known_neighbour(WORKER1.id);
    let far = CLIENT_START.wrapping_add(1 << 28);
    let mut forger = bench.call(
        Station {
            mac: ROUTER.mac,
            ..CLIENT
        },
        40_000,
    );
    forger.nat_port = call.nat_port;
    for flags in [ACK, RST, SYN, FIN | ACK] {
        let forged = forger.request(flags).numbers(far, 1 << 28);
        call.requests(bench, WORKER1, &forged);
        call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
    }
    // Nor does what goes to the worker.
    let forged = call
        .reply(WORKER1, ACK)
        .numbers(far, 1 << 28)
        .macs(ROUTER.mac, MANAGER.mac);
    call.replies(bench, WORKER1, &forged);
    assert_eq!(bench.known_neighbour(WORKER1.id), known);
    // The client itself, by another router.
    forger.requests(bench, WORKER1, &forger.ack());
    forger.replies(bench, WORKER1, &forger.reply(WORKER1, ACK));
}
