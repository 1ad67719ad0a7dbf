//! Peers: other managers of the same services. This manager sends them records of its connections, and packets of
//! connections that it does not know.

use super::{BY_ROUTE, Flow, FlowKey, IN_FRAGMENTS, Mac, direction};
use crate::address::{Address, V4, V6};

/// Most peers of a manager.
pub const MAX_PEER_MANAGERS: usize = 7;
/// Capacity of `peers`: the manager's interfaces.
pub const PEER_INTERFACES: u32 = 64;
/// Capacity of `peer_addresses`.
pub const PEER_ADDRESSES: u32 = 128;
/// Capacity of `unknown_flows`.
pub const UNKNOWN_FLOW_ENTRIES: u32 = 16_384;
/// Size of map `flow_events` in bytes if there are peers: 65,536 events of IPv4.
pub const FLOW_EVENT_BYTES: u32 = 4 * 1024 * 1024;
/// Size of map `unknown_clients` in bytes.
pub const UNKNOWN_CLIENT_BYTES: u32 = 64 * 1024;

/// Time in nanoseconds for which packets of an unknown connection go to the peers, if these have reported all
/// connections.
pub const LOOKUP_NS: u64 = 1_000_000_000;
/// Time in nanoseconds after which a new lookup of an unknown connection begins.
pub const LOOKUP_AGAIN_NS: u64 = 10_000_000_000;

/// What happened to a connection: an entry of `flow_events`. An IPv4 entry fills a cache line with the ring's header of
/// 8 bytes, because cache misses are most of its cost.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowEvent<A = V4> {
    /// The tuple of the client's packets.
    pub client: FlowKey<A>,
    /// [`Flow::client_mac`], with the VLAN tag.
    pub client_mac: Mac,
    pub backend: u32,
    pub client_interface: u32,
    /// In [`ticks`](super::ticks), like the next.
    pub created_ticks: u32,
    pub last_seen_ticks: u32,
    /// [`Flow::sequence`] of request and reply.
    pub sequences: [u32; 2],
    /// The source towards the worker: the manager's address in mode `nat`, else the client's.
    pub source: A,
    pub source_port: [u8; 2],
    /// One of [`record_kind`].
    pub kind: u8,
    /// [`Flow::ended`] of request and, in the upper half, of reply. Bit 3: packets of the connection have passed.
    pub flags: u8,
}

/// Bit of [`FlowEvent::flags`] above the bits of [`ended`](super::ended) of the request.
const CARRIED: u8 = 1 << 3;

/// A connection as one manager reports it to another, and the input of program `memlb_intake`. Addresses of IPv4 are
/// IPv4-mapped.
///
/// Backend, interface, link addresses and times are those of the manager that has made the record. A receiver replaces
/// them by its own before the intake.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowRecord {
    pub client: V6,
    pub service_address: V6,
    /// The source towards the worker: the manager's address in mode `nat`, else the client's.
    pub source: V6,
    /// [`Flow::client_mac`], with the VLAN tag.
    pub client_mac: Mac,
    /// [`Flow::manager_mac`].
    pub manager_mac: Mac,
    pub backend: u32,
    pub client_interface: u32,
    /// In [`ticks`](super::ticks), like the next.
    pub created_ticks: u32,
    pub last_seen_ticks: u32,
    /// [`Flow::sequence`] of request and reply.
    pub sequences: [u32; 2],
    pub client_port: [u8; 2],
    pub service_port: [u8; 2],
    pub source_port: [u8; 2],
    /// IANA number.
    pub protocol: u8,
    /// One of [`record_kind`].
    pub kind: u8,
    /// Bits of [`ended`](super::ended) of request and reply.
    pub ended: [u8; 2],
    /// 1: the sender has carried packets of the connection. The intake ignores it.
    pub carried: u8,
    pub reserved: [u8; 5],
}

/// Kinds of a [`FlowRecord`].
pub mod record_kind {
    /// No record.
    pub const NONE: u8 = 0;
    /// The connection has begun, or continues after a spoofed end.
    pub const OPENED: u8 = 1;
    /// The connection is over.
    pub const ENDED: u8 = 2;
    /// The connection exists. Does not revive one that has ended.
    pub const PRESENT: u8 = 3;
    /// In `unknown_clients`: the sequence numbers are the packet's; backend and source are empty.
    pub const UNKNOWN_CLIENT: u8 = 4;
    /// For the intake only: the peers no longer report the connection. Removes it if no packet has passed here.
    pub const FORGOTTEN: u8 = 5;
}

/// Most records of one run of program `memlb_intake`. A test run takes at most a page.
pub const INTAKE_RECORDS: usize = 32;

/// The first bytes of the input of program `memlb_intake`; the records follow. The manager runs it once for each
/// record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntakeHeader {
    /// Zeros, where the kernel expects an Ethernet header.
    pub link: [u8; 16],
    /// The next record, in the machine's byte order, like the next.
    pub next: [u8; 2],
    /// How many records had each [`Admission`].
    pub outcomes: [[u8; 2]; Admission::ALL.len()],
    pub reserved: [u8; 4],
}

impl IntakeHeader {
    /// The header for a new batch.
    pub const NEW: Self = Self {
        link: [0; 16],
        next: [0; 2],
        outcomes: [[0; 2]; Admission::ALL.len()],
        reserved: [0; 4],
    };
}

