//! ICMP errors about flows: they reach the sender of the packet that they quote.

use std::time::Duration;

use lb_common::{
    maps::{Neighbour, state},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge},
    call::{CLIENT_START, Call},
    frame::{
        ACK, DESTINATION_OPTIONS, FIN, FRAGMENT, Family, HOP_BY_HOP, PSH, SYN, at, with,
        with_ip_field,
    },
    lan::{CLIENT, FALLBACK, FAR1, MANAGER, OTHER_CLIENT, ROUTER, WORKER1, WORKER2},
    local::{answers, takes},
    message::{Message, Problem},
    outcome::{Action, Counted, Outcome},
    segment::{Protocol, Segment},
    sniffer::Sniffer,
    untouched::shortest,
};

#[packet_test(in_both_modes)]
fn every_error_about_an_established_flow_is_translated_both_ways(bench: &mut Bench) {
    for call in connected(bench) {
        for problem in Problem::ALL {
            worker_gets_error(bench, &call, &from_the_clients_side(&call, problem));
            client_gets_error(bench, &call, &from_the_workers_side(&call, problem));
        }
    }
}

#[packet_test(in_both_modes)]
fn every_error_about_a_handshake_is_translated_both_ways(bench: &mut Bench) {
    for mut call in both_protocols(bench) {
        call.begins(bench, WORKER1);
        for problem in Problem::ALL {
            let syn = call.syn();
            let message = call.worker_complains(WORKER1, problem, &syn);
            client_gets_error(bench, &call, &message);
        }
        call.is_answered(bench, WORKER1);
        for problem in Problem::ALL {
            let syn_ack = call.at_client(&call.syn_ack(WORKER1));
            worker_gets_error(bench, &call, &call.complains(problem, &syn_ack));
            client_gets_error(bench, &call, &from_the_workers_side(&call, problem));
        }
        call.requests(bench, WORKER1, &call.ack());
    }
}

#[packet_test(at_both_edges)]
fn a_quote_of_any_sufficient_length_is_translated(bench: &mut Bench) {
    for call in connected(bench) {
        let least = bench.family.header_bytes() + 8;
        for quoted in least..least + 40 {
            let message = from_the_clients_side(&call, Problem::TooBig(1_280));
            worker_gets_error(bench, &call, &message.quotes(quoted));
            let message = from_the_workers_side(&call, Problem::TooBig(1_280));
            client_gets_error(bench, &call, &message.quotes(quoted));
        }
    }
}

#[packet_test(at_both_edges)]
fn every_next_hop_mtu_is_forwarded(bench: &mut Bench) {
    for call in connected(bench) {
        for mtu in [0, 68, 576, 1_280, 1_492, 9_000, 65_535] {
            let message = from_the_clients_side(&call, Problem::TooBig(mtu));
            worker_gets_error(bench, &call, &message.quotes_the_least());
            let message = from_the_workers_side(&call, Problem::TooBig(mtu));
            client_gets_error(bench, &call, &message.quotes_the_least());
        }
    }
}

#[packet_test(at_both_edges)]
fn an_error_does_not_change_the_flow(bench: &mut Bench) {
    for call in connected(bench) {
        let before = bench.entries();
        for problem in &Problem::ALL[1..] {
            let problem = *problem;
            worker_gets_error(bench, &call, &from_the_clients_side(&call, problem));
            client_gets_error(bench, &call, &from_the_workers_side(&call, problem));
        }
        assert_eq!(bench.entries(), before);
        // Replies still go to the client, not to the router.
        call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
    }
}

