//! Packets that pass unchanged, and their verdicts, for both families.

use std::net::SocketAddr;

use lb_common::verdict::Verdict;
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge},
    call::Call,
    frame::{ACK, CUSTOMER_TAG, Family, PSH, SERVICE_TAG, at, tagged, with},
    ipv4, ipv6,
    lan::{CLIENT, ETH1, MANAGER, OTHER_CLIENT, SERVICE_PORT, WORKER1},
    outcome::Action,
    segment::Segment,
};

/// A frame, what it is, and its verdicts by TC and by XDP.
pub type Row = (&'static str, Vec<u8>, Verdict, Verdict);

/// A row whose verdict both edges agree on.
pub fn both(what: &'static str, frame: impl Into<Vec<u8>>, verdict: Verdict) -> Row {
    (what, frame.into(), verdict, verdict)
}

#[packet_test(at_both_edges)]
fn every_other_packet_passes_untouched_under_its_own_verdict(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let datagrams = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    let flows = bench.keys();
    for (what, frame, tc, xdp) in rows(&call, &datagrams) {
        println!("{what}");
        let verdict = match bench.edge {
            Edge::Tc => tc,
            Edge::Xdp => xdp,
        };
        bench.receives(frame).passes(verdict);
    }
    assert_eq!(bench.keys(), flows);
    assert!(bench.handshakes().is_empty());
}

pub fn rows(call: &Call, datagrams: &Call) -> Vec<Row> {
    let mut rows = other_protocols(call);
    rows.extend(other_endpoints(call));
    rows.extend(other_datagrams(datagrams));
    rows.extend(other_stations(call));
    rows.extend(fragments(call));
    rows.extend(contradictions(call));
    rows.extend(contradicting_datagrams(datagrams));
    rows.extend(match call.family {
        Family::V4 => ipv4::rows(call),
        Family::V6 => ipv6::rows(call),
    });
    rows
}

fn other_protocols(call: &Call) -> Vec<Row> {
    let syn = call.syn();
    let lldp = [1, 0x80, 0xc2, 0, 0, 14];
    let other = |what, protocol| both(what, syn.as_protocol(protocol), Verdict::OtherProtocol);
    let vlan = |what, kind, id| {
        let frame = tagged(syn.frame(), kind, id);
        (what, frame, Verdict::NotIp, Verdict::HandedOver)
    };
    let long = call.request(0).payload([7; 1_000]);
    vec![
        (
            "LLDP",
            with(
                with(syn.frame(), at::DESTINATION_MAC, &lldp),
                at::ETHER_TYPE,
                &[0x88, 0xcc],
            ),
            Verdict::NotForUs,
            Verdict::NotIp,
        ),
        (
            "spanning tree, with a length for a type",
            with(
                with(syn.frame(), at::DESTINATION_MAC, &lldp),
                at::ETHER_TYPE,
                &[0, 38],
            ),
            Verdict::NotForUs,
            Verdict::NotIp,
        ),
        // A test run leaves tags in the frame, where TC never meets them.
        vlan("a tag of VLAN 5", CUSTOMER_TAG, 5),
        vlan("a tag of priority only", CUSTOMER_TAG, 0xe000),
        vlan("a service provider's tag", SERVICE_TAG, 5),
        (
            "two tags",
            tagged(syn.as_vlan(7), SERVICE_TAG, 5),
            Verdict::NotIp,
            Verdict::HandedOver,
        ),
        both(
            "MPLS",
            with(syn.frame(), at::ETHER_TYPE, &[0x88, 0x47]),
            Verdict::NotIp,
        ),
        both(
            "PPPoE",
            with(syn.frame(), at::ETHER_TYPE, &[0x88, 0x64]),
            Verdict::NotIp,
        ),
        both(
            "a ping without a body",
            syn.as_ping(),
            Verdict::OtherProtocol,
        ),
        both("a long ping", long.as_ping(), Verdict::OtherProtocol),
        other("IPv4 in IP", 4),
        other("IPv6 in IP", 41),
        other("GRE", 47),
        other("ESP", 50),
        other("AH", 51),
        other("OSPF", 89),
        other("SCTP", 132),
        other("UDP-Lite", 136),
        other("an experimental protocol", 253),
    ]
}

fn other_endpoints(call: &Call) -> Vec<Row> {
    let own = MANAGER.at(call.family, 50_000);
    let elsewhere = OTHER_CLIENT.at(call.family, SERVICE_PORT);
    let from_worker = call.reply(WORKER1, ACK);
    let mut from_other_port = from_worker.clone();
    from_other_port.source.set_port(8_089);
    let mut from_other_worker = from_worker.clone();
    from_other_worker
        .source
        .set_ip(OTHER_CLIENT.address(call.family));
    let mut reversed = call.request(ACK);
    (reversed.source, reversed.destination) = (call.service(), call.client_address());
    let mut unheard = call.request(PSH | ACK).payload(*b"?");
    unheard.source.set_port(39_999);
    let not_ours = |what, segment: Segment| both(what, &segment, Verdict::NotOurs);
    vec![
        not_ours(
            "a SYN to another port",
            call.syn().to(MANAGER.at(call.family, 81)),
        ),
        not_ours("a SYN to port 0", call.syn().to(MANAGER.at(call.family, 0))),
        not_ours(
            "a SYN to the service's port elsewhere",
            call.syn().to(elsewhere),
        ),
        not_ours(
            "data to the manager's own server",
            call.ack().to(MANAGER.at(call.family, 8_080)),
        ),
        not_ours(
            "a worker's answer to the manager's own connection",
            from_worker.to(own),
        ),
        not_ours(
            "a flow's port, from another port of the worker",
            from_other_port,
        ),
        not_ours("a flow's port, from another machine", from_other_worker),
        not_ours("a flow's packet with its ends exchanged", reversed),
        both(
            "data of a connection that never began",
            &unheard,
            Verdict::NoFlow,
        ),
    ]
}

fn other_datagrams(datagrams: &Call) -> Vec<Row> {
    let not_ours = |what, segment: Segment| both(what, &segment, Verdict::NotOurs);
    let of_tcp_flow = SocketAddr::new(datagrams.nat_address().ip(), 50_000);
    let mut from_other_port = datagrams.reply(WORKER1, 0);
    from_other_port.source.set_port(8_089);
    vec![
        not_ours(
            "a datagram to another port",
            datagrams.syn().to(MANAGER.at(datagrams.family, 53)),
        ),
        not_ours(
            "a datagram to the service's port elsewhere",
            datagrams
                .syn()
                .to(OTHER_CLIENT.at(datagrams.family, SERVICE_PORT)),
        ),
        not_ours(
            "a worker's datagram to the manager itself",
            datagrams.reply(WORKER1, 0).to(of_tcp_flow),
        ),
        not_ours("an answer from another port of the worker", from_other_port),
    ]
}

fn other_stations(call: &Call) -> Vec<Row> {
    [
        ("a broadcast frame of the flow", [0xff; 6]),
        ("a multicast frame of the flow", [1, 0, 0x5e, 0, 0, 1]),
        (
            "a frame of the flow to IPv6's multicast",
            [0x33, 0x33, 0, 0, 0, 1],
        ),
    ]
    .into_iter()
    .map(|(what, mac)| {
        let frame = with(call.ack().frame(), at::DESTINATION_MAC, &mac);
        both(what, frame, Verdict::NotForUs)
    })
    .collect()
}

fn fragments(call: &Call) -> Vec<Row> {
    let data = call.request(PSH | ACK).payload([b'x'; 64]);
    let fragment = |what, frame: Vec<u8>| both(what, frame, Verdict::Fragment);
    vec![
        fragment("a first fragment", data.as_fragment(0, true)),
        fragment("a fragment in the middle", data.as_fragment(1_480, true)),
        fragment("a last fragment", data.as_fragment(1_480, false)),
        fragment("a first fragment of a SYN", call.syn().as_fragment(0, true)),
        fragment(
            "a first fragment of a datagram",
            data.clone().in_udp().as_fragment(0, true),
        ),
        fragment(
            "a last fragment of a datagram",
            data.in_udp().as_fragment(1_480, false),
        ),
    ]
}

fn contradictions(call: &Call) -> Vec<Row> {
    let data = || call.request(PSH | ACK).payload([b'x'; 64]).frame();
    let data_offset = call.family.transport() + 12;
    let header = |words: u8| with(data(), data_offset, &[words << 4]);
    vec![
        both("a TCP header of 4 words", header(4), Verdict::Malformed),
        both("a TCP header of no word", header(0), Verdict::Malformed),
        both(
            "a TCP header longer than the packet",
            with(call.ack().frame(), data_offset, &[6 << 4]),
            Verdict::Malformed,
        ),
    ]
}

fn contradicting_datagrams(datagrams: &Call) -> Vec<Row> {
    let whole = datagrams.request(0).payload([b'x'; 64]);
    let length = |bytes: u16| {
        let at = datagrams.family.transport() + 4;
        with(whole.frame(), at, &bytes.to_be_bytes())
    };
    vec![
        both("a datagram of no byte", length(0), Verdict::Malformed),
        both("a datagram of 7 bytes", length(7), Verdict::Malformed),
        both(
            "a datagram longer than its packet",
            length(8 + 64 + 1),
            Verdict::Malformed,
        ),
        both(
            "a datagram of 65,535 bytes",
            length(65_535),
            Verdict::Malformed,
        ),
    ]
}

/// XDP leaves it to the TC program.
#[packet_test(at_both_edges)]
fn a_frame_to_another_station_is_not_for_us(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.own_link(ETH1, Some(MANAGER.mac));
    let verdict = match bench.edge {
        Edge::Tc => Verdict::NotForUs,
        Edge::Xdp => Verdict::HandedOver,
    };
    for segment in [
        call.syn(),
        call.ack(),
        call.reply(WORKER1, ACK),
        call.syn().in_udp(),
    ] {
        let frame = with(segment.frame(), at::DESTINATION_MAC, &OTHER_CLIENT.mac);
        bench.receives(frame).passes(verdict);
    }
    call.requests(bench, WORKER1, &call.ack());
}

#[packet_test(at_both_edges)]
fn every_truncation_passes_untouched_and_is_counted_once(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let datagrams = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    for segment in [
        call.syn(),
        call.request(PSH | ACK).payload(*b"GET / HTTP/1.1\r\n\r\n"),
        call.reply(WORKER1, ACK).payload([b'x'; 33]),
        datagrams.syn().payload(*b"?"),
        datagrams.reply(WORKER1, 0).payload([b'x'; 33]),
    ] {
        let whole = segment.frame();
        for length in shortest(bench.edge, call.family)..whole.len() {
            bench.receives(&whole[..length]).passes(Verdict::Truncated);
        }
        assert_ne!(bench.receives(whole).action, Action::Pass);
    }
}

#[packet_test(at_both_edges)]
fn every_truncation_of_other_packets_passes_untouched_and_is_counted_once(bench: &mut Bench) {
    let syn = bench.call(CLIENT, 40_000).syn();
    let elsewhere = syn.clone().to(MANAGER.at(bench.family, 53)).in_udp();
    for (whole, verdict) in [
        (elsewhere.frame(), Verdict::NotOurs),
        (syn.as_ping(), Verdict::OtherProtocol),
    ] {
        for length in shortest(bench.edge, bench.family)..whole.len() {
            bench.receives(&whole[..length]).passes(Verdict::Truncated);
        }
        bench.receives(whole).passes(verdict);
    }
}

/// The shortest frame that a test run takes: for TC, newer kernels want the whole IP header.
pub fn shortest(edge: Edge, family: Family) -> usize {
    match edge {
        Edge::Tc => family.transport(),
        Edge::Xdp => at::IP,
    }
}