crate::named_enum! {
    /// The outcome of the intake of a [`FlowRecord`].
    #[repr(u32)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Admission {
        Inserted = "inserted",
        /// Known: at most its age was renewed.
        Refreshed = "refreshed",
        /// Replaced another connection of the same tuple.
        Replaced = "replaced",
        /// Ignored: the connection known here is newer, or its packets pass here.
        Older = "older",
        /// Removed: no packet has passed here.
        Removed = "removed",
        /// Marked as ended.
        Ended = "ended",
        /// The end of a connection that is not known here.
        Absent = "absent",
        UnknownBackend = "unknown_backend",
        TableFull = "table_full",
    }
}

impl FlowRecord {
    /// An empty record.
    pub const NONE: Self = Self {
        client: [0; 16],
        service_address: [0; 16],
        source: [0; 16],
        client_mac: Mac::NONE,
        manager_mac: Mac::NONE,
        backend: 0,
        client_interface: 0,
        created_ticks: 0,
        last_seen_ticks: 0,
        sequences: [0; 2],
        client_port: [0; 2],
        service_port: [0; 2],
        source_port: [0; 2],
        protocol: 0,
        kind: 0,
        ended: [0; 2],
        carried: 0,
        reserved: [0; 5],
    };

    /// Sets the tuple of the client's packets.
    #[inline(always)]
    pub fn set_client<A: Address>(&mut self, key: &FlowKey<A>) {
        self.client = key.source.mapped();
        self.client_port = key.source_port;
        self.service_address = key.destination.mapped();
        self.service_port = key.destination_port;
        self.protocol = key.protocol as u8;
    }

    /// The tuple of the client's packets. Meaningless if they are of the other family.
    #[inline(always)]
    pub fn client_key<A: Address>(&self) -> FlowKey<A> {
        FlowKey {
            source: A::from_mapped(&self.client),
            destination: A::from_mapped(&self.service_address),
            source_port: self.client_port,
            destination_port: self.service_port,
            protocol: self.protocol.into(),
        }
    }
}

impl<A: Address> FlowEvent<A> {
    /// An empty event.
    pub const NONE: Self = Self {
        client: FlowKey::NONE,
        client_mac: Mac::NONE,
        backend: 0,
        client_interface: 0,
        created_ticks: 0,
        last_seen_ticks: 0,
        sequences: [0; 2],
        source: A::NONE,
        source_port: [0; 2],
        kind: record_kind::NONE,
        flags: 0,
    };

    /// Fills the event from one entry of a connection, and from sequence number and bits of [`ended`](super::ended) of
    /// the other direction.
    #[inline(always)]
    pub fn describe(
        &mut self,
        kind: u8,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        (sequence, ended): (u32, u8),
    ) {
        if flow.direction == direction::REQUEST {
            self.client = *key;
            self.source = flow.translated.source;
            self.source_port = flow.translated.source_port;
            self.sequences = [flow.sequence, sequence];
            self.flags = flow.ended | ended << 4;
        } else {
            self.client = flow.translated.reversed();
            self.source = key.destination;
            self.source_port = key.destination_port;
            self.sequences = [sequence, flow.sequence];
            self.flags = ended | flow.ended << 4;
        }
        self.flags |= if flow.bytes > 0 { CARRIED } else { 0 };
        self.kind = kind;
        self.client_mac = flow.client_mac;
        self.backend = flow.backend;
        self.client_interface = flow.client_interface & !(BY_ROUTE | IN_FRAGMENTS);
        self.created_ticks = flow.created_ticks;
        self.last_seen_ticks = flow.last_seen_ticks;
    }

    /// The record of the event, without the manager's link address.
    pub fn record(&self) -> FlowRecord {
        let mut record = FlowRecord {
            source: self.source.mapped(),
            client_mac: self.client_mac,
            backend: self.backend,
            client_interface: self.client_interface,
            created_ticks: self.created_ticks,
            last_seen_ticks: self.last_seen_ticks,
            sequences: self.sequences,
            source_port: self.source_port,
            kind: self.kind,
            ended: [self.flags & (CARRIED - 1), self.flags >> 4],
            carried: u8::from(self.flags & CARRIED != 0),
            ..FlowRecord::NONE
        };
        record.set_client(&self.client);
        record
    }
}

/// The single value of `peer_switch`, which the manager writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSwitch {
    /// 1: `flow_events` gets the records.
    pub reports: u32,
    /// Entries of `peers`; 0: no peer is alive.
    pub interfaces: u16,
    /// 1: a living peer has connections that this manager does not know. Then packets of unknown connections go to the
    /// peers without a time limit.
    pub incomplete: u16,
}

/// Value of `peers`, by the index of the manager's interface: the living peers on its network. Unused entries have no
/// link address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerLinks {
    pub links: [PeerLink; MAX_PEER_MANAGERS],
}

/// The link addresses of frames to a peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerLink {
    /// The peer's.
    pub mac: Mac,
    /// This manager's.
    pub own_mac: Mac,
}

/// Value of `unknown_flows`, by the tuple of a packet of an unknown connection, IPv4 as IPv4-mapped addresses: its
/// lookup at peers or agents.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnknownFlow {
    /// When the lookup began, CLOCK_MONOTONIC in nanoseconds.
    pub first_ns: u64,
    /// 1: `unknown_clients` has the record.
    pub reported: u32,
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<FlowRecord>() == 104 && align_of::<FlowRecord>() == 8);
    assert!(size_of::<FlowEvent>() == 56 && size_of::<FlowEvent<V6>>() == 96);
    assert!(size_of::<IntakeHeader>() == 40 && align_of::<IntakeHeader>() == 1);
    assert!(size_of::<PeerSwitch>() == 8);
    assert!(size_of::<PeerLinks>() == 112 && align_of::<PeerLinks>() == 8);
    assert!(size_of::<UnknownFlow>() == 16);
};
