//! The worker that a policy's slots select for a new connection, and cases without a worker.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU16, Ordering},
};

use lb_common::{
    maps::{CHOICE_SLOTS, Policy, policy, state},
    verdict::Verdict,
};
use memlb_tests::packet_test;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    bench::Bench,
    lan::{CLIENT, FALLBACK, Station, WORKER1, WORKER2},
    outcome::{Counted, Outcome},
};

const ONE: u32 = WORKER1.id;
const TWO: u32 = WORKER2.id;

#[packet_test(at_both_edges)]
fn round_robin_uses_the_slots_in_order(bench: &mut Bench) {
    pin_to_one_processor();
    bench.spreads(policy::ROUND_ROBIN, &[ONE, TWO, TWO]);
    let takers = takers(bench, 9);
    // Wherever the first turn is.
    let round = &takers[..3];
    assert_eq!(round.iter().filter(|id| **id == ONE).count(), 1);
    assert_eq!(takers, [round, round, round].concat());
}

#[packet_test(at_both_edges)]
fn balanced_selects_the_less_loaded_of_two_drawn_workers(bench: &mut Bench) {
    bench.spreads(policy::BALANCED, &[ONE, TWO]);
    bench.has_open(ONE, 10);
    // Worker 1 only where it is drawn twice.
    let share = count(&takers(bench, 400), ONE);
    assert!((60..=140).contains(&share), "{share} of 400");
}

#[packet_test(at_both_edges)]
fn balanced_relates_connections_to_weights(bench: &mut Bench) {
    bench.spreads(policy::BALANCED, &[ONE, TWO, ONE, ONE]);
    for (id, weight, open) in [(ONE, 300, 29), (TWO, 100, 9)] {
        bench.backend(id, |backend| backend.weight = weight);
        bench.has_open(id, open);
    }
    // With the new one, both have one for ten: the first drawn is taken.
    let share = count(&takers(bench, 400), ONE);
    assert!((260..=340).contains(&share), "{share} of 400");
    bench.has_open(ONE, 28);
    let share = count(&takers(bench, 400), TWO);
    assert!((8..=50).contains(&share), "{share} of 400");
}

#[packet_test(at_both_edges)]
fn least_connections_selects_the_fewest_per_weight(bench: &mut Bench) {
    bench.spreads(policy::LEAST_CONNECTIONS, &[ONE, TWO]);
    bench.has_open(ONE, 5);
    bench.has_open(TWO, 3);
    assert_eq!(takers(bench, 20), [TWO; 20]);
    bench.backend(ONE, |backend| backend.weight = 200);
    bench.backend(TWO, |backend| backend.weight = 100);
    assert_eq!(takers(bench, 20), [ONE; 20]);
    bench.backend(ONE, |backend| backend.weight = 0);
    assert_eq!(takers(bench, 20), [TWO; 20]);
}

#[packet_test(at_both_edges)]
fn source_hash_depends_only_on_the_clients_address(bench: &mut Bench) {
    let places: Vec<u32> = (0..CHOICE_SLOTS).map(|place| 1 + place % 2).collect();
    bench.spreads(policy::SOURCE_HASH, &places);
    let mut both = [0, 0];
    for host in 0..60 {
        let client = client(host);
        let home = taker(bench, client);
        for _ in 0..3 {
            assert_eq!(taker(bench, client), home, "{client:?}");
        }
        both[home.unwrap() as usize - 1] += 1;
    }
    assert!(
        both.iter().all(|count| (15..=45).contains(count)),
        "{both:?}"
    );
    let places: Vec<u32> = vec![TWO; CHOICE_SLOTS as usize];
    bench.spreads(policy::SOURCE_HASH, &places);
    assert_eq!(taker(bench, client(1)), Some(TWO));
}

#[packet_test(at_both_edges)]
fn a_worker_that_is_not_up_is_skipped(bench: &mut Bench) {
    for kind in KINDS {
        bench.spreads(kind, &[ONE, TWO, ONE, TWO]);
        for unfit in [state::DOWN, state::DRAINING, state::UNKNOWN, 77] {
            bench.state(ONE, unfit);
            assert_eq!(takers(bench, 12), [TWO; 12], "kind {kind}, state {unfit}");
        }
        bench.state(TWO, state::DOWN);
        no_worker_takes(bench);
        bench.state(ONE, state::UP);
        bench.state(TWO, state::UP);
    }
}

#[packet_test(at_both_edges)]
fn a_full_worker_is_skipped(bench: &mut Bench) {
    for kind in KINDS {
        bench.spreads(kind, &[ONE, TWO, ONE, TWO]);
        limits(bench, 5);
        assert_eq!(takers(bench, 12), [TWO; 12], "kind {kind}");
        bench.has_open(ONE, 4);
        bench.has_open(TWO, 4);
        assert!(count(&takers(bench, 60), ONE) > 0, "kind {kind}");
        bench.has_open(ONE, 5);
        bench.has_open(TWO, 6);
        overflows(bench, kind);
    }
}

