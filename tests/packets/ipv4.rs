//! Features of IPv4 only: ARP, options, header length.

use lb_common::verdict::Verdict;

use crate::{
    call::Call,
    frame::{ACK, PSH, arp_request, at, with, with_ip_field},
    lan::{CLIENT, MANAGER},
    untouched::{Row, both},
};

/// Rows of packets that pass untouched.
pub fn rows(call: &Call) -> Vec<Row> {
    let mut rows = others(call);
    rows.extend(options(call));
    rows.extend(contradictions(call));
    rows
}

fn others(call: &Call) -> Vec<Row> {
    let arp = arp_request(CLIENT.mac, CLIENT.v4, MANAGER.v4);
    let icmp = |what, kind| both(what, call.syn().as_icmp(kind), Verdict::OtherProtocol);
    vec![
        (
            "an ARP request to all",
            arp.clone(),
            Verdict::NotForUs,
            Verdict::NotIp,
        ),
        both(
            "an ARP request to the manager alone",
            with(arp, at::DESTINATION_MAC, &MANAGER.mac),
            Verdict::NotIp,
        ),
        both(
            "IPv6 between IPv4-mapped addresses",
            call.syn().as_mapped(),
            Verdict::NotOurs,
        ),
        both("IGMP", call.syn().as_protocol(2), Verdict::OtherProtocol),
        icmp("the answer to a ping", 0),
        icmp("a redirect", 5),
        icmp("a router's advertisement", 9),
        icmp("a question for the time", 13),
    ]
}

fn options(call: &Call) -> Vec<Row> {
    let with_options = |bytes: usize| call.request(ACK).ip_options(&vec![1; bytes]);
    let options = |what, segment| both(what, &segment, Verdict::IpOptions);
    vec![
        options("one IPv4 option", with_options(4)),
        options("the most IPv4 options", with_options(40)),
        options("a datagram with an IPv4 option", with_options(4).in_udp()),
        both(
            "a fragment with options",
            with_ip_field(with_options(8).frame(), at::FRAGMENT, &[0x20, 0]),
            Verdict::IpOptions,
        ),
    ]
}

fn contradictions(call: &Call) -> Vec<Row> {
    let data = || call.request(PSH | ACK).payload([b'x'; 64]).frame();
    let first_byte = |value| with_ip_field(data(), at::VERSION_AND_LENGTH, &[value]);
    let total_length = |value: u16| with_ip_field(data(), at::TOTAL_LENGTH, &value.to_be_bytes());
    let malformed = |what, frame: Vec<u8>| both(what, frame, Verdict::Malformed);
    let truncated = |what, frame: Vec<u8>| both(what, frame, Verdict::Truncated);
    vec![
        malformed("an IPv4 header of 4 words", first_byte(0x44)),
        malformed(
            "an IPv4 header of no word",
            with(data(), at::VERSION_AND_LENGTH, &[0x40]),
        ),
        malformed("version 6 in an IPv4 frame", first_byte(0x65)),
        malformed("version 0", first_byte(0x05)),
        truncated(
            "one byte less than the packet claims",
            total_length(20 + 20 + 64 + 1),
        ),
        truncated("a claim of 65,535 bytes", total_length(65_535)),
        malformed("a claim of 39 bytes", total_length(39)),
        malformed("a claim of no bytes", total_length(0)),
    ]
}
