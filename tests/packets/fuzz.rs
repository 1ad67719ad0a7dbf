//! Damaged and random frames: they pass or are steered by their headers, and are counted once.

use std::cell::RefCell;

use memlb_tests::packet_test;
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{TestError, TestRunner},
};

use crate::{
    bench::{Bench, Edge, cases},
    frame::{
        ACK, CUSTOMER_TAG, DESTINATION_OPTIONS, FRAGMENT, Family, HOP_BY_HOP, ICMP, ICMPV6, IPV4,
        IPV6, PSH, ROUTING, SERVICE_TAG, TCP, UDP, at, checksum, tagged,
    },
    lan::{CLIENT, WORKER1},
    message::Problem,
    outcome::{Action, Counted, Outcome},
};

/// Headers lie within the first bytes, where damage does most.
const HEADERS: usize = 120;

#[packet_test(at_both_edges)]
fn damaged_frames_pass_or_are_steered_by_their_headers(bench: &mut Bench) {
    let samples = samples(bench);
    let place = || prop_oneof![any::<Index>().prop_map(Ok), (0..HEADERS).prop_map(Err)];
    let telling = prop::sample::select(vec![
        0,
        1,
        0xff,
        TCP,
        UDP,
        ICMP,
        ICMPV6,
        ROUTING,
        FRAGMENT,
        DESTINATION_OPTIONS,
    ]);
    let value = prop_oneof![3 => any::<u8>(), 1 => telling];
    let damage = prop::collection::vec((place(), value), 0..6);
    let cut = prop::option::weighted(0.3, any::<Index>());
    let damaged = (prop::sample::select(samples), damage, cut).prop_map(|(frame, damage, cut)| {
        let mut frame = frame;
        for (place, value) in damage {
            let at = match place {
                Ok(anywhere) => anywhere.index(frame.len()),
                Err(early) => early % frame.len(),
            };
            frame[at] = value;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()).max(at::IP));
        }
        frame
    });
    survives(bench, damaged);
}

#[packet_test(at_both_edges)]
fn senseless_frames_pass(bench: &mut Bench) {
    survives(bench, prop::collection::vec(any::<u8>(), 14..200));
}

#[packet_test(at_both_edges)]
fn random_packets_pass_or_are_steered_by_their_headers(bench: &mut Bench) {
    let frame = bench.call(CLIENT, 40_000).syn().frame();
    let whole_header = bench.family.transport();
    let packets = prop::collection::vec(any::<u8>(), 0..200);
    survives(
        bench,
        packets.prop_map(move |packet| [&frame[..whole_header], &packet].concat()),
    );
}

/// Frames of every kind that the programs look at closely, of flows under way.
fn samples(bench: &Bench) -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for mut call in [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)] {
        call.connects(bench, WORKER1);
        let up = call.request(PSH | ACK).payload(*b"GET / HTTP/1.1\r\n");
        let down = call.reply(WORKER1, PSH | ACK).payload([b'x'; 33]);
        samples.extend([call.syn().frame(), up.frame(), down.frame()]);
        for problem in Problem::ALL {
            let seen = call.at_client(&down);
            samples.push(call.complains(problem, &seen).frame());
            samples.push(call.worker_complains(WORKER1, problem, &up).frame());
        }
        samples.push(call.syn().as_vlan(5));
        samples.push(tagged(up.as_vlan(5), SERVICE_TAG, 7));
        samples.push(tagged(up.as_vlan(5), CUSTOMER_TAG, 7));
        samples.push(up.as_fragment(0, true));
        samples.push(up.as_ping());
        if bench.family == Family::V6 {
            for extensions in [
                &[(HOP_BY_HOP, 8)][..],
                &[(HOP_BY_HOP, 8), (ROUTING, 24), (DESTINATION_OPTIONS, 16)],
            ] {
                samples.push(up.clone().extensions(extensions).frame());
            }
        }
    }
    samples
}

fn survives(bench: &mut Bench, frames: impl Strategy<Value = Vec<u8>>) {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: cases(2_000),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let bench = RefCell::new(bench);
    let survived = runner.run(&frames, |frame| {
        let bench = bench.borrow();
        if bench.edge == Edge::Xdp || !is_refused_by_test_runs(&frame) {
            is_sound(&bench.receives(frame))?;
        }
        Ok(())
    });
    if let Err(TestError::Fail(reason, frame)) = survived {
        panic!("{reason}: {frame:02x?}");
    }
    survived.unwrap();
}

