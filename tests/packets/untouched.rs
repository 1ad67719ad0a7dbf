//! What passes untouched, and under which name.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::verdict::Verdict;

use crate::{
    bench::{Circumstances, Edge, at_both_edges, at_edge},
    call::Call,
    frame::{ACK, PSH, Segment, arp_request, at, ethernet, with, with_ip_field},
    lan::{CLIENT, ETH1, MANAGER, OTHER_CLIENT, SERVICE, WORKER1},
    outcome::{Action, Counted},
};

/// A frame, what it is, and its verdicts by TC and by XDP.
type Row = (&'static str, Vec<u8>, Verdict, Verdict);

#[test]
fn every_other_packet_passes_untouched_under_its_own_verdict() {
    at_both_edges(|bench| {
        let mut call = bench.call(CLIENT, 40_000);
        call.connects(bench, WORKER1);
        let flows = bench.entries();
        for (what, frame, tc, xdp) in rows(&call) {
            println!("{what}");
            let verdict = match bench.edge {
                Edge::Tc => tc,
                Edge::Xdp => xdp,
            };
            bench.receives(frame).passes(verdict);
        }
        assert_eq!(bench.entries(), flows);
        assert!(bench.handshakes().is_empty());
    });
}

fn rows(call: &Call) -> Vec<Row> {
    let mut rows = other_protocols(call);
    rows.extend(other_endpoints(call));
    rows.extend(other_stations(call));
    rows.extend(fragments_and_options(call));
    rows.extend(contradictions(call));
    rows
}

fn other_protocols(call: &Call) -> Vec<Row> {
    let syn = call.syn();
    let both = |what, frame, verdict| (what, frame, verdict, verdict);
    let arp = arp_request(CLIENT.mac, CLIENT.address, MANAGER.address);
    let lldp = ethernet([1, 0x80, 0xc2, 0, 0, 14], CLIENT.mac, 0x88cc, &[0; 46]);
    let spanning_tree = ethernet([1, 0x80, 0xc2, 0, 0, 0], CLIENT.mac, 38, &[0x42; 46]);
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
        ("LLDP", lldp, Verdict::NotForUs, Verdict::NotIp),
        (
            "spanning tree, with a length for a type",
            spanning_tree,
            Verdict::NotForUs,
            Verdict::NotIp,
        ),
        both(
            "IPv6 between IPv4-mapped addresses",
            syn.as_ipv6(),
            Verdict::NotOurs,
        ),
        (
            "a tag of VLAN 5",
            syn.as_vlan(5),
            Verdict::NotIp,
            Verdict::HandedOver,
        ),
        (
            "a tag of priority only",
            syn.as_vlan(0),
            Verdict::NotIp,
            Verdict::HandedOver,
        ),
        both(
            "MPLS",
            with(syn.frame(), at::ETHER_TYPE, &[0x88, 0x47]),
            Verdict::NotIp,
        ),
        both("UDP to the service's port", syn.as_udp(), Verdict::NotOurs),
        both(
            "UDP with a body",
            call.request(0).payload([7; 100]).as_udp(),
            Verdict::NotOurs,
        ),
        both(
            "a ping without a body",
            syn.as_icmp_echo(),
            Verdict::OtherProtocol,
        ),
        both(
            "a ping",
            call.request(0).payload([7; 56]).as_icmp_echo(),
            Verdict::OtherProtocol,
        ),
        both(
            "SCTP",
            with_ip_field(syn.frame(), at::PROTOCOL, &[132]),
            Verdict::OtherProtocol,
        ),
        both(
            "IP in IP",
            with_ip_field(syn.frame(), at::PROTOCOL, &[4]),
            Verdict::OtherProtocol,
        ),
    ]
}

