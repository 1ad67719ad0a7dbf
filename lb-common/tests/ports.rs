//! Which ports connections get: as many as there are, whoever asks, and in which order.

#[allow(dead_code, reason = "shared with other tests")]
mod tables;

use std::collections::BTreeSet;

use lb_common::{
    address::Address,
    headers::TcpFlags,
    maps::{Backend, FlowKey, Mac, Service, ServiceKey, mode, state},
    steer::{Hook, PacketMeta},
    verdict::Verdict,
};
use tables::{Memory, SECOND, steer};

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const MANAGER: [u8; 4] = [10, 0, 0, 1];
const WORKER: [u8; 4] = [10, 0, 0, 101];
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
        for number in 0..PORTS {
            _ = steer(&memory, &packet(RST), &client(9, 30_000 + number));
        }
    }
}

/// A flood of SYNs takes every port, and gives each up to whoever comes next.
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
}

/// Who holds most ports and says nothing for a minute loses some of them; nobody else does.
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

/// Connects to the service; returns the manager's port, or nothing if it is refused for want of one.
fn connects(memory: &Memory, key: FlowKey) -> Option<u16> {
    let syn = steer(memory, &packet(SYN), &key);
    if syn.verdict == Verdict::PortsExhausted {
        return None;
    }
    assert_eq!(syn.verdict, Verdict::ToBackend);
    completes(memory, &key, &syn.translated);
    Some(u16::from_be_bytes(syn.translated.source_port))
}

fn completes(memory: &Memory, key: &FlowKey, translated: &FlowKey) {
    let answer = steer(memory, &packet(SYN | ACK), &translated.reversed());
    assert_eq!(answer.verdict, Verdict::ToClient);
    let ack = steer(memory, &packet(ACK), key);
    assert_eq!(ack.verdict, Verdict::ToBackend);
}

fn lab() -> Memory {
    let mut memory = Memory::new(16_384);
    memory.settings.nat_port_count = PORTS;
    memory.settings.source_words = u32::from(PORTS) / 64;
    memory.settings.pool_words = memory.settings.source_words;
    let endpoint = |address: [u8; 4], port: u16| ServiceKey {
        address: address.mapped(),
        port: port.to_be_bytes(),
        protocol: 6,
        reserved: 0,
    };
    memory
        .services
        .insert(endpoint(MANAGER, 80), Service { id: 0 });
    memory.endpoints.insert(endpoint(WORKER, 8_081), 0);
    memory.backends[1] = Backend {
        address: WORKER.mapped(),
        port: 8_081,
        state: state::UP,
        mode: mode::NAT,
        source: MANAGER.mapped(),
        next_hop: WORKER.mapped(),
        interface: 7,
        ..Backend::default()
    };
    memory.selection[0] = 1;
    memory
}

fn client(host: u8, port: u16) -> FlowKey {
    FlowKey {
        source: [10, 0, 2, host],
        destination: MANAGER,
        source_port: port.to_be_bytes(),
        destination_port: 80_u16.to_be_bytes(),
        protocol: 6,
    }
}

fn packet(flags: u8) -> PacketMeta {
    PacketMeta {
        source_mac: Mac::from([2, 0, 0, 0, 0, 9]),
        destination_mac: Mac::from([2, 0, 0, 0, 0, 1]),
        hook: Hook::Ingress,
        interface: 7,
        time_to_live: 64,
        in_driver: false,
        fragmentation_needed: false,
        flags: TcpFlags(flags),
        sequence: 0,
        acknowledgement: 1,
        packets: 1,
        bytes: 54,
    }
}
