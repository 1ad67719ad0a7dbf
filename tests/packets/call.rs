//! One connection of a client to the service: its segments, and the expected rewritten ones.
//!
//! Datagrams have no flags. With them, the "SYN" is the first one, the "SYN-ACK" the worker's answer, and
//! the "acknowledgement" the client's next one.

use std::net::SocketAddr;

use lb_common::maps::FlowKey;

use crate::{
    bench::{Bench, Edge},
    frame::{ACK, Family, SYN},
    lan::{self, MANAGER, Server, Station},
    message::{Message, Problem},
    segment::{Protocol, Segment},
    tables::Key,
};

/// First sequence numbers, chosen near their wrap.
pub const CLIENT_START: u32 = 0xffff_fff0;
pub const WORKER_START: u32 = 0xffff_ffff;

#[derive(Clone, Debug)]
pub struct Call {
    edge: Edge,
    pub family: Family,
    pub protocol: Protocol,
    pub client: Station,
    pub port: u16,
    /// Known once it has begun.
    pub nat_port: u16,
    /// Whose address the worker sees.
    pub source: Station,
    /// Whether the worker sees the client's own address and port (`routed`).
    pub is_routed: bool,
}

impl Call {
    pub fn new(edge: Edge, family: Family, client: Station, port: u16) -> Self {
        Self {
            edge,
            family,
            protocol: Protocol::Tcp,
            client,
            port,
            nat_port: 0,
            source: MANAGER,
            is_routed: false,
        }
    }

    /// The same to a worker that sees the client's own address and port.
    pub fn routed(mut self) -> Self {
        self.is_routed = true;
        self
    }