/// To its worker, all clients have the manager's address: told of a narrow path, it would take all for narrow.
#[packet_test(over(Family::V4))]
fn a_small_path_mtu_affects_one_connection(bench: &mut Bench) {
    let connected = |client, port| bench.call(client, port).connected(bench, WORKER1);
    let narrow = connected(CLIENT, 40_000);
    let wide: Vec<_> = (40_000..40_020)
        .map(|port| connected(OTHER_CLIENT, port))
        .collect();
    for mtu in [0, 296, 1_280] {
        let message = from_the_clients_side(&narrow, Problem::TooBig(mtu));
        worker_gets_error(bench, &narrow, &message.quotes_the_least());
    }
    for _ in 0..2 {
        let reply = narrow.reply(WORKER1, PSH | ACK).payload([b'x'; 1_400]);
        let expected = narrow.at_client(&reply).frame();
        let expected = with_ip_field(expected, at::FRAGMENT, &[0, 0]);
        sends_on(bench, &reply.frame()).comes_from(WORKER1, expected);
        // What has no number of its own gets one.
        let numberless = with_ip_field(reply.frame(), IDENTIFICATION, &[0, 0]);
        let left = sends_on(bench, &numberless).left;
        assert_eq!(left[at::FRAGMENT], 0);
        let number = [left[IDENTIFICATION], left[IDENTIFICATION + 1]];
        assert_eq!(with_ip_field(left.clone(), IDENTIFICATION, &number), left);

        for wide in &wide {
            let whole = wide.reply(WORKER1, PSH | ACK).payload([b'x'; 1_400]);
            wide.replies(bench, WORKER1, &whole);
        }
        // The client's packets change nothing.
        bench.wait(Duration::from_secs(2));
        narrow.requests(bench, WORKER1, &narrow.ack());
    }
}

/// Over IPv6, no router fragments: the manager divides the segments of that connection itself.
#[packet_test(over(Family::V6))]
fn a_small_path_mtu_over_ipv6_splits_segments_of_one_connection(bench: &mut Bench) {
    let wire = Sniffer::on(FAR1).unwrap();
    let connected = |client, port| {
        let mut call = bench.call(client, port);
        call.connects(bench, WORKER1);
        call
    };
    let narrow = connected(CLIENT, 40_000);
    let wide: Vec<_> = (40_000..40_020)
        .map(|port| connected(OTHER_CLIENT, port))
        .collect();
    let message = from_the_clients_side(&narrow, Problem::TooBig(1_280));
    worker_gets_error(bench, &narrow, &message.quotes_the_least());
    let reply = |flags, payload: &[u8]| narrow.reply(WORKER1, flags).payload(payload);
    let at_client = |segment: &Segment| narrow.at_client(segment).frame();
    let data: Vec<u8> = (0..1_500).map(|at| (at % 251) as u8).collect();
    let sums = Family::V6.transport() + 16..Family::V6.transport() + 18;
    let longest_whole = 1_280 - Family::V6.header_bytes() - 20;
    for length in [1, longest_whole] {
        let whole = reply(PSH | ACK, &data[..length]);
        sends_on(bench, &whole.frame()).comes_from(WORKER1, at_client(&whole));
    }
    for length in [longest_whole + 1, 1_400, 1_439, 1_440] {
        let whole = reply(FIN | PSH | ACK, &data[..length]);
        let mut frame = whole.frame();
        for is_damaged in [false, true] {
            let mut parts = [
                reply(ACK, &data[..1_024]),
                reply(FIN | PSH | ACK, &data[1_024..length]),
            ];
            parts[1].sequence = whole.sequence.wrapping_add(1_024);
            let parts = parts.each_ref().map(at_client);
            if is_damaged {
                frame[sums.start] ^= 0x55;
            }
            let outcome = sends_on(bench, &frame);
            outcome.is(Action::Redirect);
            let sent = wire.next().unwrap().frame;
            if is_damaged {
                // The client drops both.
                assert_ne!(sent[sums.clone()], parts[0][sums.clone()]);
                assert_ne!(outcome.left[sums.clone()], parts[1][sums.clone()]);
            } else {
                assert_eq!(sent, parts[0], "{length}");
                outcome.leaves_as(&*parts[1]);
            }
        }
    }
    for wide in &wide {
        let whole = wide.reply(WORKER1, PSH | ACK).payload([b'x'; 1_400]);
        wide.replies(bench, WORKER1, &whole);
    }
    // What two segments cannot carry: the worker gets an error.
    let outcome = sends_on(bench, &reply(ACK, &[b'x'; 1_700]).frame());
    outcome.is_counted_as(Verdict::TooLarge);
}

