//! Damaged and senseless frames: they pass, or are steered as what they seem to be, and are counted
//! once.

use std::cell::RefCell;

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{TestError, TestRunner},
};

use crate::{
    bench::{Bench, Edge, at_both_edges},
    frame::{ACK, PSH, checksum},
    lan::{CLIENT, WORKER1},
    outcome::{Action, Counted, Outcome},
};

#[test]
fn damaged_frames_pass_or_are_steered_as_what_they_seem() {
    at_both_edges(|bench| {
        let mut call = bench.call(CLIENT, 40_000);
        call.connects(bench, WORKER1);
        let samples = vec![
            call.syn().frame(),
            call.request(PSH | ACK)
                .payload(*b"GET / HTTP/1.1\r\n")
                .frame(),
            call.reply(WORKER1, PSH | ACK).payload([b'x'; 33]).frame(),
            call.syn().as_udp(),
            call.syn().as_vlan(5),
        ];
        let damage = prop::collection::vec((any::<Index>(), any::<u8>()), 0..6);
        let cut = prop::option::weighted(0.3, any::<Index>());
        let damaged =
            (prop::sample::select(samples), damage, cut).prop_map(|(frame, damage, cut)| {
                let mut frame = frame;
                for (at, value) in damage {
                    let at = at.index(frame.len());
                    frame[at] = value;
                }
                if let Some(cut) = cut {
                    frame.truncate(cut.index(frame.len()).max(14));
                }
                frame
            });
        survives(bench, damaged);
    });
}

#[test]
fn senseless_frames_pass() {
    at_both_edges(|bench| {
        survives(bench, prop::collection::vec(any::<u8>(), 14..200));
    });
}

fn survives(bench: &mut Bench, frames: impl Strategy<Value = Vec<u8>>) {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 2_000,
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
    match frame[12..14] {
        [0x08, 0x00] => frame.len() < 34,
        [0x86, 0xdd] => frame.len() < 54,
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
    for (at, (before, after)) in outcome.sent.iter().zip(&outcome.left).enumerate() {
        let may_change = matches!(at, 0..12 | 22 | 24..38 | 50..52);
        prop_assert!(may_change || before == after, "byte {at} has changed");
    }
    prop_assert_eq!(errors(&outcome.left), errors(&outcome.sent));
    Ok(())
}

/// By how much the two checksums are wrong, which forwarding must leave as it was.
fn errors(frame: &[u8]) -> [u16; 2] {
    let ip = checksum(&frame[14..34]);
    let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let tcp_length = u16::try_from(end - 34).expect("came from 16 bits");
    let mut covered = frame[26..34].to_vec();
    covered.extend([0, 6]);
    covered.extend(tcp_length.to_be_bytes());
    covered.extend(&frame[34..end]);
    // Nothing and all ones are the same number here.
    [ip, checksum(&covered)].map(|error| error % 0xffff)
}