    /// The same over this family.
    pub fn over(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// The same, but of datagrams.
    pub fn of_datagrams(mut self) -> Self {
        self.protocol = Protocol::Udp;
        self
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
        self.segment(self.client_address(), self.service(), flags)
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
        self.segment(self.at(server), self.nat_address(), flags)
            .macs(server.station.mac, MANAGER.mac)
            .numbers(WORKER_START.wrapping_add(1), CLIENT_START.wrapping_add(1))
    }

    /// A client's segment as it leaves for the worker. At the TC edge the kernel fills in the link
    /// addresses afterwards.
    pub fn at_worker(&self, server: Server, segment: &Segment) -> Segment {
        let mut translated = segment.clone();
        translated.source = self.nat_address();
        translated.destination = self.at(server);
        self.forwarded(server, translated)
    }

    /// A client's segment as it leaves for a worker that answers the client itself.
    pub fn at_dsr_worker(&self, server: Server, segment: &Segment) -> Segment {
        self.forwarded(server, segment.clone())
    }

    fn forwarded(&self, server: Server, mut segment: Segment) -> Segment {
        segment.ip.time_to_live = after_hop(segment.ip.time_to_live);
        match self.edge {
            Edge::Tc => segment,
            Edge::Xdp => segment.macs(MANAGER.mac, server.station.mac),
        }
    }

    /// A worker's segment as it leaves for the client.
    pub fn at_client(&self, segment: &Segment) -> Segment {
        let mut translated = segment.clone().macs(MANAGER.mac, self.client.mac);
        translated.source = self.service();
        translated.destination = self.client_address();
        translated.ip.time_to_live = after_hop(translated.ip.time_to_live);
        translated
    }

    /// The message of a router on the client's side about a segment of the service.
    pub fn complains(&self, problem: Problem, about: &Segment) -> Message {
        let router = lan::ROUTER.address(self.family);
        Message::new(router, problem, about.clone()).macs(lan::ROUTER.mac, MANAGER.mac)
    }

    /// That message as it leaves for the worker: about the segment that the worker sent and, where the
    /// worker sees only the manager, from the manager.
    pub fn complaint_at_worker(&self, server: Server, message: &Message) -> Message {
        let mut translated = message.clone().about(self.at(server), self.nat_address());
        if !self.is_routed {
            translated.source = self.nat_address().ip();
        }
        self.forwarded_message(server, translated)
    }

    /// The same for the manager's own server, which it reaches in place.
    pub fn complaint_here(&self, server: Server, message: &Message) -> Message {
        message
            .clone()
            .about(self.at(server), self.client_address())
    }

    /// The same for a worker that answers the client itself.
    pub fn complaint_at_dsr_worker(&self, server: Server, message: &Message) -> Message {
        self.forwarded_message(server, message.clone())
    }

    fn forwarded_message(&self, server: Server, mut message: Message) -> Message {
        message.ip.time_to_live = after_hop(message.ip.time_to_live);
        match self.edge {
            Edge::Tc => message,
            Edge::Xdp => message.macs(MANAGER.mac, server.station.mac),
        }
    }

    /// The message of a machine on the worker's side about a segment of the manager's.
    pub fn worker_complains(&self, server: Server, problem: Problem, about: &Segment) -> Message {
        let worker = server.station;
        let met = self.at_worker(server, about);
        Message::new(worker.address(self.family), problem, met).macs(worker.mac, MANAGER.mac)
    }

    /// That message as it leaves for the client: about the segment that the client sent, from the
    /// service.
    pub fn complaint_at_client(&self, message: &Message) -> Message {
        let mut translated = message
            .clone()
            .macs(MANAGER.mac, self.client.mac)
            .about(self.client_address(), self.service());
        translated.source = self.service().ip();
        translated.ip.time_to_live = after_hop(translated.ip.time_to_live);
        translated
    }

    /// Sends the SYN, which must begin a connection to `server`.
    #[track_caller]
    pub fn begins(&mut self, bench: &Bench, server: Server) {
        self.begins_with(bench, server, &self.syn());
    }

    /// Sends that SYN, which must begin a connection to `server`.
    #[track_caller]
    pub fn begins_with(&mut self, bench: &Bench, server: Server, syn: &Segment) {
        let outcome = bench.receives(syn);
        self.nat_port = outcome.nat_port();
        outcome.opens(server, &self.at_worker(server, syn));
    }

    /// As [`Self::begins`], to go on with the call.
    #[track_caller]
    pub fn begun(mut self, bench: &Bench, server: Server) -> Self {
        self.begins(bench, server);
        self
    }

    /// As [`Self::connects`], to go on with the call.
    #[track_caller]
    pub fn connected(mut self, bench: &Bench, server: Server) -> Self {
        self.connects(bench, server);
        self
    }

    /// Sends the SYN-ACK, which must reach the client.
    #[track_caller]
    pub fn is_answered(&self, bench: &Bench, server: Server) {
        let syn_ack = self.syn_ack(server);
        bench
            .receives(&syn_ack)
            .comes_from(server, &self.at_client(&syn_ack));
    }

    /// Goes through the whole handshake with `server`, or as many exchanges of datagrams as make a flow.
    #[track_caller]
    pub fn connects(&mut self, bench: &Bench, server: Server) {
        self.begins(bench, server);
        self.establishes(bench, server);
        if self.protocol == Protocol::Udp {
            self.establishes(bench, server);
        }
    }

    /// Sends the SYN-ACK and the client's acknowledgement.
    #[track_caller]
    pub fn establishes(&self, bench: &Bench, server: Server) {
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

    pub fn service(&self) -> SocketAddr {
        lan::service(self.family)
    }

    pub fn client_address(&self) -> SocketAddr {
        self.client.at(self.family, self.port)
    }

    /// The client as the worker sees it.
    pub fn nat_address(&self) -> SocketAddr {
        match self.is_routed {
            true => self.client_address(),
            false => self.source.at(self.family, self.nat_port),
        }
    }

    /// Where a server is reached.
    pub fn at(&self, server: Server) -> SocketAddr {
        server.address(self.family)
    }

    pub fn segment(&self, source: SocketAddr, destination: SocketAddr, flags: u8) -> Segment {
        Segment::new(self.protocol, source, destination, flags)
    }

    /// The tuple of the client's packets.
    pub fn request_key(&self) -> Key {
        self.key(self.client_address(), self.service())
    }

    /// The tuple of the worker's packets.
    pub fn reply_key(&self, server: Server) -> Key {
        self.key(self.at(server), self.nat_address())
    }

    pub fn key(&self, source: SocketAddr, destination: SocketAddr) -> Key {
        FlowKey {
            source: lan::mapped(source.ip()),
            destination: lan::mapped(destination.ip()),
            source_port: source.port().to_be_bytes(),
            destination_port: destination.port().to_be_bytes(),
            protocol: self.protocol.number().into(),
        }
    }
}

/// A hop less, but never none.
fn after_hop(hops: u8) -> u8 {
    hops.saturating_sub(1).max(1)
}

/// Maximum segment size, SACK permitted, timestamps, no-operation, window scale.
const LINUX_OPTIONS: [u8; 20] = [
    2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 7,
];