/// Who does not see a connection's packets does not know its numbers (RFC 5927, section 4.1).
#[packet_test(in_both_modes)]
fn an_error_about_what_was_not_sent_just_now_is_dropped(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    judges_by_number(bench, |offset| {
        let syn = call.syn().numbers(CLIENT_START.wrapping_add(offset), 0);
        call.worker_complains(WORKER1, Problem::HostUnreachable, &syn)
    });
    call.establishes(bench, WORKER1);
    for problem in [Problem::TooBig(552), Problem::PortUnreachable] {
        judges_by_number(bench, |offset| {
            let mut reply = call.reply(WORKER1, ACK);
            reply.sequence = reply.sequence.wrapping_add(offset);
            call.complains(problem, &call.at_client(&reply))
        });
        judges_by_number(bench, |offset| {
            let mut request = call.request(ACK);
            request.sequence = request.sequence.wrapping_add(offset);
            call.worker_complains(WORKER1, problem, &request)
        });
    }
}

/// Messages about segments so many bytes away from the last one change nothing, unless it is sent just before.
#[track_caller]
fn judges_by_number(bench: &Bench, message: impl Fn(u32) -> Message) {
    const MIB: u32 = 1 << 20;
    let before = bench.entries();
    for offset in [1 << 31, 2 * MIB, (9 * MIB).wrapping_neg()] {
        let message = message(offset).quotes_the_least();
        let outcome = bench.receives(&message);
        outcome.is_dropped(Verdict::ImplausibleError);
    }
    assert_eq!(bench.entries(), before);
    for offset in [0, MIB - 100, (7 * MIB).wrapping_neg()] {
        let outcome = bench.receives(&message(offset).quotes_the_least());
        let is_dropped = |counted: &Counted| matches!(counted, Counted::Verdict { verdict, .. } if *verdict == Verdict::ImplausibleError);
        assert!(!outcome.counted.iter().any(is_dropped), "{outcome:?}");
    }
}

/// Where an IPv4 header numbers its packet.
const IDENTIFICATION: usize = 18;

/// Feeds a reply that XDP leaves to TC.
fn sends_on(bench: &Bench, reply: &[u8]) -> Outcome {
    match bench.edge {
        Edge::Tc => bench.receives(reply),
        Edge::Xdp => {
            bench.receives(reply).passes(Verdict::HandedOver);
            bench.behind_xdp(reply)
        }
    }
}

#[packet_test(in_both_modes)]
fn an_error_of_a_router_on_the_workers_side_comes_from_the_service(bench: &mut Bench) {
    for call in connected(bench) {
        let router = ROUTER.address(call.family);
        let mut message = from_the_workers_side(&call, Problem::TooBig(1_280));
        (message.source, message.from_mac) = (router, ROUTER.mac);
        client_gets_error(bench, &call, &message);
        // A router's link address is not the worker's.
        let known = bench.known_neighbour(WORKER1.id);
        assert_eq!(known.worker.bytes(), WORKER1.station.mac);
    }
}

#[packet_test(at_both_edges)]
fn the_managers_own_server_gets_the_error(bench: &mut Bench) {
    bench.select(FALLBACK.id);
    for call in both_protocols(bench) {
        let answer = call.segment(call.service(), call.client_address(), SYN | ACK);
        let is_told = |bench: &Bench| {
            for problem in Problem::ALL {
                let message = call.complains(problem, &answer);
                let outcome = bench.receives(&message);
                outcome.is(Action::Pass);
                outcome.was_sent_to(FALLBACK, 0);
                outcome.leaves_as(&call.complaint_here(FALLBACK, &message));
            }
        };
        takes(bench.receives(&call.syn()), &call.syn(), 1);
        is_told(bench);
        answers(bench, &call, SYN | ACK);
        takes(bench.receives(&call.ack()), &call.ack(), 0);
        is_told(bench);
    }
}

