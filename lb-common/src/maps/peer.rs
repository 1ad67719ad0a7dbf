//! Peers: other managers that serve the same services. Records of connections go to them, and packets of connections
//! that only they know.

use super::{Flow, FlowKey, Mac, direction};
use crate::address::{Address, V6};

/// Most peers of a manager.
pub const MAX_PEER_MANAGERS: usize = 7;
/// Capacity of `peers`: the manager's interfaces.
pub const PEER_INTERFACES: u32 = 64;
/// Capacity of `peer_addresses`.
pub const PEER_ADDRESSES: u32 = 128;
/// Capacity of `asked`.
pub const ASKED_ENTRIES: u32 = 16_384;
/// Size of map `flow_events` in bytes if there are peers: about 75,000 records.
pub const FLOW_EVENT_BYTES: u32 = 8 * 1024 * 1024;
/// Size of map `asked_events` in bytes.
pub const ASKED_EVENT_BYTES: u32 = 64 * 1024;

/// Time in nanoseconds in which packets of an unknown connection go to the peers.
pub const ASKED_NS: u64 = 1_000_000_000;
/// Time in nanoseconds after which an unknown connection is asked about again.
pub const ASKED_AGAIN_NS: u64 = 10_000_000_000;

/// A connection as one manager tells it to another: an entry of `flow_events`, and the input of program
/// `memlb_intake`. Addresses of IPv4 are IPv4-mapped.
///
/// In `flow_events`, backend, interface, link addresses and times are the sender's. The receiver replaces them by its
/// own before the intake.
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
    /// The connection has begun or, after a spoofed end, goes on.
    pub const OPENED: u8 = 1;
    /// The connection is over.
    pub const ENDED: u8 = 2;
    /// The connection exists. Does not revive one that has ended.
    pub const PRESENT: u8 = 3;
    /// In `asked_events`: an unknown client. The sequence numbers are the packet's; backend and source are empty.
    pub const ASKED: u8 = 4;
    /// For the intake only: no peer has told of the connection for long. Removes it if no packet has passed here.
    pub const FORGOTTEN: u8 = 5;
}

/// What the intake made of a [`FlowRecord`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Inserted,
    /// Known: at most its age was renewed.
    Refreshed,
    /// Took the place of another connection of the same tuple.
    Replaced,
    /// Left out: the connection known here is newer, or is carried here.
    Older,
    /// Removed: no packet has passed here.
    Removed,
    /// Marked as ended.
    Ended,
    /// Not known here, so there is nothing to end.
    Absent,
    UnknownBackend,
    TableFull,
}

impl Admission {
    /// Every outcome, in order.
    pub const ALL: [Self; 9] = [
        Self::Inserted,
        Self::Refreshed,
        Self::Replaced,
        Self::Older,
        Self::Removed,
        Self::Ended,
        Self::Absent,
        Self::UnknownBackend,
        Self::TableFull,
    ];

    /// The stable name, in snake case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inserted => "inserted",
            Self::Refreshed => "refreshed",
            Self::Replaced => "replaced",
            Self::Older => "older",
            Self::Removed => "removed",
            Self::Ended => "ended",
            Self::Absent => "absent",
            Self::UnknownBackend => "unknown_backend",
            Self::TableFull => "table_full",
        }
    }
}

impl FlowRecord {
    /// A record from one entry of a connection and the tuple of the client's packets. The sequence number and the end
    /// of the other direction stay 0.
    #[inline(always)]
    pub fn of<A: Address>(kind: u8, client: &FlowKey<A>, flow: &Flow<A>) -> Self {
        let is_request = flow.direction == direction::REQUEST;
        // The reply's `translated` is the reverse of the client's tuple.
        let mut record = Self {
            kind,
            backend: flow.backend,
            ..Self::default()
        };
        record.client = client.source.mapped();
        record.client_port = client.source_port;
        record.service_address = client.destination.mapped();
        record.service_port = client.destination_port;
        record.protocol = client.protocol as u8;
        record.client_mac = flow.client_mac;
        record.manager_mac = flow.manager_mac;
        record.client_interface = flow.client_interface & !(super::BY_ROUTE | super::IN_FRAGMENTS);
        record.created_ticks = flow.created_ticks;
        record.last_seen_ticks = flow.last_seen_ticks;
        let own = usize::from(!is_request);
        record.sequences[own] = flow.sequence;
        record.ended[own] = flow.ended;
        record.carried = u8::from(flow.bytes > 0);
        record
    }
}

/// The single value of `peer_switch`, which the manager writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSwitch {
    /// 1: `flow_events` gets the records.
    pub reports: u32,
    /// Entries of `peers`; 0: no peer lives.
    pub interfaces: u32,
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

/// Value of `asked`, by the tuple of the packet of an unknown connection, IPv4 as IPv4-mapped addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub first_ns: u64,
    /// 1: `asked_events` has the record.
    pub told: u32,
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<FlowRecord>() == 104 && align_of::<FlowRecord>() == 8);
    assert!(size_of::<PeerSwitch>() == 8);
    assert!(size_of::<PeerLinks>() == 112 && align_of::<PeerLinks>() == 8);
    assert!(size_of::<Asked>() == 16);
};

#[cfg(feature = "aya")]
mod pod {
    use super::{Asked, FlowRecord, PeerLinks, PeerSwitch};

    // SAFETY: `repr(C)`, integers and byte arrays only, and no padding, as the sizes asserted above show: every bit
    // pattern is a value.
    unsafe impl aya::Pod for FlowRecord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PeerLinks {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PeerSwitch {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Asked {}
}
