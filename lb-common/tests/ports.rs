//! Which ports connections get, how many, and in which order.

mod laboratory;

use std::collections::{BTreeMap, BTreeSet};

use laboratory::{
    FIN, Memory, RST, SECOND, SERVICE, SYN, WORKER1, WORKER2, backend, completes, key, laboratory,
    packet, steer,
};
use lb_common::{
    address::Address,
    maps::{FlowKey, NO_PORT, PortPool, mode},
    steer::{Exit, PacketMeta, Tables},
    verdict::Verdict,
};

const PORTS: u16 = 1_024;

/// One client's connections come from ports of one parity, as Linux gives them.
#[test]
fn one_address_gets_every_port() {
    let memory = lab();
    let mut given = BTreeSet::new();
    for number in 0..PORTS {
        let port = connects(&memory, client(9, 30_000 + 2 * number));
        assert!(given.insert(port.unwrap()));
    }
    assert_eq!(connects(&memory, client(9, 40_001)), None);
    assert_eq!(connects(&memory, client(8, 40_001)), None);
}

#[test]
fn many_addresses_get_every_port() {
    let memory = lab();
    for number in 0..PORTS {
        let [high, low] = number.to_be_bytes();
        let mut key = client(low, 40_000);
        key.source = [11, 0, high, low];
        assert!(connects(&memory, key).is_some());
    }
    assert_eq!(connects(&memory, client(9, 40_001)), None);
}

#[test]
fn what_a_client_has_reset_it_gets_again_at_once() {
    let memory = lab();
    for _ in 0..3 {
        for number in 0..PORTS {
            assert!(connects(&memory, client(9, 30_000 + number)).is_some());
        }
        assert_eq!(connects(&memory, client(8, 40_001)), None);
        assert_eq!(pool(&memory).unwrap().next_free, NO_PORT);
        for number in 0..PORTS {
            _ = steer(&memory, &packet(RST), &client(9, 30_000 + number));
        }
    }
}

/// The worker closes first and keeps TIME_WAIT. It accepts a SYN there only from the client whose sequence numbers and
/// timestamps it remembers (RFC 6191).
#[test]
fn a_client_gets_its_last_port_again_when_none_is_free() {
    let memory = lab();
    let given: Vec<_> = (0..PORTS)
        .map(|it| connects_and_ends(&memory, it))
        .collect();
    for number in (0..PORTS).map(|it| it * 7 % PORTS).chain(0..PORTS) {
        let port = connects_and_ends(&memory, number);
        assert_eq!(port, given[usize::from(number)]);
    }
    assert_eq!(pool(&memory).unwrap().next_free, NO_PORT);
    // Other clients get the ports that have waited for longest.
    assert_eq!(connects(&memory, client(8, 40_001)), Some(given[0]));
}

#[test]
fn a_client_of_several_workers_gets_its_last_port_of_each() {
    let mut memory = lab();
    let mut connect_all = |worker: u32| -> Vec<u16> {
        memory.selection[0] = worker;
        (0..PORTS)
            .map(|it| connects_and_ends(&memory, it))
            .collect()
    };
    // At first in any order.
    for worker in [WORKER1, WORKER2] {
        connect_all(worker);
    }
    let given = [WORKER1, WORKER2].map(&mut connect_all);
    for _ in 0..3 {
        assert_eq!([WORKER1, WORKER2].map(&mut connect_all), given);
    }
}

/// Makes the client's connection of that number, which the worker closes first. Returns the manager's port.
fn connects_and_ends(memory: &Memory, number: u16) -> u16 {
    let client = client(9, 30_000 + number);
    let translated = laboratory::connects(memory, &client);
    _ = steer(memory, &packet(FIN), &translated.reversed());
    _ = steer(memory, &packet(FIN), &client);
    memory.wait(SECOND / 1_000);
    u16::from_be_bytes(translated.source_port)
}

/// A flood of SYNs takes every port, and later connections reuse each of them.
#[test]
fn handshakes_give_their_ports_up() {
    let memory = lab();
    for number in 0..20 * PORTS {
        let [high, low] = number.to_be_bytes();
        let mut key = client(low, 40_000);
        key.source = [11, 1, high, low];
        let syn = steer(&memory, &packet(SYN), &key);
        assert_eq!(syn.verdict, Verdict::ToBackend);
        memory.wait(SECOND / 1_000);
        if number % 100 == 0 {
            assert!(connects(&memory, client(9, 20_000 + number / 100)).is_some());
        }
    }
    let PortPool {
        next_free,
        next_waiting,
    } = pool(&memory).unwrap();
    assert_eq!([next_free, next_waiting], [NO_PORT; 2]);
    let port = connects_and_ends(&memory, 0);
    assert_eq!(connects(&memory, client(8, 40_001)), Some(port));
}

