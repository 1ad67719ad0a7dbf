//! The decision of a worker's DSR translator: requests to the service go to the worker's own server, and its
//! replies carry the service's address.
//!
//! Pure over [`DsrTables`], like the steering decision over its tables.

use core::ops::DerefMut;

use crate::{
    address::{Address, V4},
    headers::TcpFlags,
    maps::{FlowKey, Peer, ServiceKey, Translation, ended},
    verdict::Verdict,
};

/// A packet at the worker's interface, and the state of its translation. It is kept in a map, because a BPF program's
/// stack is too small.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DsrPacket<A = V4> {
    /// The tuple on arrival; for an ICMP error, the tuple of replies to the quoted packet.
    pub key: FlowKey<A>,
    /// The tuple after translation.
    pub translated: FlowKey<A>,
    /// The tuple of the server's replies.
    answers: FlowKey<A>,
    peer: Peer<A>,
    /// [`TcpFlags::NONE`] unless the packet is a TCP segment.
    pub flags: TcpFlags,
    /// 1: an ICMP error.
    pub is_message: u8,
    pub reserved: [u8; 2],
}

/// The tables of peers. Two, so that a flood of new clients does not evict known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerTable {
    /// `peers`: clients that sent more than one packet.
    Known,
    /// `new_peers`: clients that sent a SYN or one datagram.
    New,
}

/// The DSR translator's maps of one address family, and the clock.
pub trait DsrTables {
    type Address: Address;

    /// A writable entry.
    type Entry<'a>: DerefMut<Target = Peer<Self::Address>>
    where
        Self: 'a;

    /// The time in units of [`crate::maps::coarse_time`].
    fn now(&self) -> u32;
    fn translation(&self, service: &ServiceKey) -> Option<Translation>;
    fn peer(&self, table: PeerTable, answers: &FlowKey<Self::Address>) -> Option<Self::Entry<'_>>;
    /// Stores an entry; returns whether there was room.
    fn insert_peer(
        &self,
        table: PeerTable,
        answers: &FlowKey<Self::Address>,
        peer: &Peer<Self::Address>,
    ) -> bool;
    fn remove_peer(&self, table: PeerTable, answers: &FlowKey<Self::Address>);
    /// The service stored for the socket that sends the packet.
    fn socket_service(&self) -> Option<ServiceKey>;
    /// Stores the service for the lifetime of the socket that sends the packet, because entries of `peers` may be
    /// evicted.
    fn set_socket_service(&self, service: &ServiceKey);
    /// Whether the socket that sends the packet has received no segment.
    fn socket_has_received_nothing(&self) -> bool;
}

impl<A: Address> DsrPacket<A> {
    /// An empty packet.
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

    /// Whether it may be a client's first packet: a SYN or a datagram.
    #[inline(always)]
    fn is_first_packet(&self) -> bool {
        self.is_message == 0 && (self.flags.is_syn() || self.key.is_datagram())
    }

    /// Whether it is a TCP segment.
    #[inline(always)]
    fn is_segment(&self) -> bool {
        self.is_message == 0 && !self.key.is_datagram()
    }

