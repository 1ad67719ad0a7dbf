//! Features of IPv6 only: extension headers, neighbour discovery, payload length.

use lb_common::verdict::Verdict;
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge},
    call::Call,
    frame::{ACK, DESTINATION_OPTIONS, FRAGMENT, Family, HOP_BY_HOP, PSH, ROUTING, at, with},
    lan::{CLIENT, WORKER1},
    segment::Segment,
    untouched::{Row, both},
};

/// Extension headers that are passed over: kinds, and lengths in bytes.
const PASSED_OVER: [&[(u8, usize)]; 8] = [
    &[(HOP_BY_HOP, 8)],
    &[(DESTINATION_OPTIONS, 8)],
    &[(ROUTING, 24)],
    &[(DESTINATION_OPTIONS, 256)],
    &[(HOP_BY_HOP, 8), (DESTINATION_OPTIONS, 16)],
    &[(HOP_BY_HOP, 16), (ROUTING, 8), (DESTINATION_OPTIONS, 40)],
    &[
        (HOP_BY_HOP, 8),
        (DESTINATION_OPTIONS, 8),
        (ROUTING, 8),
        (DESTINATION_OPTIONS, 8),
    ],
    &[
        (HOP_BY_HOP, 64),
        (DESTINATION_OPTIONS, 64),
        (ROUTING, 64),
        (DESTINATION_OPTIONS, 64),
    ],
];

#[packet_test(over(Family::V6))]
fn extension_headers_are_skipped_and_kept(bench: &mut Bench) {
    for (port, extensions) in (40_000..).zip(PASSED_OVER) {
        for mut call in [bench.call(CLIENT, port), bench.datagrams(CLIENT, port)] {
            println!("{extensions:?}");
            // The ports are not where they usually are.
            call.connects(bench, WORKER1);
            let up = call.request(PSH | ACK).payload(*b"odd");
            call.requests(bench, WORKER1, &up.extensions(extensions));
            let down = call.reply(WORKER1, PSH | ACK).payload([b'd'; 1_000]);
            call.replies(bench, WORKER1, &down.extensions(extensions));
        }
    }
}

#[packet_test(over(Family::V6))]
fn a_connection_begins_behind_extension_headers_too(bench: &mut Bench) {
    for (port, extensions) in (40_000..).zip(PASSED_OVER) {
        let mut call = bench.call(CLIENT, port);
        let syn = call.syn().extensions(extensions);
        let outcome = bench.receives(&syn);
        let handshake = bench.handshake(call.request_key()).unwrap();
        call.nat_port = u16::from_be_bytes(handshake.translated.source_port);
        outcome.opens(WORKER1, &call.at_worker(WORKER1, &syn));
        call.replies(
            bench,
            WORKER1,
            &call.syn_ack(WORKER1).extensions(extensions),
        );
        call.requests(bench, WORKER1, &call.ack().extensions(extensions));
    }
    assert_eq!(bench.entries().len(), 2 * PASSED_OVER.len());
}

#[packet_test(over(Family::V6))]
fn every_truncation_of_extension_headers_passes_untouched(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let shortest = match bench.edge {
        Edge::Tc => at::EXTENSIONS,
        Edge::Xdp => at::IP,
    };
    for extensions in PASSED_OVER {
        let whole = call.ack().extensions(extensions).frame();
        for length in shortest..whole.len() {
            bench.receives(&whole[..length]).passes(Verdict::Truncated);
        }
    }
}

/// Rows of packets that pass untouched.
pub fn rows(call: &Call) -> Vec<Row> {
    let mut rows = neighbours(call);
    rows.extend(extensions(call));
    rows.extend(contradictions(call));
    rows
}

fn neighbours(call: &Call) -> Vec<Row> {
    let message = |what, kind| both(what, call.syn().as_icmp(kind), Verdict::OtherProtocol);
    let solicited_node = [0x33, 0x33, 0xff, 0, 0, 0x65];
    vec![
        (
            "a neighbour solicitation to all that it may concern",
            with(
                call.syn().as_icmp(135),
                at::DESTINATION_MAC,
                &solicited_node,
            ),
            Verdict::NotForUs,
            Verdict::OtherProtocol,
        ),
        message("a neighbour solicitation", 135),
        message("a neighbour advertisement", 136),
        message("a router solicitation", 133),
        message("a router advertisement", 134),
        message("a redirect", 137),
        message("a multicast listener query", 130),
        message("a multicast listener report", 143),
        message("the answer to a ping", 129),
        message("an error of no known type", 100),
    ]
}

fn extensions(call: &Call) -> Vec<Row> {
    let extended = |extensions: &[(u8, usize)]| call.ack().extensions(extensions);
    let refused = |what, segment: Segment| both(what, &segment, Verdict::ExtensionHeaders);
    let fragment = |what, frame: Vec<u8>| both(what, frame, Verdict::Fragment);
    let other = |what, kind| {
        let frame = with(call.ack().frame(), at::NEXT_HEADER, &[kind]);
        both(what, frame, Verdict::OtherProtocol)
    };
    let routed = extended(&[(ROUTING, 24)]).frame();
    vec![
        refused(
            "five extension headers",
            extended(&[(DESTINATION_OPTIONS, 8); 5]),
        ),
        refused(
            "an extension header of 264 bytes",
            extended(&[(DESTINATION_OPTIONS, 264)]),
        ),
        refused(
            "extension headers of 264 bytes together",
            extended(&[(HOP_BY_HOP, 136), (DESTINATION_OPTIONS, 128)]),
        ),
        refused(
            "the longest extension header",
            extended(&[(DESTINATION_OPTIONS, 2_048)]),
        ),
        both(
            "a packet still to be sent to other nodes",
            with(routed, at::EXTENSIONS + 3, &[1]),
            Verdict::ExtensionHeaders,
        ),
        fragment("a fragment that is whole", call.ack().as_fragment(0, false)),
        fragment(
            "a fragment behind another extension header",
            extended(&[(HOP_BY_HOP, 8), (FRAGMENT, 8)]).frame(),
        ),
        other("no next header", 59),
        other("mobility", 135),
        other("the host identity protocol", 139),
        other("shim6", 140),
    ]
}

fn contradictions(call: &Call) -> Vec<Row> {
    let data = || call.request(PSH | ACK).payload([b'x'; 64]).frame();
    let version = |value: u8| with(data(), at::VERSION, &[value << 4]);
    let payload = |value: u16| with(data(), at::PAYLOAD_LENGTH, &value.to_be_bytes());
    let malformed = |what, frame: Vec<u8>| both(what, frame, Verdict::Malformed);
    let truncated = |what, frame: Vec<u8>| both(what, frame, Verdict::Truncated);
    vec![
        malformed("version 4 in an IPv6 frame", version(4)),
        malformed("version 0", version(0)),
        malformed("version 15", version(15)),
        truncated("one byte less than the packet claims", payload(20 + 64 + 1)),
        truncated("a payload of 65,535 bytes", payload(65_535)),
        malformed("a payload of 19 bytes", payload(19)),
        malformed("a payload of no bytes", payload(0)),
        malformed(
            "IPv4 behind IPv6's type",
            with(data(), at::VERSION, &[0x45]),
        ),
    ]
}
