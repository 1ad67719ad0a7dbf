//! Who gets a new connection, over maps in memory: every policy, and what operators and crashes may
//! leave in the maps.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[expect(dead_code, reason = "other tests look at the flows, too")]
mod tables;

use std::sync::atomic::{AtomicU32, Ordering};

use lb_common::{
    address::Address,
    headers::TcpFlags,
    maps::{
        Backend, CHOICE_SLOTS, FlowKey, Mac, Policy, SPREAD, Service, ServiceKey, first_choice,
        mode, policy, state,
    },
    steer::{Hook, PacketMeta},
    verdict::Verdict,
};
use proptest::prelude::*;
use tables::{Memory, steer};

const SYN: u8 = 0x02;
const SERVICE: [u8; 4] = [10, 0, 0, 1];
const KINDS: [u32; 4] = [
    policy::BALANCED,
    policy::ROUND_ROBIN,
    policy::LEAST_CONNECTIONS,
    policy::SOURCE_HASH,
];

/// Three workers, 1 to 3, that are up and weigh the same.
fn lab() -> Memory {
    let mut memory = Memory::new(64);
    let service = ServiceKey {
        address: SERVICE.mapped(),
        port: 80_u16.to_be_bytes(),
        protocol: 6,
        reserved: 0,
    };
    memory.services.insert(service, Service { id: 2 });
    for id in 1..4_u8 {
        memory.backends[usize::from(id)] = Backend {
            address: [10, 0, 1, id].mapped(),
            port: 8_080,
            state: state::UP,
            mode: mode::NAT,
            source: SERVICE.mapped(),
            next_hop: [10, 0, 1, id].mapped(),
            interface: 7,
            weight: 100,
            ..Backend::default()
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
        reserved: 0,
    };
}

/// The backend that a client of that number gets; 0 for none.
fn taker(memory: &Memory, client: u32) -> u32 {
    let key = FlowKey {
        source: (0x0a09_0000 + client).to_be_bytes(),
        destination: SERVICE,
        source_port: 40_000_u16.to_be_bytes(),
        destination_port: 80_u16.to_be_bytes(),
        protocol: 6,
    };
    let syn = PacketMeta {
        source_mac: Mac::from([2, 0, 0, 0, 0, 9]),
        destination_mac: Mac::from([2, 0, 0, 0, 0, 1]),
        hook: Hook::Ingress,
        interface: 7,
        time_to_live: 64,
        in_driver: false,
        fragmentation_needed: false,
        flags: TcpFlags(SYN),
        sequence: 0,
        acknowledgement: 0,
        packets: 1,
        bytes: 54,
    };
    let decision = steer(memory, &syn, &key);
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
fn whoever_repeats_its_syn_gets_another_worker() {
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
    fn whoever_is_up_within_four_places_gets_the_connection(
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
