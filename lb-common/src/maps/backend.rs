//! Backends: where connections can go, and how packets get there.

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
    /// Index of the manager's interface towards the worker; 0 while no route is known.
    pub interface: u32,
    /// Share of new connections relative to the service's other backends; 0 takes none by policy.
    pub weight: u32,
    pub service: u32,
    /// The worker itself, or the router on the way to it. Like the other addresses, IPv4 as an
    /// IPv4-mapped address. All zeros where the router of an IPv4 worker has only an IPv6 address (RFC
    /// 8950): the kernel looks the route up for each packet.
    pub next_hop: V6,
    pub address: V6,
    /// The manager's own address towards the worker.
    pub source: V6,
    /// Memory of the worker as last heard.
    pub memory_available_bytes: u64,
    pub memory_total_bytes: u64,
    /// Which of the `port_pools` holds the ports towards it; in mode [`mode::NAT`] only.
    pub port_pool: u32,
    /// Index of the only interface on which the worker's packets are taken for its; 0 for any.
    pub reply_interface: u32,
}

/// States of a backend.
pub mod state {
    /// No such backend, or nothing heard of it yet.
    pub const UNKNOWN: u8 = 0;
    /// Takes new connections.
    pub const UP: u8 = 1;
    /// Takes no packet; its flows are answered with RST.
    pub const DOWN: u8 = 2;
    /// Takes no new connection, keeps its flows.
    pub const DRAINING: u8 = 3;
}

/// Forwarding modes of a backend.
pub mod mode {
    /// Both addresses are translated; the worker answers to the manager.
    pub const NAT: u8 = 0;
    /// The manager's own server: only the port is translated.
    pub const LOCAL: u8 = 1;
    /// Nothing is translated: the worker's agent does that, and the worker answers to the client.
    pub const DSR: u8 = 2;
    /// Only the destination is translated: the worker answers to the client, by way of the manager.
    pub const ROUTED: u8 = 3;
}

/// Value of `neighbours`, indexed by backend id: link addresses learnt from the worker's replies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    pub worker: Mac,
    pub manager: Mac,
}

impl Neighbour {
    /// Whether anything was learnt.
    #[inline(always)]
    pub fn is_known(&self) -> bool {
        self.worker != Mac::NONE
    }
}