    #[inline(always)]
    fn end_bits(&self) -> u8 {
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
/// The server has one socket for a client's address and port. So the newest connection wins: a direct connection ends
/// one through the service.
#[inline(always)]
pub fn handle_request<M: DsrTables>(tables: &M, packet: &mut DsrPacket<M::Address>) -> Verdict {
    let key = &packet.key;
    let service = ServiceKey {
        address: key.destination.mapped(),
        port: key.destination_port,
        protocol: key.protocol as u8,
        reserved: 0,
    };
    let Some(translation) = tables.translation(&service) else {
        if packet.is_first_packet() {
            packet.answers = packet.key.reversed();
            tables.remove_peer(PeerTable::Known, &packet.answers);
            if packet.flags.is_syn() {
                packet.peer = Peer::DIRECT;
                tables.insert_peer(PeerTable::New, &packet.answers, &packet.peer);
            } else {
                tables.remove_peer(PeerTable::New, &packet.answers);
            }
        }
        return Verdict::NotOurs;
    };
    packet.translated = FlowKey {
        destination: M::Address::from_mapped(&translation.address),
        destination_port: translation.port,
        ..packet.key
    };
    packet.answers = packet.translated.reversed();
    if packet.is_message == 1 {
        let known =
            find_peer(tables, &packet.answers).is_some_and(|peer| uses_service(&peer, &packet.key));
        return if known {
            Verdict::ToBackend
        } else {
            Verdict::NotOurs
        };
    }
    if store_peer(tables, packet) {
        Verdict::ToBackend
    } else {
        Verdict::TableFull
    }
}

/// Decides on a packet that the worker sends.
#[inline(always)]
pub fn handle_reply<M: DsrTables>(tables: &M, packet: &mut DsrPacket<M::Address>) -> Verdict {
    let Some(mut peer) = find_peer(tables, &packet.key) else {
        return handle_reply_without_entry(tables, packet);
    };
    if peer.is_direct() {
        return Verdict::NotOurs;
    }
    packet.translated = FlowKey {
        source: peer.service,
        source_port: peer.port,
        ..packet.key
    };
    if packet.is_message == 0 {
        peer.server_ended |= packet.end_bits();
        peer.last_seen = tables.now();
    }
    let service = ServiceKey {
        address: peer.service.mapped(),
        port: peer.port,
        protocol: packet.key.protocol as u8,
        reserved: 0,
    };
    drop(peer);
    if packet.is_segment() {
        tables.set_socket_service(&service);
    }
    Verdict::ToClient
}

/// Decides on a packet to a client without an entry: a direct client, or one whose entry was evicted. The socket's
/// storage distinguishes them. A SYN-ACK has no socket yet; its SYN stored an entry in either case, and if that is
/// gone, the SYN-ACK is dropped and the client repeats its SYN.
///
/// A connection that sends before it has received a segment was restored here (TCP_REPAIR, CRIU): which service it uses
/// is unknown until the client's next packet. CRIU ends with a window probe, and a client that gets it from the server's
/// own address resets the connection.
#[inline(always)]
fn handle_reply_without_entry<M: DsrTables>(
    tables: &M,
    packet: &mut DsrPacket<M::Address>,
) -> Verdict {
    if !packet.is_segment() {
        return Verdict::NotOurs;
    }
    if packet.flags.is_syn_ack() {
        return Verdict::NoFlow;
    }
    let Some(service) = tables.socket_service() else {
        if !packet.flags.is_syn() && tables.socket_has_received_nothing() {
            return Verdict::NoFlow;
        }
        return Verdict::NotOurs;
    };
    packet.translated = FlowKey {
        source: M::Address::from_mapped(&service.address),
        source_port: service.port,
        ..packet.key
    };
    packet.peer = Peer {
        service: packet.translated.source,
        port: service.port,
        client_ended: 0,
        server_ended: packet.end_bits(),
        last_seen: tables.now(),
    };
    if tables.insert_peer(PeerTable::Known, &packet.key, &packet.peer) {
        Verdict::ToClient
    } else {
        Verdict::NoFlow
    }
}

/// Stores the client and the service that it uses; returns whether there was room.
#[inline(always)]
fn store_peer<M: DsrTables>(tables: &M, packet: &mut DsrPacket<M::Address>) -> bool {
    let now = tables.now();
    let is_syn = packet.flags.is_syn();
    if let Some(mut peer) = tables.peer(PeerTable::Known, &packet.answers) {
        if is_syn || !uses_service(&peer, &packet.key) {
            peer.service = packet.key.destination;
            peer.port = packet.key.destination_port;
            peer.client_ended = 0;
            peer.server_ended = 0;
        }
        peer.client_ended |= packet.end_bits();
        peer.last_seen = now;
        return true;
    }
    packet.peer = Peer {
        service: packet.key.destination,
        port: packet.key.destination_port,
        client_ended: packet.end_bits(),
        server_ended: 0,
        last_seen: now,
    };
    let is_new = is_syn
        || packet.key.is_datagram() && tables.peer(PeerTable::New, &packet.answers).is_none();
    let table = if is_new {
        PeerTable::New
    } else {
        PeerTable::Known
    };
    tables.insert_peer(table, &packet.answers, &packet.peer)
}

#[inline(always)]
fn find_peer<'a, M: DsrTables>(
    tables: &'a M,
    answers: &FlowKey<M::Address>,
) -> Option<M::Entry<'a>> {
    match tables.peer(PeerTable::Known, answers) {
        Some(peer) => Some(peer),
        None => tables.peer(PeerTable::New, answers),
    }
}

/// Whether the peer uses the service that `request` is sent to.
#[inline(always)]
fn uses_service<A: Address>(peer: &Peer<A>, request: &FlowKey<A>) -> bool {
    peer.service.difference(request.destination) == 0 && peer.port == request.destination_port
}

/// Idle time after which a connection no longer counts as open: two hours; one minute for datagrams. In units of 2^30
/// ns.
const OPEN_SEGMENTS: u32 = 6_706;
const OPEN_DATAGRAMS: u32 = 56;

/// Whether the connection of a known peer would break without the DSR translator.
pub fn is_open<A: Address>(answers: &FlowKey<A>, peer: &Peer<A>, now: u32) -> bool {
    let longest = if answers.is_datagram() {
        OPEN_DATAGRAMS
    } else {
        OPEN_SEGMENTS
    };
    let idle = now.saturating_sub(peer.last_seen);
    !ended::both(peer.client_ended, peer.server_ended) && idle <= longest
}
