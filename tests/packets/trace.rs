//! The trace of single packets: no events without a request, else one exact event for each.

use std::time::Duration;

use lb_common::{
    headers::{PROTOCOL_ICMP, PROTOCOL_ICMPV6},
    maps::{LOOPBACK, NO_ID, TraceConfig, TraceCounts, TraceEvent, trace_hook},
    verdict::Verdict,
};
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge, FrameContext, Hook, SERVICE_ID},
    call::Call,
    frame::{ACK, PSH, RST, SYN},
    lan::{self, CLIENT, ETH1, FALLBACK, OTHER_CLIENT, WORKER1},
    message::Problem,
    outcome::Counted,
    segment::Protocol,
    tables::Key,
    untouched,
};

const LONG: Duration = Duration::from_secs(600);

#[packet_test(at_both_edges)]
fn nothing_is_traced_without_a_request(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    assert_eq!(bench.trace_events(), []);
    bench.traces(TraceConfig::ALL, LONG);
    call.requests(bench, WORKER1, &call.ack());
    assert_eq!(bench.trace_events().len(), 1);
    bench.traces(TraceConfig::OFF, Duration::ZERO);
    call.requests(bench, WORKER1, &call.ack());
    assert_eq!(bench.trace_events(), []);
}

#[packet_test(at_both_edges)]
fn a_call_is_traced_packet_by_packet(bench: &mut Bench) {
    bench.traces(TraceConfig::ALL, LONG);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut call = bench.call(CLIENT, 40_000);
        call.protocol = protocol;
        let flags = |flags| match protocol {
            Protocol::Tcp => flags,
            Protocol::Udp => 0,
        };
        call.begins(bench, WORKER1);
        let request = (call.request_key(), call.reply_key(WORKER1).reversed());
        let reply = (call.reply_key(WORKER1), call.request_key().reversed());
        let edge = bench.edge;
        let to = |kind| expected(edge, &call, Verdict::ToBackend, request, kind);
        let from = |kind| expected(edge, &call, Verdict::ToClient, reply, kind);
        is_traced(bench, &[to(flags(SYN))]);
        call.is_answered(bench, WORKER1);
        is_traced(bench, &[from(flags(SYN | ACK))]);
        call.requests(bench, WORKER1, &call.ack());
        call.requests(bench, WORKER1, &call.request(PSH | ACK).payload([1; 100]));
        is_traced(bench, &[to(flags(ACK)), to(flags(PSH | ACK))]);
        call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
        is_traced(bench, &[from(flags(ACK))]);
    }
}

#[packet_test(at_both_edges)]
fn an_error_about_a_connection_is_traced_with_its_tuple(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.traces(TraceConfig::ALL, LONG);
    let about = call.at_client(&call.reply(WORKER1, ACK));
    let message = call.complains(Problem::PortUnreachable, &about);
    bench
        .receives(message.frame())
        .goes_to(WORKER1, call.complaint_at_worker(WORKER1, &message).frame());
    let tuples = (call.request_key(), call.reply_key(WORKER1).reversed());
    let (protocol, kind, code) = match call.family {
        crate::frame::Family::V4 => (PROTOCOL_ICMP, 3, 3),
        crate::frame::Family::V6 => (PROTOCOL_ICMPV6, 1, 4),
    };
    let told = TraceEvent {
        protocol,
        code,
        ..expected(bench.edge, &call, Verdict::ToBackend, tuples, kind)
    };
    is_traced(bench, &[told]);
}

/// Each as often as it is counted, and under the same name.
#[packet_test(at_both_edges)]
fn packets_that_pass_are_traced_under_the_verdict_that_counts_them(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let datagrams = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    bench.traces(TraceConfig::ALL, LONG);
    for (what, frame, ..) in untouched::rows(&call, &datagrams) {
        let outcome = bench.receives(frame);
        let told = bench.trace_events();
        let [
            Counted::Verdict {
                verdict,
                packets,
                bytes,
            },
        ] = outcome.counted[..]
        else {
            panic!("{what}: {:?}", outcome.counted);
        };
        let [event] = told[..] else {
            panic!("{what}: {told:?}");
        };
        assert_eq!(event.verdict, verdict as u8, "{what}");
        assert_eq!((event.packets.into(), event.bytes.into()), (packets, bytes));
        assert_eq!((event.backend, event.translated), (0, Key::NONE), "{what}");
    }
}

