//! The decision of a worker's DSR translator: it translates requests to the service to the worker's own server, and the
//! server's replies to the service's address.
//!
//! Pure over [`DsrTables`], as [`steer`](crate::steer) is over its tables.

use core::ops::DerefMut;

use crate::{
    address::{Address, V4},
    headers::TcpFlags,
    maps::{DsrClient, FlowKey, ServiceKey, Translation, ended},
    verdict::Verdict,
};

/// A packet at the worker's interface, and the state of its translation. In a map, because the stack of a BPF program
/// is too small.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DsrPacket<A = V4> {
    /// The tuple on arrival; for an ICMP error, the tuple of replies to the quoted packet.
    pub key: FlowKey<A>,
    /// The tuple after translation.
    pub translated: FlowKey<A>,
    /// The tuple of the server's replies.
    reply_key: FlowKey<A>,
    client: DsrClient<A>,
    /// [`TcpFlags::NONE`] unless the packet is a TCP segment.
    pub flags: TcpFlags,
    /// 1: an ICMP error.
    pub is_icmp_error: u8,
    pub reserved: [u8; 2],
}

/// The two tables of clients, so that a flood of new clients does not evict known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientTable {
    /// `clients`: clients that sent more than one packet.
    Known,
    /// `new_clients`: clients that sent a SYN or one datagram.
    New,
}

/// The DSR translator's maps of one address family, and the clock.
pub trait DsrTables {
    type Address: Address;

    /// A writable entry.
    type Entry<'a>: DerefMut<Target = DsrClient<Self::Address>>
    where
        Self: 'a;

    /// The time in units of [`crate::maps::coarse_time`].
    fn now(&self) -> u32;
    fn translation(&self, service: &ServiceKey) -> Option<Translation>;
    fn client(
        &self,
        table: ClientTable,
        reply_key: &FlowKey<Self::Address>,
    ) -> Option<Self::Entry<'_>>;
    /// Stores an entry; returns whether there was room.
    fn insert_client(
        &self,
        table: ClientTable,
        reply_key: &FlowKey<Self::Address>,
        client: &DsrClient<Self::Address>,
    ) -> bool;
    fn remove_client(&self, table: ClientTable, reply_key: &FlowKey<Self::Address>);
    /// The service stored for the socket that sends the packet.
    fn socket_service(&self) -> Option<ServiceKey>;
    /// Stores the service for the lifetime of the socket that sends the packet, because entries of `clients` may be
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
        reply_key: FlowKey::NONE,
        client: DsrClient {
            service: A::NONE,
            port: [0; 2],
            client_ended: 0,
            server_ended: 0,
            last_seen: 0,
        },
        flags: TcpFlags::NONE,
        is_icmp_error: 0,
        reserved: [0; 2],
    };

    /// Whether it may be a client's first packet: a SYN or a datagram.
    #[inline(always)]
    fn is_first_packet(&self) -> bool {
        self.is_icmp_error == 0 && (self.flags.is_syn() || self.key.is_datagram())
    }

    /// Whether it is a TCP segment.
    #[inline(always)]
    fn is_segment(&self) -> bool {
        self.is_icmp_error == 0 && !self.key.is_datagram()
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
/// The server has one socket for a client's address and port, so the newest connection wins: a direct connection
/// replaces one through the service.
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
            packet.reply_key = packet.key.reversed();
            tables.remove_client(ClientTable::Known, &packet.reply_key);
            if packet.flags.is_syn() {
                packet.client = DsrClient::DIRECT;
                tables.insert_client(ClientTable::New, &packet.reply_key, &packet.client);
            } else {
                tables.remove_client(ClientTable::New, &packet.reply_key);
            }
        }
        return Verdict::NotOurs;
    };
    packet.translated = FlowKey {
        destination: M::Address::from_mapped(&translation.address),
        destination_port: translation.port,
        ..packet.key
    };
    packet.reply_key = packet.translated.reversed();
    if packet.is_icmp_error == 1 {
        let known = find_client(tables, &packet.reply_key)
            .is_some_and(|client| uses_service(&client, &packet.key));
        return if known {
            Verdict::ToBackend
        } else {
            Verdict::NotOurs
        };
    }
    if store_client(tables, packet) {
        Verdict::ToBackend
    } else {
        Verdict::TableFull
    }
}

