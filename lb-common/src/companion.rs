//! What a worker's companion decides: clients ask the service, the worker's own server answers, and each
//! is shown the address that it knows.
//!
//! Pure over [`Memory`], as the steering decision is over its tables.

use core::ops::DerefMut;

use crate::{
    address::{Address, V4},
    headers::TcpFlags,
    maps::{FlowKey, Peer, ServiceKey, Translation, ended},
    verdict::Verdict,
};

/// A packet that crosses the worker's interface, and what is worked out of it. It stands in a map: a BPF
/// program's stack has no room for it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Crossing<A = V4> {
    /// The tuple it came with; of an error message, the one that answers to the packet it tells of.
    pub key: FlowKey<A>,
    /// The tuple it leaves with.
    pub translated: FlowKey<A>,
    /// The tuple of the server's answers to it.
    answers: FlowKey<A>,
    peer: Peer<A>,
    /// None where the packet is no TCP segment.
    pub flags: TcpFlags,
    /// 1 for an ICMP error message.
    pub is_message: u8,
    pub reserved: [u8; 2],
}

/// Which table of peers: a flood of new ones must not push out those that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// `peers`: clients that sent more than one packet.
    Known,
    /// `new_peers`: clients of whom a SYN or one datagram was seen.
    New,
}

/// The companion's maps of one family of addresses and its clock.
pub trait Memory {
    type Address: Address;

    /// An entry, writable in place.
    type Entry<'a>: DerefMut<Target = Peer<Self::Address>>
    where
        Self: 'a;

    /// As [`crate::maps::coarse`] has it.
    fn now(&self) -> u32;
    fn translation(&self, service: &ServiceKey) -> Option<Translation>;
    fn peer(&self, stage: Stage, answers: &FlowKey<Self::Address>) -> Option<Self::Entry<'_>>;
    /// Stores an entry; says whether there was room.
    fn remember(
        &self,
        stage: Stage,
        answers: &FlowKey<Self::Address>,
        peer: &Peer<Self::Address>,
    ) -> bool;
    fn forget(&self, stage: Stage, answers: &FlowKey<Self::Address>);
    /// The service that was kept for the socket which sends the packet.
    fn kept(&self) -> Option<ServiceKey>;
    /// Keeps, for as long as the socket that sends the packet lives, which service its client asks: an entry may be
    /// evicted before.
    fn keep(&self, service: &ServiceKey);
}

impl<A: Address> Crossing<A> {
    /// Nothing known yet.
    pub const NONE: Self = Self {
        key: FlowKey::NONE,
        translated: FlowKey::NONE,
        answers: FlowKey::NONE,
        peer: Peer {
            service: A::NONE,
            port: [0; 2],
            client_ended: 0,
            server_ended: 0,
            last_seen: 0,
        },
        flags: TcpFlags::NONE,
        is_message: 0,
        reserved: [0; 2],
    };

    /// A SYN, or a datagram: what may be the first packet of a client.
    #[inline(always)]
    fn begins(&self) -> bool {
        self.is_message == 0 && (self.flags.is_syn() || self.key.is_datagram())
    }

    /// Whether it is a segment of a connection.
    #[inline(always)]
    fn is_segment(&self) -> bool {
        self.is_message == 0 && !self.key.is_datagram()
    }

    #[inline(always)]
    fn ending(&self) -> u8 {
        let fin = if self.flags.has_fin() { ended::FIN } else { 0 };
        let reset = if self.flags.has_rst() {
            ended::RESET
        } else {
            0
        };
        fin | reset
    }
}

/// Decides on a packet that the worker receives.
///
/// The server has one socket for a client's address and port, whichever way the client came: so the
/// newest way counts, and one that begins directly ends the one through the service.
#[inline(always)]
pub fn receive<M: Memory>(memory: &M, crossing: &mut Crossing<M::Address>) -> Verdict {
    let key = &crossing.key;
    let service = ServiceKey {
        address: key.destination.mapped(),
        port: key.destination_port,
        protocol: key.protocol as u8,
        reserved: 0,
    };
    let Some(translation) = memory.translation(&service) else {
        if crossing.begins() {
            crossing.answers = crossing.key.reversed();
            memory.forget(Stage::Known, &crossing.answers);
            if crossing.flags.is_syn() {
                crossing.peer = Peer::DIRECT;
                memory.remember(Stage::New, &crossing.answers, &crossing.peer);
            } else {
                memory.forget(Stage::New, &crossing.answers);
            }
        }
        return Verdict::NotOurs;
    };
    crossing.translated = FlowKey {
        destination: M::Address::from_mapped(&translation.address),
        destination_port: translation.port,
        ..crossing.key
    };
    crossing.answers = crossing.translated.reversed();
    if crossing.is_message == 1 {
        let known =
            recall(memory, &crossing.answers).is_some_and(|peer| serves(&peer, &crossing.key));
        return if known {
            Verdict::ToBackend
        } else {
            Verdict::NotOurs
        };
    }
    if note(memory, crossing) {
        Verdict::ToBackend
    } else {
        Verdict::TableFull
    }
}