fn other_endpoints(call: &Call) -> Vec<Row> {
    let both = |what, segment: Segment, verdict| (what, segment.frame(), verdict, verdict);
    let own = SocketAddrV4::new(MANAGER.address, 50_000);
    let elsewhere = SocketAddrV4::new(Ipv4Addr::new(192, 168, 56, 200), 80);
    let from_worker = call.reply(WORKER1, ACK);
    let mut from_other_port = from_worker.clone();
    from_other_port.source.set_port(8_089);
    let mut from_other_worker = from_worker.clone();
    from_other_worker.source.set_ip(OTHER_CLIENT.address);
    vec![
        both(
            "a SYN to another port",
            call.syn().to(SocketAddrV4::new(MANAGER.address, 81)),
            Verdict::NotOurs,
        ),
        both(
            "a SYN to the service's port elsewhere",
            call.syn().to(elsewhere),
            Verdict::NotOurs,
        ),
        both(
            "data to the manager's own server",
            call.ack().to(SocketAddrV4::new(MANAGER.address, 8_080)),
            Verdict::NotOurs,
        ),
        both(
            "a worker's answer to the manager's own connection",
            from_worker.to(own),
            Verdict::NotOurs,
        ),
        both(
            "a flow's port, from another port of the worker",
            from_other_port,
            Verdict::NotOurs,
        ),
        both(
            "a flow's port, from another machine",
            from_other_worker,
            Verdict::NotOurs,
        ),
        both(
            "a flow's packet with its ends exchanged",
            {
                let mut reversed = call.request(ACK);
                (reversed.source, reversed.destination) = (SERVICE, call.client_address());
                reversed
            },
            Verdict::NotOurs,
        ),
        both(
            "data of a connection that never began",
            {
                let mut other = call.request(PSH | ACK).payload(*b"?");
                other.source.set_port(39_999);
                other
            },
            Verdict::NoFlow,
        ),
    ]
}

fn other_stations(call: &Call) -> Vec<Row> {
    [
        ("a broadcast frame of the flow", [0xff; 6]),
        ("a multicast frame of the flow", [1, 0, 0x5e, 0, 0, 1]),
    ]
    .into_iter()
    .map(|(what, mac)| {
        let frame = with(call.ack().frame(), at::DESTINATION_MAC, &mac);
        (what, frame, Verdict::NotForUs, Verdict::NotForUs)
    })
    .collect()
}

fn fragments_and_options(call: &Call) -> Vec<Row> {
    let both = |what, frame, verdict| (what, frame, verdict, verdict);
    let data = call.request(PSH | ACK).payload([b'x'; 64]);
    let with_options = |bytes: usize| {
        let options = vec![1; bytes];
        call.request(ACK).ip_options(&options).frame()
    };
    vec![
        both(
            "a first fragment",
            data.as_fragment(0, true),
            Verdict::Fragment,
        ),
        both(
            "a fragment in the middle",
            data.as_fragment(1_480, true),
            Verdict::Fragment,
        ),
        both(
            "a last fragment",
            data.as_fragment(1_480, false),
            Verdict::Fragment,
        ),
        both(
            "a first fragment of a SYN",
            call.syn().as_fragment(0, true),
            Verdict::Fragment,
        ),
        both("one IPv4 option", with_options(4), Verdict::IpOptions),
        both(
            "the most IPv4 options",
            with_options(40),
            Verdict::IpOptions,
        ),
    ]
}

fn contradictions(call: &Call) -> Vec<Row> {
    let both = |what, frame, verdict| (what, frame, verdict, verdict);
    let data = || call.request(PSH | ACK).payload([b'x'; 64]).frame();
    let first_byte = |value| with_ip_field(data(), at::VERSION_AND_LENGTH, &[value]);
    let total_length = |value: u16| with_ip_field(data(), at::TOTAL_LENGTH, &value.to_be_bytes());
    let data_offset = |words: u8| with(data(), at::DATA_OFFSET, &[words << 4]);
    vec![
        both(
            "an IPv4 header of 4 words",
            first_byte(0x44),
            Verdict::Malformed,
        ),
        both(
            "an IPv4 header of no word",
            with(data(), at::VERSION_AND_LENGTH, &[0x40]),
            Verdict::Malformed,
        ),
        both(
            "version 6 in an IPv4 frame",
            first_byte(0x65),
            Verdict::Malformed,
        ),
        both("version 0", first_byte(0x05), Verdict::Malformed),
        both(
            "one byte less than the packet claims",
            total_length(20 + 20 + 64 + 1),
            Verdict::Truncated,
        ),
        both(
            "a claim of 65,535 bytes",
            total_length(65_535),
            Verdict::Truncated,
        ),
        both("a claim of 39 bytes", total_length(39), Verdict::Malformed),
        both("a claim of no bytes", total_length(0), Verdict::Malformed),
        both(
            "a TCP header of 4 words",
            data_offset(4),
            Verdict::Malformed,
        ),
        both(
            "a TCP header of no word",
            data_offset(0),
            Verdict::Malformed,
        ),
        both(
            "a TCP header longer than the packet",
            with(call.ack().frame(), at::DATA_OFFSET, &[6 << 4]),
            Verdict::Malformed,
        ),
    ]
}