#[packet_test(at_both_edges)]
fn an_error_about_no_flow_passes_to_the_kernel(bench: &mut Bench) {
    for call in connected(bench) {
        let mut client = call.at_client(&call.reply(WORKER1, ACK));
        client.destination.set_port(39_999);
        let mut port = call.request(ACK);
        port.source.set_port(39_999);
        let mut server = call.at_client(&call.reply(WORKER1, ACK));
        server.source.set_port(81);
        for about in [client, server] {
            let message = call.complains(Problem::TooBig(1_280), &about);
            bench.receives(&message).passes(Verdict::NotOurs);
        }
        let mut elsewhere = call.clone();
        elsewhere.nat_port ^= 1;
        let other_worker = call.worker_complains(WORKER2, Problem::PortUnreachable, &port);
        bench.receives(&other_worker).passes(Verdict::NotOurs);
        let other_port = from_the_workers_side(&elsewhere, Problem::PortUnreachable);
        bench.receives(&other_port).passes(Verdict::NotOurs);
        // About a packet that the manager's own client has sent.
        let own = call.segment(MANAGER.at(call.family, 50_000), call.at(WORKER1), ACK);
        let message = call.complains(Problem::TimeExceeded, &own);
        bench.receives(&message).passes(Verdict::NotOurs);
    }
}

#[packet_test(at_both_edges)]
fn an_error_about_the_other_protocol_of_a_flows_ports_is_not_ours(bench: &mut Bench) {
    let tcp = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let mut udp = tcp.of_datagrams();
    let message = from_the_clients_side(&udp, Problem::PortUnreachable);
    bench.receives(&message).passes(Verdict::NotOurs);
    udp = bench.datagrams(OTHER_CLIENT, 41_000);
    udp.connects(bench, WORKER1);
    let mut tcp = bench.call(OTHER_CLIENT, 41_000);
    tcp.nat_port = udp.nat_port;
    let message = from_the_workers_side(&tcp, Problem::HostUnreachable);
    bench.receives(&message).passes(Verdict::NotOurs);
}

#[packet_test(in_both_modes)]
fn an_error_about_a_flow_whose_worker_is_down_passes_to_the_kernel(bench: &mut Bench) {
    for call in connected(bench) {
        let told = from_the_clients_side(&call, Problem::TooBig(1_280));
        bench.state(WORKER1.id, state::DRAINING);
        worker_gets_error(bench, &call, &told);
        for state in [state::DOWN, state::UNKNOWN] {
            bench.state(WORKER1.id, state);
            bench.receives(&told).passes(Verdict::BackendDown);
        }
        bench.state(WORKER1.id, state::UP);
    }
}

#[packet_test(at_both_edges)]
fn an_error_about_a_flow_that_is_gone_is_not_ours(bench: &mut Bench) {
    let mut call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    let about_old = from_the_workers_side(&call, Problem::PortUnreachable);
    bench.goes_down(WORKER1.id);
    bench.select(WORKER2.id);
    call.begins(bench, WORKER2);
    bench.state(WORKER1.id, state::UP);
    bench.receives(&about_old).passes(Verdict::NotOurs);
}

#[packet_test(at_both_edges)]
fn a_cut_error_passes_untouched(bench: &mut Bench) {
    for call in connected(bench) {
        for message in [
            from_the_clients_side(&call, Problem::TooBig(1_280)),
            from_the_workers_side(&call, Problem::TooBig(1_280)),
        ] {
            let whole = message.frame();
            for length in shortest(bench.edge, bench.family)..whole.len() {
                bench.receives(&whole[..length]).passes(Verdict::Truncated);
            }
        }
    }
}

#[packet_test(at_both_edges)]
fn an_error_that_quotes_too_little_passes_untouched(bench: &mut Bench) {
    for call in connected(bench) {
        for quoted in 0..bench.family.header_bytes() + 8 {
            let message = from_the_clients_side(&call, Problem::TooBig(1_280));
            let little = message.quotes(quoted).frame();
            bench.receives(&little[..]).passes(Verdict::Truncated);
        }
        // What looks like the rest of the quote is padding.
        let message = from_the_clients_side(&call, Problem::TooBig(1_280));
        let least = message.quotes_the_least();
        let whole = least.frame();
        let mut claims_less = least.clone().quotes(least.quoted - 1).frame();
        claims_less.push(*whole.last().unwrap());
        bench.receives(claims_less).passes(Verdict::Malformed);
    }
}