/// Newer kernels want the whole IP header in a test run of a TC program.
fn is_refused_by_test_runs(frame: &[u8]) -> bool {
    match ether_type(frame) {
        IPV4 => frame.len() < Family::V4.transport(),
        IPV6 => frame.len() < Family::V6.transport(),
        _ => false,
    }
}

fn is_sound(outcome: &Outcome) -> Result<(), TestCaseError> {
    let length = outcome.sent.len();
    prop_assert_eq!(outcome.left.len(), length);
    prop_assert_eq!(outcome.counted.len(), 1);
    let (packets, bytes) = match outcome.counted[0] {
        Counted::Verdict { packets, bytes, .. }
        | Counted::ToBackend { packets, bytes, .. }
        | Counted::FromBackend { packets, bytes, .. } => (packets, bytes),
    };
    prop_assert_eq!((packets, bytes), (1, length as u64));
    if matches!(outcome.action, Action::Pass | Action::Drop) {
        prop_assert_eq!(&outcome.left, &outcome.sent);
        return Ok(());
    }
    let shape = Shape::of(&outcome.sent);
    for (at, (before, after)) in outcome.sent.iter().zip(&outcome.left).enumerate() {
        prop_assert!(
            before == after || shape.may_change(&outcome.sent, at),
            "byte {at} has changed"
        );
    }
    prop_assert_eq!(shape.errors(&outcome.left), shape.errors(&outcome.sent));
    Ok(())
}

fn ether_type(frame: &[u8]) -> u16 {
    half(frame, at::ETHER_TYPE)
}

fn half(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// What a frame that was forwarded seems to be.
struct Shape {
    family: Family,
    protocol: u8,
    /// Where its transport or ICMP header is.
    transport: usize,
    end: usize,
}

impl Shape {
    fn of(frame: &[u8]) -> Self {
        if ether_type(frame) == IPV4 {
            return Self {
                family: Family::V4,
                protocol: frame[at::PROTOCOL],
                transport: Family::V4.transport(),
                end: at::IP + usize::from(half(frame, at::TOTAL_LENGTH)),
            };
        }
        let (mut protocol, mut transport) = (frame[at::NEXT_HEADER], at::EXTENSIONS);
        while !matches!(protocol, TCP | UDP | ICMPV6) {
            protocol = frame[transport];
            transport += 8 * (1 + usize::from(frame[transport + 1]));
        }
        Self {
            family: Family::V6,
            protocol,
            transport,
            end: at::EXTENSIONS + usize::from(half(frame, at::PAYLOAD_LENGTH)),
        }
    }

    /// Whether forwarding may change this byte: link addresses, hops, addresses, ports, checksums.
    fn may_change(&self, frame: &[u8], byte: usize) -> bool {
        let ip = match self.family {
            // Segments on a narrow path may be cut up, for which they get a number if they have none.
            Family::V4 => matches!(byte, 0..12 | 18..=20 | 22 | 24..34),
            Family::V6 => matches!(byte, 0..12 | 21..54),
        };
        let Some(byte) = byte.checked_sub(self.transport) else {
            return ip;
        };
        let quotes_udp = |at| frame[self.transport + at] == UDP;
        match (self.protocol, self.family) {
            (TCP, _) => matches!(byte, 0..4 | 16..18),
            (UDP, _) => matches!(byte, 0..4 | 6..8),
            // The quoted headers' checksums, addresses and ports.
            (_, Family::V4) if quotes_udp(17) && matches!(byte, 34..36) => true,
            (_, Family::V6) if quotes_udp(14) && matches!(byte, 54..56) => true,
            (_, Family::V4) => matches!(byte, 2..4 | 18..32),
            (_, Family::V6) => matches!(byte, 2..4 | 16..52),
        }
    }

    /// By how much the checksums are wrong, which forwarding must leave as it was.
    fn errors(&self, frame: &[u8]) -> Vec<u16> {
        let body = &frame[self.transport..self.end];
        let mut covered = Vec::new();
        let addresses = match self.family {
            Family::V4 => &frame[26..34],
            Family::V6 => &frame[22..54],
        };
        if self.protocol != ICMP {
            covered.extend(addresses);
        }
        covered.extend(body);
        let mut errors = vec![checksum(&covered)];
        if self.protocol == UDP && half(body, 6) == 0 {
            errors.clear();
        }
        if self.family == Family::V4 {
            errors.push(checksum(&frame[at::IP..self.transport]));
        }
        if self.protocol == ICMP {
            errors.push(checksum(&body[8..28]));
        }
        // Nothing and all ones are the same number here.
        errors.into_iter().map(|error| error % 0xffff).collect()
    }
}