#[packet_test(at_both_edges)]
fn a_selected_full_worker_is_skipped(bench: &mut Bench) {
    bench.ranks(&[WORKER1, WORKER2]);
    limits(bench, 5);
    assert_eq!(takers(bench, 3), [TWO; 3]);
    bench.has_open(TWO, 5);
    overflows(bench, policy::RANKED);
    // A repeated SYN goes nowhere else, either, and an open connection is not concerned.
    bench.has_open(TWO, 4);
    let call = bench.call(CLIENT, 39_999).connected(bench, WORKER2);
    call.requests(bench, WORKER2, &call.ack());
}

/// Worker 1 has as many connections as both workers may have, worker 2 none.
fn limits(bench: &mut Bench, most: u32) {
    for (id, open) in [(ONE, most), (TWO, 0)] {
        bench.backend(id, |backend| backend.max_connections = most);
        bench.has_open(id, open.into());
    }
}

/// Both workers are full: the fallback serves, or the connection is refused.
fn overflows(bench: &mut Bench, kind: u32) {
    let call = bench.call(CLIENT, 39_998);
    bench.receives(&call.syn()).passes(Verdict::WorkersFull);
    bench.overflows_to(FALLBACK.id);
    let takers = takers(bench, 3);
    assert_eq!(takers, [FALLBACK.id; 3], "kind {kind}");
    bench.overflows_to(0);
}

#[packet_test(at_both_edges)]
fn slots_without_a_worker_are_skipped(bench: &mut Bench) {
    for kind in KINDS {
        bench.spreads(kind, &[0, 7, 1_000, TWO]);
        assert_eq!(takers(bench, 12), [TWO; 12], "kind {kind}");
        bench.spreads(kind, &[0, 7, 1_000, u32::MAX]);
        no_worker_takes(bench);
    }
}

#[packet_test(at_both_edges)]
fn without_slots_or_with_an_unknown_kind_no_worker_takes_a_connection(bench: &mut Bench) {
    for kind in KINDS {
        bench.spreads(kind, &[]);
        no_worker_takes(bench);
    }
    for kind in [0, 77, u32::MAX] {
        bench.spreads(kind, &[ONE, TWO]);
        no_worker_takes(bench);
    }
}

#[packet_test(at_both_edges)]
fn only_the_current_generation_applies(bench: &mut Bench) {
    for kind in KINDS {
        let policy = |generation| Policy {
            kind,
            generation,
            slots: 2,
            fallback: 0,
        };
        bench.fills(0, &[ONE, ONE]);
        bench.fills(1, &[TWO, TWO]);
        bench.spreads(kind, &[TWO, TWO]);
        for (generation, taker) in [(0, ONE), (1, TWO), (0, ONE), (u32::MAX, TWO)] {
            bench.policy(policy(generation));
            assert_eq!(takers(bench, 8), [taker; 8], "kind {kind}");
        }
    }
}

#[packet_test(at_both_edges)]
fn open_connections_stay_when_the_policy_changes(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    for kind in KINDS {
        bench.spreads(kind, &[TWO]);
        call.requests(bench, WORKER1, &call.ack());
    }
    bench.select(WORKER2.id);
    call.requests(bench, WORKER1, &call.ack());
}

const KINDS: [u32; 4] = [
    policy::BALANCED,
    policy::ROUND_ROBIN,
    policy::LEAST_CONNECTIONS,
    policy::SOURCE_HASH,
];

/// Who takes `count` connections of different clients, one after the other.
fn takers(bench: &Bench, count: u16) -> Vec<u32> {
    let taker = |number| taker(bench, client(number)).unwrap();
    (0..count).map(taker).collect()
}

/// The backend that a SYN begins a connection with, from a port that was not used before. The test's table is small: TC
/// first ends the older handshake in the SYN's slot, and then has the SYN once more.
fn taker(bench: &Bench, client: Station) -> Option<u32> {
    let syn = bench.call(client, fresh_port()).syn();
    let taken_at = |outcome: Outcome| {
        let mut counted = outcome.counted.into_iter();
        counted.find_map(|counted| match counted {
            Counted::ToBackend { id, .. } => Some(id),
            Counted::Verdict { .. } | Counted::FromBackend { .. } => None,
        })
    };
    taken_at(bench.receives(&syn))
        .or_else(|| taken_at(bench.behind_xdp(&syn)))
        .or_else(|| taken_at(bench.behind_xdp(&syn)))
}

#[track_caller]
fn no_worker_takes(bench: &Bench) {
    for number in 0..8 {
        let call = bench.call(client(number), fresh_port());
        bench.receives(&call.syn()).passes(Verdict::NoBackend);
    }
}

fn client(number: u16) -> Station {
    let [high, low] = number.to_be_bytes();
    Station {
        v4: Ipv4Addr::new(10, 9, high, low),
        v6: Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number),
        ..CLIENT
    }
}

fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(1_024);
    NEXT.fetch_add(1, Ordering::Relaxed).max(1_024)
}

fn count(takers: &[u32], id: u32) -> usize {
    takers.iter().filter(|taker| **taker == id).count()
}

/// Turns are counted on each processor apart.
fn pin_to_one_processor() {
    let mut first = CpuSet::new();
    first.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first).unwrap();
}
