//! Backends and their link addresses.

use super::Mac;
use crate::address::V6;

/// Value of `backends`, indexed by backend id. Id 0 means "none" and stays empty.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    pub port: u16,
    /// One of [`state`].
    pub state: u8,
    /// One of [`mode`].
    pub mode: u8,
    /// Index of the manager's interface towards the worker; 0: no route.
    pub interface: u32,
    /// Share of new connections relative to the service's other backends; 0: none.
    pub weight: u32,
    pub service: u32,
    /// The worker, or the router on the route to it. Like the other addresses, IPv4 as an IPv4-mapped address. All
    /// zeros if the router of an IPv4 worker has only an IPv6 address (RFC 8950): the kernel then looks up the route
    /// for each packet.
    pub next_hop: V6,
    pub address: V6,
    /// The manager's own address towards the worker.
    pub source: V6,
    /// Memory in the worker's last heartbeat.
    pub memory_available_bytes: u64,
    pub memory_total_bytes: u64,
    /// Index in `port_pools`; in mode [`mode::NAT`] only.
    pub port_pool: u32,
    /// Index of the only interface on which the worker's replies are accepted; 0: any.
    pub reply_interface: u32,
    /// Most open connections; 0: no limit.
    pub max_connections: u32,
    pub reserved: u32,
}

/// States of a backend.
pub mod state {
    /// No such backend, or no heartbeat received yet.
    pub const UNKNOWN: u8 = 0;
    /// Receives new connections.
    pub const UP: u8 = 1;
    /// Receives no packet; the kernel answers its flows with RST.
    pub const DOWN: u8 = 2;
    /// Receives packets of existing flows only.
    pub const DRAINING: u8 = 3;
}

/// Index in `active` and in `evicted` of the sum over all backends of mode [`mode::DSR`].
pub const ALL_DIRECT: u32 = 0;

/// Forwarding modes of a backend.
pub mod mode {
    /// Both addresses are translated; the worker replies to the manager.
    pub const NAT: u8 = 0;
    /// The manager's own server: only the port is translated.
    pub const LOCAL: u8 = 1;
    /// The manager translates nothing: the worker's DSR translator does, and the worker replies to the client.
    pub const DSR: u8 = 2;
    /// Only the destination is translated: the worker replies to the client through the manager.
    pub const ROUTED: u8 = 3;
}

/// Value of `own_links`, indexed by [`own_link`]: an interface with the XDP program, and its link address. XDP leaves
/// frames to another station to the TC program, whose kernel marks them. An interface without an entry, whose `interface`
/// is another one's, is not checked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnLink {
    pub interface: u32,
    pub reserved: u32,
    pub address: Mac,
}

/// Entries of `own_links`.
pub const OWN_LINKS: u32 = 256;

/// The entry of an interface in `own_links`.
#[inline(always)]
pub fn own_link(interface: u32) -> u32 {
    interface % OWN_LINKS
}

/// Value of `neighbours`, indexed by backend id: link addresses learned from the worker's replies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    pub worker: Mac,
    pub manager: Mac,
}

impl Neighbour {
    /// Whether link addresses are known.
    #[inline(always)]
    pub fn is_known(&self) -> bool {
        self.worker != Mac::NONE
    }
}