#[test]
fn a_frame_to_another_station_is_not_for_us() {
    at_edge(Edge::Tc, |bench| {
        let mut call = bench.call(CLIENT, 40_000);
        call.connects(bench, WORKER1);
        for segment in [call.syn(), call.ack(), call.reply(WORKER1, ACK)] {
            let frame = with(segment.frame(), at::DESTINATION_MAC, &OTHER_CLIENT.mac);
            bench.receives(frame).passes(Verdict::NotForUs);
        }
    });
}

#[test]
fn a_frame_that_ethernet_has_padded_is_steered() {
    at_both_edges(|bench| {
        let mut call = bench.call(CLIENT, 40_000);
        call.connects(bench, WORKER1);
        let padding = [0xee; 6];
        let padded = [&call.ack().frame()[..], &padding].concat();
        let outcome = bench.receives(padded);
        outcome.was_sent_to(WORKER1, 0);
        let expected = call.at_worker(WORKER1, &call.ack()).frame();
        assert_eq!(outcome.left, [&expected[..], &padding].concat());
    });
}

#[test]
fn every_truncation_passes_untouched_and_is_counted_once() {
    at_both_edges(|bench| {
        let mut call = bench.call(CLIENT, 40_000);
        call.connects(bench, WORKER1);
        for segment in [
            call.syn(),
            call.request(PSH | ACK).payload(*b"GET / HTTP/1.1\r\n\r\n"),
            call.reply(WORKER1, ACK).payload([b'x'; 33]),
        ] {
            let whole = segment.frame();
            for length in shortest(bench.edge, 34)..whole.len() {
                bench.receives(&whole[..length]).passes(Verdict::Truncated);
            }
            assert_ne!(bench.receives(whole).action, Action::Pass);
        }
    });
}

#[test]
fn every_truncation_of_other_protocols_passes_untouched_and_is_counted_once() {
    at_both_edges(|bench| {
        let syn = bench.call(CLIENT, 40_000).syn();
        let tagged = match bench.edge {
            Edge::Tc => Verdict::NotIp,
            Edge::Xdp => Verdict::HandedOver,
        };
        for (whole, verdict, shortest_for_tc) in [
            (syn.as_udp(), Verdict::NotOurs, 34),
            (syn.as_icmp_echo(), Verdict::OtherProtocol, 34),
            (syn.as_ipv6(), Verdict::NotOurs, 54),
            (syn.as_vlan(5), tagged, 14),
        ] {
            for length in shortest(bench.edge, shortest_for_tc)..whole.len() {
                bench
                    .receives(&whole[..length])
                    .passes(if verdict == tagged {
                        verdict
                    } else {
                        Verdict::Truncated
                    });
            }
            bench.receives(whole).passes(verdict);
        }
    });
}

/// The shortest frame that a test run takes: for TC, newer kernels want the whole IP header.
fn shortest(edge: Edge, for_tc: usize) -> usize {
    match edge {
        Edge::Tc => for_tc,
        Edge::Xdp => 14,
    }
}