#[packet_test(over(Family::V4))]
fn an_error_whose_quote_is_no_plain_ipv4_packet_passes_untouched(bench: &mut Bench) {
    for call in connected(bench) {
        let about = call.at_client(&call.reply(WORKER1, PSH | ACK).payload([b'x'; 60]));
        let message = call.complains(Problem::HostUnreachable, &about);
        let quote = bench.family.transport() + 8;
        let quoting =
            |at: usize, bytes: &[u8]| with_icmp_checksum(with(message.frame(), quote + at, bytes));
        let options = call.complains(Problem::HostUnreachable, &about.clone().ip_options(&[1; 4]));
        for (what, frame) in [
            ("options", options.frame()),
            ("version 6", quoting(0, &[0x65])),
            ("a fragment from the middle", quoting(6, &[0, 185])),
            ("a ping", quoting(9, &[1])),
            ("SCTP", quoting(9, &[132])),
        ] {
            println!("{what}");
            bench.receives(frame).passes(Verdict::OtherProtocol);
        }
        // A first fragment has ports.
        let outcome = bench.receives(quoting(6, &[0x20, 0]));
        outcome.was_sent_to(WORKER1, 0);
    }
}

#[packet_test(over(Family::V6))]
fn an_error_whose_quote_is_no_plain_ipv6_packet_passes_untouched(bench: &mut Bench) {
    for call in connected(bench) {
        let about = call.at_client(&call.reply(WORKER1, PSH | ACK).payload([b'x'; 60]));
        for extensions in [
            [(HOP_BY_HOP, 8)],
            [(FRAGMENT, 8)],
            [(DESTINATION_OPTIONS, 8)],
        ] {
            let about = about.clone().extensions(&extensions);
            let message = call.complains(Problem::HostUnreachable, &about);
            bench.receives(&message).passes(Verdict::OtherProtocol);
        }
    }
}

/// An IPv4 frame whose ICMP checksum is made right again.
fn with_icmp_checksum(frame: Vec<u8>) -> Vec<u8> {
    let icmp = Family::V4.transport();
    let frame = with(frame, icmp + 2, &[0, 0]);
    let checksum = crate::frame::checksum(&frame[icmp..]);
    with(frame, icmp + 2, &checksum.to_be_bytes())
}

#[packet_test(at_both_edges)]
fn an_error_that_is_itself_no_plain_packet_passes_untouched(bench: &mut Bench) {
    for call in connected(bench) {
        let message = from_the_clients_side(&call, Problem::TooBig(1_280));
        let to_all = with(message.frame(), at::DESTINATION_MAC, &[0xff; 6]);
        bench.receives(to_all).passes(Verdict::NotForUs);
        match bench.family {
            Family::V4 => {
                let fragment = with_ip_field(message.frame(), at::FRAGMENT, &[0x20, 0]);
                bench.receives(fragment).passes(Verdict::Fragment);
                let mut options = message;
                options.ip.options = vec![1; 4];
                bench.receives(&options).passes(Verdict::IpOptions);
            }
            Family::V6 => {
                let mut fragment = message;
                fragment.ip.extensions = vec![(FRAGMENT, 8)];
                bench.receives(&fragment).passes(Verdict::Fragment);
            }
        }
    }
}

#[packet_test(over(Family::V6))]
fn an_error_behind_extension_headers_is_translated(bench: &mut Bench) {
    for call in connected(bench) {
        for extensions in [vec![(HOP_BY_HOP, 8)], vec![(DESTINATION_OPTIONS, 128); 2]] {
            let mut message = from_the_clients_side(&call, Problem::TooBig(1_280));
            message.ip.extensions = extensions.clone();
            worker_gets_error(bench, &call, &message);
            let mut message = from_the_workers_side(&call, Problem::TimeExceeded);
            message.ip.extensions = extensions;
            client_gets_error(bench, &call, &message);
        }
    }
}