#[packet_test(at_both_edges)]
fn refusals_are_traced_with_their_client(bench: &mut Bench) {
    bench.traces(TraceConfig::ALL, LONG);
    let stray = bench.call(OTHER_CLIENT, 40_000);
    bench.receives(&stray.ack()).passes(Verdict::NoFlow);
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    bench.trace_events();
    bench.goes_down(WORKER1.id);
    bench.receives(&call.ack()).passes(Verdict::BackendDown);
    bench.receives(&stray.syn()).passes(Verdict::NoBackend);
    let told = bench.trace_events();
    let shown: Vec<_> = told
        .iter()
        .map(|it| (it.verdict, it.backend, it.service, it.kind, it.original))
        .collect();
    let (down, none) = (Verdict::BackendDown as u8, Verdict::NoBackend as u8);
    let service = match told[..] {
        [TraceEvent { service, .. }, _] => service,
        _ => NO_ID,
    };
    assert_eq!(
        shown,
        [
            (down, WORKER1.id, service, ACK, call.request_key()),
            (none, 0, SERVICE_ID, SYN, stray.request_key())
        ]
    );
}

#[packet_test(at_edge(Edge::Tc))]
fn packets_of_the_manager_are_traced_at_their_hook(bench: &mut Bench) {
    bench.select(FALLBACK.id);
    let call = bench.call(CLIENT, 40_000);
    bench.traces(TraceConfig::ALL, LONG);
    let sent = bench.receives(&call.syn());
    sent.is(crate::outcome::Action::Pass);
    let syn_ack = call
        .segment(call.at(FALLBACK), call.client_address(), SYN | ACK)
        .macs(lan::MANAGER.mac, CLIENT.mac);
    let answered = bench.sends(&syn_ack);
    answered.is(crate::outcome::Action::Pass);
    let stray = bench.call(OTHER_CLIENT, 40_000);
    let stray = stray.segment(stray.client_address(), stray.service(), RST);
    bench.loops(&stray).passes(Verdict::NoFlow);
    let met: Vec<_> = bench
        .trace_events()
        .iter()
        .map(|it| (it.hook, it.verdict))
        .collect();
    assert_eq!(
        met,
        [
            (trace_hook::INGRESS, Verdict::ToManager as u8),
            (trace_hook::EGRESS, Verdict::FromManager as u8),
            (trace_hook::LOOPBACK, Verdict::NoFlow as u8)
        ]
    );
    // What is forwarded was counted, and told, on its way in.
    let forwarded = FrameContext {
        hook: Hook::Egress,
        forwarded_from: ETH1,
        ..FrameContext::received_on(LOOPBACK)
    };
    bench.meets(&stray, forwarded).is_skipped();
    assert_eq!(bench.trace_events(), []);
}

#[packet_test(at_both_edges)]
fn only_packets_that_match_the_filter_are_traced(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let other = bench.call(OTHER_CLIENT, 40_000);
    let wants = |bench: &mut Bench, order, expected: &[Verdict]| {
        bench.traces(order, LONG);
        call.requests(bench, WORKER1, &call.ack());
        call.replies(bench, WORKER1, &call.reply(WORKER1, ACK));
        bench.receives(&other.ack()).passes(Verdict::NoFlow);
        let told: Vec<_> = bench.trace_events().iter().map(|it| it.verdict).collect();
        let expected: Vec<_> = expected.iter().map(|it| *it as u8).collect();
        assert_eq!(told, expected, "{order:?}");
    };
    let of = |station: lan::Station, port: u16| TraceConfig {
        client: lan::mapped(station.address(call.family)),
        client_mask: [0xff; 16],
        client_port: port.to_be_bytes(),
        ..TraceConfig::ALL
    };
    let backend = |id| {
        let mut order = TraceConfig::ALL;
        order.backends[..2].copy_from_slice(&[lan::FALLBACK.id, id]);
        order.backend_count = 2;
        order
    };
    let (there, back, stray) = (Verdict::ToBackend, Verdict::ToClient, Verdict::NoFlow);
    wants(bench, of(CLIENT, 0), &[there, back]);
    wants(bench, of(CLIENT, 40_000), &[there, back]);
    wants(bench, of(CLIENT, 40_001), &[]);
    wants(bench, of(OTHER_CLIENT, 0), &[stray]);
    wants(bench, backend(WORKER1.id), &[there, back]);
    wants(bench, backend(lan::WORKER2.id), &[]);
    let verdicts = TraceConfig {
        verdicts: 1 << stray as u32 | 1 << back as u32,
        ..TraceConfig::ALL
    };
    wants(bench, verdicts, &[back, stray]);
    for (service, expected) in [(SERVICE_ID, &[stray][..]), (SERVICE_ID + 1, &[])] {
        let service = TraceConfig {
            service,
            verdicts: 1 << stray as u32,
            ..TraceConfig::ALL
        };
        wants(bench, service, expected);
    }
}

