//! One connection of a client to the service: its segments, and what they must be turned into.

use std::net::SocketAddrV4;

use lb_common::{headers::PROTOCOL_TCP, maps::FlowKey};

use crate::{
    bench::{Bench, Edge},
    frame::{ACK, SYN, Segment},
    lan::{MANAGER, SERVICE, Server, Station},
};

/// First sequence numbers, chosen near their wrap.
pub const CLIENT_START: u32 = 0xffff_fff0;
pub const WORKER_START: u32 = 0xffff_ffff;

#[derive(Clone, Debug)]
pub struct Call {
    edge: Edge,
    pub client: Station,
    pub port: u16,
    /// Known once it has begun.
    pub nat_port: u16,
}

impl Call {
    pub fn new(edge: Edge, client: Station, port: u16) -> Self {
        Self {
            edge,
            client,
            port,
            nat_port: 0,
        }
    }

    /// The client's SYN, with the options that Linux sends.
    pub fn syn(&self) -> Segment {
        self.request(SYN)
            .numbers(CLIENT_START, 0)
            .tcp_options(&LINUX_OPTIONS)
    }

    /// The client's acknowledgement of the SYN-ACK.
    pub fn ack(&self) -> Segment {
        self.request(ACK)
    }

    /// A segment from the client, as it arrives at the manager.
    pub fn request(&self, flags: u8) -> Segment {
        Segment::new(self.client_address(), SERVICE, flags)
            .macs(self.client.mac, MANAGER.mac)
            .numbers(CLIENT_START.wrapping_add(1), WORKER_START.wrapping_add(1))
    }

    /// The worker's answer to the SYN.
    pub fn syn_ack(&self, server: Server) -> Segment {
        self.reply(server, SYN | ACK)
            .numbers(WORKER_START, CLIENT_START.wrapping_add(1))
            .tcp_options(&LINUX_OPTIONS)
    }

    /// A segment from the worker, as it arrives at the manager.
    pub fn reply(&self, server: Server, flags: u8) -> Segment {
        Segment::new(server.address(), self.nat_address(), flags)
            .macs(server.station.mac, MANAGER.mac)
            .numbers(WORKER_START.wrapping_add(1), CLIENT_START.wrapping_add(1))
    }

    /// A client's segment as it leaves for the worker. At the TC edge the kernel fills in the link
    /// addresses afterwards.
    pub fn at_worker(&self, server: Server, segment: &Segment) -> Segment {
        let mut translated = segment.clone();
        translated.source = self.nat_address();
        translated.destination = server.address();
        translated.time_to_live -= 1;
        match self.edge {
            Edge::Tc => translated,
            Edge::Xdp => translated.macs(MANAGER.mac, server.station.mac),
        }
    }

    /// A worker's segment as it leaves for the client.
    pub fn at_client(&self, segment: &Segment) -> Segment {
        let mut translated = segment.clone().macs(MANAGER.mac, self.client.mac);
        translated.source = SERVICE;
        translated.destination = self.client_address();
        translated.time_to_live -= 1;
        translated
    }

    /// Sends the SYN, which must begin a connection to `server`.
    #[track_caller]
    pub fn begins(&mut self, bench: &Bench, server: Server) {
        let syn = self.syn();
        let outcome = bench.receives(&syn);
        self.nat_port = outcome.nat_port();
        outcome.opens(server, &self.at_worker(server, &syn));
    }

    /// Sends the SYN-ACK, which must reach the client.
    #[track_caller]
    pub fn is_answered(&self, bench: &Bench, server: Server) {
        let syn_ack = self.syn_ack(server);
        bench
            .receives(&syn_ack)
            .comes_from(server, &self.at_client(&syn_ack));
    }

    /// Goes through the whole handshake with `server`.
    #[track_caller]
    pub fn connects(&mut self, bench: &Bench, server: Server) {
        self.begins(bench, server);
        self.is_answered(bench, server);
        self.requests(bench, server, &self.ack());
    }

    /// Sends a segment of the client, which must reach `server`.
    #[track_caller]
    pub fn requests(&self, bench: &Bench, server: Server, segment: &Segment) {
        bench
            .receives(segment)
            .goes_to(server, &self.at_worker(server, segment));
    }

    /// Sends a segment of `server`, which must reach the client.
    #[track_caller]
    pub fn replies(&self, bench: &Bench, server: Server, segment: &Segment) {
        bench
            .receives(segment)
            .comes_from(server, &self.at_client(segment));
    }

    pub fn client_address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.client.address, self.port)
    }

    pub fn nat_address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(MANAGER.address, self.nat_port)
    }

    /// The tuple of the client's packets.
    pub fn request_key(&self) -> FlowKey {
        key(self.client_address(), SERVICE)
    }

    /// The tuple of the worker's packets.
    pub fn reply_key(&self, server: Server) -> FlowKey {
        key(server.address(), self.nat_address())
    }
}

pub fn key(source: SocketAddrV4, destination: SocketAddrV4) -> FlowKey {
    FlowKey {
        source: source.ip().octets(),
        destination: destination.ip().octets(),
        source_port: source.port().to_be_bytes(),
        destination_port: destination.port().to_be_bytes(),
        protocol: PROTOCOL_TCP.into(),
    }
}

/// Maximum segment size, SACK permitted, timestamps, no-operation, window scale.
const LINUX_OPTIONS: [u8; 20] = [
    2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 7,
];