#[packet_test(at_both_edges)]
fn an_errors_ttl_does_not_expire_at_the_manager(bench: &mut Bench) {
    for call in connected(bench) {
        for hops in [0, 1, 2] {
            let message = from_the_clients_side(&call, Problem::TimeExceeded);
            worker_gets_error(bench, &call, &message.time_to_live(hops));
            let message = from_the_workers_side(&call, Problem::TimeExceeded);
            client_gets_error(bench, &call, &message.time_to_live(hops));
        }
    }
}

#[packet_test(at_both_edges)]
fn an_error_with_a_wrong_checksum_stays_wrong(bench: &mut Bench) {
    for call in connected(bench) {
        let message = from_the_clients_side(&call, Problem::TimeExceeded);
        let damaged = |message: &Message| {
            let mut frame = message.frame();
            *frame.last_mut().unwrap() ^= 0x40;
            frame
        };
        let outcome = bench.receives(damaged(&message));
        let translated = call.complaint_at_worker(WORKER1, &message);
        assert_eq!(outcome.left, damaged(&translated));
    }
}

#[packet_test(at_edge(Edge::Xdp))]
fn xdp_passes_errors_for_an_unresolved_worker_to_tc(bench: &mut Bench) {
    for call in connected(bench) {
        bench.neighbour(WORKER1.id, Neighbour::default());
        let message = from_the_clients_side(&call, Problem::TimeExceeded);
        bench.receives(&message).passes(Verdict::HandedOver);
        let mut unresolved = call.complaint_at_worker(WORKER1, &message);
        (unresolved.from_mac, unresolved.to_mac) = (message.from_mac, message.to_mac);
        bench.behind_xdp(&message).goes_to(WORKER1, &unresolved);
        // Nor does it learn from one.
        let message = from_the_workers_side(&call, Problem::TimeExceeded);
        client_gets_error(bench, &call, &message);
        assert!(!bench.known_neighbour(WORKER1.id).is_known());
        call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
    }
}

#[packet_test(at_both_edges)]
fn the_managers_own_errors_leave_untouched(bench: &mut Bench) {
    for call in connected(bench) {
        let own = MANAGER.address(call.family);
        for problem in Problem::ALL {
            let about = call.request(ACK);
            let message = Message::new(own, problem, about).macs(MANAGER.mac, CLIENT.mac);
            bench.sends(&message).passes(Verdict::OtherProtocol);
        }
    }
}

fn both_protocols(bench: &Bench) -> [Call; 2] {
    [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)]
}

/// A connection to worker 1 of each protocol.
#[track_caller]
fn connected(bench: &Bench) -> [Call; 2] {
    both_protocols(bench).map(|mut call| {
        call.connects(bench, WORKER1);
        call
    })
}

fn from_the_clients_side(call: &Call, problem: Problem) -> Message {
    let reply = call.reply(WORKER1, PSH | ACK).payload([b'x'; 60]);
    call.complains(problem, &call.at_client(&reply))
}

fn from_the_workers_side(call: &Call, problem: Problem) -> Message {
    let request = call.request(PSH | ACK).payload([b'x'; 60]);
    call.worker_complains(WORKER1, problem, &request)
}

/// The worker gets the message, unless it says that the path to the client of an established connection is narrow,
/// which all clients would suffer for.
#[track_caller]
fn worker_gets_error(bench: &Bench, call: &Call, message: &Message) {
    let is_too_big = matches!(message.problem, Problem::TooBig(_));
    let is_shared = !call.is_routed;
    let may_be_cut_up = is_shared && call.protocol == Protocol::Tcp;
    if is_too_big && may_be_cut_up && bench.entry(call.request_key()).is_some() {
        return bench.receives(message).is_dropped(Verdict::NarrowPath);
    }
    bench
        .receives(message)
        .goes_to(WORKER1, &call.complaint_at_worker(WORKER1, message));
}

#[track_caller]
fn client_gets_error(bench: &Bench, call: &Call, message: &Message) {
    bench
        .receives(message)
        .comes_from(WORKER1, &call.complaint_at_client(message));
}