#[packet_test(at_both_edges)]
fn packets_beyond_the_rate_are_only_counted(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000);
    let order = TraceConfig {
        rate: 5,
        ..TraceConfig::ALL
    };
    bench.traces(order, LONG);
    for _ in 0..50 {
        bench.receives(&call.ack()).passes(Verdict::NoFlow);
    }
    assert_eq!(bench.trace_events().len(), 5);
    assert_eq!(bench.trace_counts().over_rate, 45);
    assert_eq!(bench.trace_counts().no_room, 0);
    // The next second has a budget of its own.
    bench.counts_trace(TraceCounts {
        window_packets: 50,
        ..TraceCounts::default()
    });
    bench.receives(&call.ack()).passes(Verdict::NoFlow);
    assert_eq!(bench.trace_events().len(), 1);
}

#[packet_test(at_edge(Edge::Xdp))]
fn a_sample_has_about_its_configured_size(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000);
    let order = TraceConfig {
        sample: 4,
        ..TraceConfig::ALL
    };
    bench.traces(order, LONG);
    for _ in 0..400 {
        bench.receives(&call.ack()).passes(Verdict::NoFlow);
    }
    let told = bench.trace_events().len();
    assert!((40..=180).contains(&told), "{told}");
}

#[packet_test(at_both_edges)]
fn a_filter_that_is_not_renewed_expires(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000);
    bench.traces(TraceConfig::ALL, Duration::ZERO);
    assert_ne!(bench.trace_order().expires_ns, 0);
    bench.receives(&call.ack()).passes(Verdict::NoFlow);
    assert_eq!(bench.trace_events(), []);
    assert_eq!(bench.trace_order().expires_ns, 0);
}

/// Nothing but what was wanted is lost: packets go on.
#[packet_test(at_edge(Edge::Tc))]
fn a_full_ring_loses_packets_from_the_trace_only(bench: &mut Bench) {
    bench.traces(TraceConfig::ALL, LONG);
    let call = bench.call(CLIENT, 40_000);
    let mut sent = 0;
    while bench.trace_counts().no_room == 0 {
        bench.receives(&call.ack()).passes(Verdict::NoFlow);
        sent += 1;
        assert!(sent < 10_000, "the ring never fills");
    }
    assert_eq!(bench.trace_events().len(), sent - 1);
}

fn expected(
    edge: Edge,
    call: &Call,
    verdict: Verdict,
    (original, translated): (Key, Key),
    kind: u8,
) -> TraceEvent {
    TraceEvent {
        original,
        translated,
        interface: ETH1,
        backend: WORKER1.id,
        service: 0,
        packets: 1,
        ether_type: call.family.ether_type(),
        verdict: verdict as u8,
        hook: match edge {
            Edge::Tc => trace_hook::INGRESS,
            Edge::Xdp => trace_hook::XDP,
        },
        protocol: call.protocol.number(),
        kind,
        ..TraceEvent::NONE
    }
}

/// As expected, but for the time and the length.
#[track_caller]
fn is_traced(bench: &mut Bench, expected: &[TraceEvent]) {
    let told = bench.trace_events();
    let timeless: Vec<_> = told
        .iter()
        .map(|it| {
            assert!(it.time_ns > 0 && it.bytes >= 42);
            TraceEvent {
                time_ns: 0,
                bytes: 0,
                ..*it
            }
        })
        .collect();
    assert_eq!(timeless, expected);
}
