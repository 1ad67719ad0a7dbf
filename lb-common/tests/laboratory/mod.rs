//! A small network for the steering tests: addresses, packets, backends, and connections through memlb.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod tables;

pub use tables::{Memory, SECOND, admit, steer};

use lb_common::{
    address::{Address, V4},
    headers::{PROTOCOL_TCP, TcpFlags},
    maps::{Backend, FlowKey, Mac, Service, ServiceKey, mode, state},
    steer::{Hook, PacketMeta},
    verdict::Verdict,
};

/// TCP flags.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// An address and a port.
pub type Socket = (V4, u16);

pub const MANAGER: V4 = [10, 0, 0, 1];
pub const SERVICE: Socket = (MANAGER, 80);

/// The interface on which clients and workers are.
pub const ETH: u32 = 7;

pub const WORKER1: u32 = 1;
pub const WORKER2: u32 = 2;

/// The worker's initial sequence number; the client's is 0.
pub const WORKER_START: u32 = 77;

pub fn service_key((address, port): Socket) -> ServiceKey {
    ServiceKey {
        address: address.mapped(),
        port: port.to_be_bytes(),
        protocol: PROTOCOL_TCP,
        reserved: 0,
    }
}

/// The tuple of TCP segments from one socket to another.
pub fn key(source: Socket, destination: Socket) -> FlowKey {
    FlowKey {
        source: source.0,
        destination: destination.0,
        source_port: source.1.to_be_bytes(),
        destination_port: destination.1.to_be_bytes(),
        protocol: PROTOCOL_TCP.into(),
    }
}

/// A segment of a client that has sent nothing before it and acknowledges the worker's SYN-ACK.
pub fn packet(flags: u8) -> PacketMeta {
    PacketMeta {
        source_mac: Mac::from([2, 0, 0, 0, 0, 9]),
        destination_mac: Mac::from([2, 0, 0, 0, 0, 1]),
        hook: Hook::Ingress,
        interface: ETH,
        time_to_live: 64,
        in_driver: false,
        fragmentation_needed: false,
        port_unreachable: false,
        flags: TcpFlags(flags),
        sequence: 0,
        acknowledgement: WORKER_START + 1,
        packets: 1,
        bytes: 54,
    }
}

/// The worker's SYN-ACK.
pub fn answer_to_syn() -> PacketMeta {
    PacketMeta {
        sequence: WORKER_START,
        ..packet(SYN | ACK)
    }
}

/// A backend that is up.
pub fn backend((address, port): Socket, mode: u8) -> Backend {
    Backend {
        address: address.mapped(),
        port,
        state: state::UP,
        mode,
        source: MANAGER.mapped(),
        next_hop: address.mapped(),
        interface: ETH,
        ..Backend::default()
    }
}

/// Maps with one service, whose connections go to the first of these backends. The ids begin with 1; each backend
/// of mode `nat` has the pool of its id.
pub fn laboratory(capacity: usize, backends: &[Backend]) -> Memory {
    let mut memory = Memory::new(capacity);
    memory
        .services
        .insert(service_key(SERVICE), Service { id: 0, flags: 0 });
    for (id, backend) in (1..).zip(backends) {
        let mut backend = *backend;
        if backend.mode == mode::NAT {
            backend.port_pool = id;
        }
        let endpoint = (V4::from_mapped(&backend.address), backend.port);
        memory.endpoints.insert(service_key(endpoint), id);
        memory.backends[id as usize] = backend;
    }
    memory.selection[0] = WORKER1;
    memory
}

/// Makes a connection; returns the tuple with which the client's packets reach the worker.
pub fn connects(memory: &Memory, client: &FlowKey) -> FlowKey {
    let syn = steer(memory, &packet(SYN), client);
    assert_eq!((syn.verdict, syn.new_connection), (Verdict::ToBackend, 1));
    completes(memory, client, &syn.translated);
    syn.translated
}

/// Completes the handshake that the SYN of `client` began.
pub fn completes(memory: &Memory, client: &FlowKey, translated: &FlowKey) {
    let answer = steer(memory, &answer_to_syn(), &translated.reversed());
    assert_eq!(answer.verdict, Verdict::ToClient);
    assert_eq!(answer.translated, client.reversed());
    let ack = steer(memory, &packet(ACK), client);
    assert_eq!(ack.verdict, Verdict::ToBackend);
}