/// A client that holds most ports and is silent for a minute loses some of them; no other client does.
#[test]
fn silent_connections_of_one_client_give_their_ports_up_to_others() {
    let memory = lab();
    let mut honest = BTreeSet::new();
    for number in 0..PORTS {
        let is_honest = number % 8 == 0;
        let host = if is_honest {
            10 + (number / 8) as u8
        } else {
            9
        };
        let port = connects(&memory, client(host, 30_000 + number)).unwrap();
        if is_honest {
            honest.insert(port);
        }
    }
    assert_eq!(connects(&memory, client(8, 40_000)), None);
    memory.wait(61 * SECOND);
    for number in 0..100 {
        let port = connects(&memory, client(8, 40_000 + number)).unwrap();
        assert!(!honest.contains(&port));
    }
}

/// What an address for NAT adds.
#[test]
fn addresses_for_nat_multiply_the_ports() {
    let mut memory = lab();
    memory.settings.nat_sources = [2, 0];
    memory.settings.pool_words *= 2;
    let sources = [[10, 0, 0, 2], [10, 0, 0, 3]];
    for (index, source) in sources.iter().enumerate() {
        memory.nat_sources[index] = source.mapped();
    }
    let mut given = BTreeSet::new();
    for number in 0..2 * PORTS {
        let key = client(9, 30_000 + number);
        let translated = steer(&memory, &packet(SYN), &key).translated;
        assert!(sources.contains(&translated.source));
        assert!(given.insert((translated.source, translated.source_port)));
        completes(&memory, &key, &translated);
    }
    assert_eq!(connects(&memory, client(9, 60_000)), None);
}

/// Connects to the service; returns the manager's port, or nothing if it is refused because none is free.
fn connects(memory: &Memory, client: FlowKey) -> Option<u16> {
    let syn = steer(memory, &packet(SYN), &client);
    if syn.verdict == Verdict::PortsExhausted {
        return None;
    }
    assert_eq!(syn.verdict, Verdict::ToBackend);
    completes(memory, &client, &syn.translated);
    Some(u16::from_be_bytes(syn.translated.source_port))
}

/// The worker of an evicted handshake would keep it, and answer the port's next SYN with a bare ACK.
#[test]
fn the_worker_of_an_evicted_handshake_receives_a_rst() {
    const INTERVAL: u64 = SECOND / 1_000;
    let mut memory = laboratory(64, &[backend(([10, 0, 0, 101], 8_081), mode::NAT)]);
    memory.settings.half_open_buckets = 16;
    let syn = |number: u32| PacketMeta {
        sequence: 1_000 * number,
        ..packet(SYN)
    };
    let mut begun = BTreeMap::new();
    let mut evictions = 0;
    for number in 0..4_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let client = key(([11, 2, high, low], 40_000), SERVICE);
        let mut decision = steer(&memory, &syn(number), &client);
        if decision.verdict == Verdict::HandshakeEvicted {
            evictions += 1;
            assert_eq!((decision.exit, decision.new_connection), (Exit::Reset, 0));
            let evicted: u32 = begun.remove(&decision.translated).unwrap();
            assert_eq!(memory.reset_sequence(), 1_000 * evicted + 1);
            decision = steer(&memory, &syn(number), &client);
        }
        assert_eq!(decision.verdict, Verdict::ToBackend);
        begun.insert(decision.translated, number);
        memory.wait(INTERVAL);
    }
    assert!(evictions > 1_000, "{evictions}");
    let driver = PacketMeta {
        in_driver: true,
        ..syn(0)
    };
    // XDP cannot copy packets.
    let handed_over = (0..1_000).any(|port| {
        let client = key(([11, 3, 0, 1], 40_000 + port), SERVICE);
        steer(&memory, &driver, &client).verdict == Verdict::HandedOver
    });
    assert!(handed_over);
}

fn lab() -> Memory {
    let worker = |host: u8| backend(([10, 0, 0, host], 8_081), mode::NAT);
    let mut memory = laboratory(16_384, &[worker(101), worker(102)]);
    memory.settings.nat_port_count = PORTS;
    memory.settings.source_words = u32::from(PORTS) / 64;
    memory.settings.pool_words = memory.settings.source_words;
    memory
}

/// Where the next searches for a port of the selected worker begin.
fn pool(memory: &Memory) -> Option<PortPool> {
    memory.pool(WORKER1).map(|it| *it)
}

fn client(host: u8, port: u16) -> FlowKey {
    key(([10, 0, 2, host], port), SERVICE)
}