/// Decides on a packet that the worker sends.
#[inline(always)]
pub fn handle_reply<M: DsrTables>(tables: &M, packet: &mut DsrPacket<M::Address>) -> Verdict {
    let Some(mut client) = find_client(tables, &packet.key) else {
        return handle_reply_without_entry(tables, packet);
    };
    if client.is_direct() {
        return Verdict::NotOurs;
    }
    packet.translated = FlowKey {
        source: client.service,
        source_port: client.port,
        ..packet.key
    };
    if packet.is_icmp_error == 0 {
        client.server_ended |= packet.end_bits();
        client.last_seen = tables.now();
    }
    let service = ServiceKey {
        address: client.service.mapped(),
        port: client.port,
        protocol: packet.key.protocol as u8,
        reserved: 0,
    };
    drop(client);
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
/// is unknown until the client's next packet. CRIU ends with a window probe, and a client that gets it from the
/// server's own address resets the connection.
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
    packet.client = DsrClient {
        service: packet.translated.source,
        port: service.port,
        client_ended: 0,
        server_ended: packet.end_bits(),
        last_seen: tables.now(),
    };
    if tables.insert_client(ClientTable::Known, &packet.key, &packet.client) {
        Verdict::ToClient
    } else {
        Verdict::NoFlow
    }
}

/// Stores the client and the service that it uses; returns whether there was room.
#[inline(always)]
fn store_client<M: DsrTables>(tables: &M, packet: &mut DsrPacket<M::Address>) -> bool {
    let now = tables.now();
    let is_syn = packet.flags.is_syn();
    if let Some(mut client) = tables.client(ClientTable::Known, &packet.reply_key) {
        if is_syn || !uses_service(&client, &packet.key) {
            client.service = packet.key.destination;
            client.port = packet.key.destination_port;
            client.client_ended = 0;
            client.server_ended = 0;
        }
        client.client_ended |= packet.end_bits();
        client.last_seen = now;
        return true;
    }
    packet.client = DsrClient {
        service: packet.key.destination,
        port: packet.key.destination_port,
        client_ended: packet.end_bits(),
        server_ended: 0,
        last_seen: now,
    };
    let is_new = is_syn
        || packet.key.is_datagram() && tables.client(ClientTable::New, &packet.reply_key).is_none();
    let table = if is_new {
        ClientTable::New
    } else {
        ClientTable::Known
    };
    tables.insert_client(table, &packet.reply_key, &packet.client)
}

#[inline(always)]
fn find_client<'a, M: DsrTables>(
    tables: &'a M,
    reply_key: &FlowKey<M::Address>,
) -> Option<M::Entry<'a>> {
    match tables.client(ClientTable::Known, reply_key) {
        Some(client) => Some(client),
        None => tables.client(ClientTable::New, reply_key),
    }
}

/// Whether the client uses the service that `request` is sent to.
#[inline(always)]
fn uses_service<A: Address>(client: &DsrClient<A>, request: &FlowKey<A>) -> bool {
    client.service.difference(request.destination) == 0 && client.port == request.destination_port
}

/// Idle time after which a connection no longer counts as open: two hours; one minute for datagrams. In units of 2^30
/// ns.
const OPEN_SEGMENTS: u32 = 6_706;
const OPEN_DATAGRAMS: u32 = 56;

/// Whether the connection of a known client would break without the DSR translator.
pub fn is_open<A: Address>(reply_key: &FlowKey<A>, client: &DsrClient<A>, now: u32) -> bool {
    let longest = if reply_key.is_datagram() {
        OPEN_DATAGRAMS
    } else {
        OPEN_SEGMENTS
    };
    let idle = now.saturating_sub(client.last_seen);
    !ended::both(client.client_ended, client.server_ended) && idle <= longest
}