/// Decides on a packet that the worker sends.
#[inline(always)]
pub fn send<M: Memory>(memory: &M, crossing: &mut Crossing<M::Address>) -> Verdict {
    let Some(mut peer) = recall(memory, &crossing.key) else {
        return send_forgotten(memory, crossing);
    };
    if peer.is_direct() {
        return Verdict::NotOurs;
    }
    crossing.translated = FlowKey {
        source: peer.service,
        source_port: peer.port,
        ..crossing.key
    };
    if crossing.is_message == 0 {
        peer.server_ended |= crossing.ending();
        peer.last_seen = memory.now();
    }
    let service = ServiceKey {
        address: peer.service.mapped(),
        port: peer.port,
        protocol: crossing.key.protocol as u8,
        reserved: 0,
    };
    drop(peer);
    if crossing.is_segment() {
        memory.keep(&service);
    }
    Verdict::ToClient
}

/// Decides on a packet that the worker sends to a client without an entry: one that came directly, or whose entry was
/// evicted. In the latter case the socket tells. It does not exist yet when a SYN is answered; but then the SYN left
/// an entry, whichever way it came, and without it the answer waits for the client to repeat its SYN.
#[inline(always)]
fn send_forgotten<M: Memory>(memory: &M, crossing: &mut Crossing<M::Address>) -> Verdict {
    if !crossing.is_segment() {
        return Verdict::NotOurs;
    }
    if crossing.flags.is_syn_ack() {
        return Verdict::NoFlow;
    }
    let Some(service) = memory.kept() else {
        return Verdict::NotOurs;
    };
    crossing.translated = FlowKey {
        source: M::Address::from_mapped(&service.address),
        source_port: service.port,
        ..crossing.key
    };
    crossing.peer = Peer {
        service: crossing.translated.source,
        port: service.port,
        client_ended: 0,
        server_ended: crossing.ending(),
        last_seen: memory.now(),
    };
    if memory.remember(Stage::Known, &crossing.key, &crossing.peer) {
        Verdict::ToClient
    } else {
        Verdict::NoFlow
    }
}

/// Notes whom the server answers to, and as whom; says whether there was room.
#[inline(always)]
fn note<M: Memory>(memory: &M, crossing: &mut Crossing<M::Address>) -> bool {
    let now = memory.now();
    let is_syn = crossing.flags.is_syn();
    if let Some(mut peer) = memory.peer(Stage::Known, &crossing.answers) {
        if is_syn || !serves(&peer, &crossing.key) {
            peer.service = crossing.key.destination;
            peer.port = crossing.key.destination_port;
            peer.client_ended = 0;
            peer.server_ended = 0;
        }
        peer.client_ended |= crossing.ending();
        peer.last_seen = now;
        return true;
    }
    crossing.peer = Peer {
        service: crossing.key.destination,
        port: crossing.key.destination_port,
        client_ended: crossing.ending(),
        server_ended: 0,
        last_seen: now,
    };
    let is_new = is_syn
        || crossing.key.is_datagram() && memory.peer(Stage::New, &crossing.answers).is_none();
    let stage = if is_new { Stage::New } else { Stage::Known };
    memory.remember(stage, &crossing.answers, &crossing.peer)
}

#[inline(always)]
fn recall<'a, M: Memory>(memory: &'a M, answers: &FlowKey<M::Address>) -> Option<M::Entry<'a>> {
    match memory.peer(Stage::Known, answers) {
        Some(peer) => Some(peer),
        None => memory.peer(Stage::New, answers),
    }
}

/// Whether the peer came to the service that `request` goes to.
#[inline(always)]
fn serves<A: Address>(peer: &Peer<A>, request: &FlowKey<A>) -> bool {
    peer.service.difference(request.destination) == 0 && peer.port == request.destination_port
}

/// How long a connection may be silent, and still be open: two hours; one of datagrams, a minute. In
/// units of 2^30 ns.
const OPEN_SEGMENTS: u32 = 6_706;
const OPEN_DATAGRAMS: u32 = 56;

/// Whether the connection of a known peer would break without the companion.
pub fn is_open<A: Address>(answers: &FlowKey<A>, peer: &Peer<A>, now: u32) -> bool {
    let longest = if answers.is_datagram() {
        OPEN_DATAGRAMS
    } else {
        OPEN_SEGMENTS
    };
    let silence = now.saturating_sub(peer.last_seen);
    !ended::both(peer.client_ended, peer.server_ended) && silence <= longest
}