#[test]
fn what_xdp_lets_in_truncated_passes_tc_too() {
    at_edge(Edge::Xdp, |bench| {
        bench.attach_ingress();
        let whole = bench.call(CLIENT, 40_000).syn().frame();
        for length in 14..whole.len() {
            // Once at either edge.
            assert_eq!(
                bench.lets_in(&whole[..length]),
                [Counted::Verdict {
                    verdict: Verdict::Truncated,
                    packets: 2,
                    bytes: 2 * length as u64,
                }]
            );
        }
    });
}

#[test]
fn a_tag_that_the_kernel_has_taken_off_still_counts() {
    at_edge(Edge::Xdp, |bench| {
        bench.attach_ingress();
        let syn = bench.call(CLIENT, 40_000).syn();
        let bytes = syn.frame().len() as u64;
        // By XDP, which sees the tag, and by TC, which finds it beside the frame.
        assert_eq!(
            bench.lets_in(&syn.as_vlan(5)),
            [
                Counted::Verdict {
                    verdict: Verdict::HandedOver,
                    packets: 1,
                    bytes: bytes + 4,
                },
                Counted::ToBackend {
                    id: WORKER1.id,
                    connections: 1,
                    packets: 1,
                    bytes,
                }
            ]
        );
        assert_eq!(bench.handshakes().len(), 1);
    });
}

#[test]
fn a_packet_that_stands_for_many_is_counted_as_many() {
    at_edge(Edge::Tc, |bench| {
        let mut call = bench.call(CLIENT, 40_000);
        call.connects(bench, WORKER1);
        let large = Circumstances {
            gso: Some((1_000, 3)),
            ..Circumstances::received_on(ETH1)
        };
        let up = call.request(PSH | ACK).payload([b'u'; 2_900]);
        bench
            .meets(&up, large)
            .goes_to(WORKER1, &call.at_worker(WORKER1, &up));
        let down = call.reply(WORKER1, PSH | ACK).payload([b'd'; 2_901]);
        bench
            .meets(&down, large)
            .comes_from(WORKER1, &call.at_client(&down));
        let other = call.syn().payload([b'o'; 2_000]).as_udp();
        bench.meets(other, large).passes(Verdict::NotOurs);

        // Larger than IPv4 can say (BIG TCP): the length is left at 0.
        let unsaid = |segment: &Segment| with_ip_field(segment.frame(), at::TOTAL_LENGTH, &[0, 0]);
        let outcome = bench.meets(unsaid(&up), large);
        outcome.was_sent_to(WORKER1, 0);
        assert_eq!(outcome.left, unsaid(&call.at_worker(WORKER1, &up)));
    });
}

#[test]
fn a_checksum_of_zero_is_kept_right() {
    at_both_edges(|bench| {
        let mut call = bench.call(CLIENT, 40_000);
        call.connects(bench, WORKER1);
        let word = |segment: &Segment| {
            let frame = segment.frame();
            u16::from_be_bytes([frame[50], frame[51]])
        };
        // A payload that is the checksum itself makes the sum come out as nothing.
        let plain = call.request(ACK).payload([0, 0]);
        let zero_before = plain.clone().payload(word(&plain).to_be_bytes());
        assert_eq!(word(&zero_before), 0);
        call.requests(bench, WORKER1, &zero_before);
        let after = word(&call.at_worker(WORKER1, &plain));
        let zero_after = plain.payload(after.to_be_bytes());
        assert_eq!(word(&call.at_worker(WORKER1, &zero_after)), 0);
        call.requests(bench, WORKER1, &zero_after);
    });
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    at_both_edges(|bench| {
        let mut call = bench.call(CLIENT, 40_000);
        call.connects(bench, WORKER1);
        let data = call.request(PSH | ACK).payload(*b"intact");
        let mut damaged = data.frame();
        damaged[at::PAYLOAD] ^= 0x40;
        let outcome = bench.receives(damaged);
        let mut expected = call.at_worker(WORKER1, &data).frame();
        expected[at::PAYLOAD] ^= 0x40;
        // The receiver must see the damage, so the checksum of the intact payload stays.
        assert_eq!(outcome.left, expected);
    });
}
