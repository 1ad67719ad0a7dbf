//! Who gets a new connection, over maps in memory: every policy, and what operators and crashes may
//! leave in the maps.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod laboratory;

use std::sync::atomic::{AtomicU32, Ordering};

use laboratory::{Memory, SERVICE, SYN, backend, key, packet, service_key, steer};
use lb_common::{
    maps::{Backend, CHOICE_SLOTS, Policy, SPREAD, Service, first_choice, mode, policy, state},
    verdict::Verdict,
};
use proptest::prelude::*;

const KINDS: [u32; 4] = [
    policy::BALANCED,
    policy::ROUND_ROBIN,
    policy::LEAST_CONNECTIONS,
    policy::SOURCE_HASH,
];

/// Three workers, 1 to 3, that are up and weigh the same.
fn lab() -> Memory {
    let mut memory = Memory::new(64);
    memory
        .services
        .insert(service_key(SERVICE), Service { id: 2, flags: 0 });
    for id in 1..4_u8 {
        memory.backends[usize::from(id)] = Backend {
            weight: 100,
            ..backend(([10, 0, 1, id], 8_080), mode::NAT)
        };
    }
    memory.selection[2] = SPREAD;
    memory
}

fn spread(memory: &mut Memory, kind: u32, places: &[u32]) {
    let generation = 1;
    for (place, backend) in (first_choice(2, generation)..).zip(places) {
        memory.choices.insert(place, *backend);
    }
    memory.policies[2] = Policy {
        kind,
        generation,
        slots: u32::try_from(places.len()).unwrap(),
        fallback: 0,
    };
}

/// The backend that a client of that number gets; 0 for none.
fn taker(memory: &Memory, client: u32) -> u32 {
    let client = ((0x0a09_0000 + client).to_be_bytes(), 40_000);
    let decision = steer(memory, &packet(SYN), &key(client, SERVICE));
    match decision.verdict {
        Verdict::ToBackend => decision.backend,
        verdict => {
            assert_eq!(verdict, Verdict::NoBackend);
            0
        }
    }
}

/// Who gets clients that were not there before: of a repeated SYN the handshake is known.
fn counts(memory: &Memory, clients: u32) -> [usize; 4] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = NEXT.fetch_add(clients, Ordering::Relaxed);
    let mut counts = [0; 4];
    for client in first..first + clients {
        counts[taker(memory, client) as usize] += 1;
    }
    counts
}

#[test]
fn places_are_drawn_as_often_as_they_are_filled() {
    for (kind, places, least) in [
        (policy::ROUND_ROBIN, vec![1, 2, 3, 1], [0, 100, 50, 50]),
        (policy::LEAST_CONNECTIONS, vec![1, 2, 3], [0, 45, 45, 45]),
    ] {
        let mut memory = lab();
        spread(&mut memory, kind, &places);
        let counts = counts(&memory, 200);
        let enough = counts
            .iter()
            .zip(least)
            .all(|(count, least)| *count >= least);
        assert!(enough, "kind {kind}: {counts:?}");
    }
    // A source's number is mixed, so that neighbours spread.
    let mut memory = lab();
    let places: Vec<u32> = (0..CHOICE_SLOTS).map(|place| 1 + place % 3).collect();
    spread(&mut memory, policy::SOURCE_HASH, &places);
    let counts = counts(&memory, 3_000);
    assert!(
        counts[1..].iter().all(|count| count.abs_diff(1_000) < 100),
        "{counts:?}"
    );
}

#[test]
fn open_connections_decide_by_weight() {
    let mut memory = lab();
    spread(&mut memory, policy::LEAST_CONNECTIONS, &[1, 2, 3]);
    memory.active.borrow_mut().extend([(1, 7), (2, 4), (3, 5)]);
    assert_eq!(counts(&memory, 20), [0, 0, 20, 0]);
    memory.backends[1].weight = 400;
    assert_eq!(counts(&memory, 20), [0, 20, 0, 0]);
    // Numbers at their limits do not overflow.
    memory.active.borrow_mut().insert(1, u32::MAX);
    memory.backends[1].weight = u32::MAX;
    memory.backends[2].weight = 1;
    memory.backends[3].weight = 1;
    assert_eq!(counts(&memory, 20), [0, 20, 0, 0]);
    memory.backends[1].weight = 1;
    assert_eq!(counts(&memory, 20), [0, 0, 20, 0]);
}

#[test]
fn a_repeated_syn_gets_another_worker() {
    for kind in KINDS {
        // One worker has nearly all slots, the third is down.
        let mut memory = lab();
        memory.backends[3].state = state::DOWN;
        let mostly_one = |place| match place % 50 {
            0 => 2,
            25 => 3,
            _ => 1,
        };
        let places: Vec<u32> = (0..CHOICE_SLOTS).map(mostly_one).collect();
        spread(&mut memory, kind, &places);
        memory.active.borrow_mut().insert(2, 1_000_000);
        for client in 0..200 {
            let first = taker(&memory, client);
            memory.wait(250_000_000);
            assert_eq!(taker(&memory, client), 3 - first, "kind {kind}");
        }
    }
}

#[test]
fn a_selection_goes_before_any_policy() {
    let mut memory = lab();
    spread(&mut memory, policy::ROUND_ROBIN, &[1, 2]);
    memory.selection[2] = 3;
    assert_eq!(counts(&memory, 10), [0, 0, 0, 10]);
}

proptest! {
    #[test]
    fn the_first_one_up_within_four_places_gets_the_connection(
        kind in prop::sample::select(&KINDS),
        places in prop::collection::vec(prop_oneof![6 => 0..4_u32, 1 => any::<u32>()], 1..12),
        states in prop::collection::vec(0..5_u8, 3),
        weights in prop::collection::vec(prop_oneof![1 => Just(0), 4 => any::<u32>()], 3),
        active in prop::collection::vec(any::<u32>(), 3),
        client in any::<u16>(),
    ) {
        let mut memory = lab();
        for (index, backend) in memory.backends[1..4].iter_mut().enumerate() {
            backend.state = states[index];
            backend.weight = weights[index];
        }
        memory.active.borrow_mut().extend((1..).zip(active));
        spread(&mut memory, kind, &places);
        let taker = taker(&memory, client.into());
        let up = |id: u32| (1..4).contains(&id) && memory.backends[id as usize].state == state::UP;
        if taker == 0 {
            let weighed = |id: u32| up(id) && weights[id as usize - 1] > 0;
            let all_up = places.iter().all(|id| weighed(*id));
            prop_assert!(!all_up, "{:?}", places);
        } else {
            prop_assert!(up(taker) && places.contains(&taker));
        }
    }
}
