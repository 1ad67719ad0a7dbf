//! Flows: established connections, two entries each.

use super::Mac;
use crate::{
    address::{Address, V4},
    headers::PROTOCOL_UDP,
};

/// Key of `flows` and, for IPv6, of `flows6`: the tuple a packet arrives with.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey<A = V4> {
    pub source: A,
    pub destination: A,
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    /// IANA number.
    pub protocol: u32,
}

impl<A: Address> FlowKey<A> {
    /// The empty tuple.
    pub const NONE: Self = Self {
        source: A::NONE,
        destination: A::NONE,
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 0,
    };

    /// Equality by a single comparison: one branch for the verifier instead of four.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        self.source.difference(other.source)
            | self.destination.difference(other.destination)
            | u64::from(self.ports() ^ other.ports())
            | u64::from(self.protocol ^ other.protocol)
            == 0
    }

    /// A hash of the tuple.
    #[inline(always)]
    pub(super) fn mixed(&self) -> u64 {
        let word = |high: A, low: u32| u64::from(high.word()) << 32 | u64::from(low);
        word(self.source, self.ports()) ^ word(self.destination, self.protocol).rotate_left(32)
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        u32::from(u16::from_ne_bytes(self.source_port)) << 16
            | u32::from(u16::from_ne_bytes(self.destination_port))
    }

    /// Whether the protocol is UDP.
    #[inline(always)]
    pub fn is_datagram(&self) -> bool {
        self.protocol == PROTOCOL_UDP as u32
    }

    /// The tuple of replies.
    #[inline(always)]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }
}

/// Value of `flows` and `flows6`. Each connection has one entry for each direction, and each can rebuild the other.
/// An entry remains after its connection has ended, until a new connection replaces it or the kernel evicts it.
///
/// An IPv4 entry has 64 bytes. With the key and the 48 bytes of the kernel's hash element it fills two cache lines:
/// with many flows, cache misses dominate the cost of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A = V4> {
    /// The tuple after translation.
    pub translated: FlowKey<A>,
    /// Link address from which the client's packets come: the client's or a router's.
    pub client_mac: Mac,
    /// The manager's link address towards the client.
    pub manager_mac: Mac,
    pub backend: u32,
    /// Index of the client's interface; [`super::LOOPBACK`] for clients on the manager. Reply entries may add
    /// [`BY_ROUTE`] (send by the manager's route to the client instead of to `client_mac`) and [`IN_FRAGMENTS`].
    pub client_interface: u32,
    /// One of [`direction`].
    pub direction: u8,
    /// Bits of [`ended`].
    pub ended: u8,
    /// 1 while `active` counts the connection; in request entries only.
    pub counted: u8,
    /// 1: the entry matches no packet any more, and its tuple is free for a new connection.
    pub superseded: u8,
    /// When the connection began, in [`ticks`].
    pub created_ticks: u32,
    /// When the entry last carried a packet, in [`ticks`].
    pub last_seen_ticks: u32,
    /// Sequence number of the last plausible packet, to which the next ones are compared. After the direction's end:
    /// a number not below its last. 0 for datagrams.
    pub sequence: u32,
    pub bytes: u64,
}

/// Bit of a reply entry's `client_interface`, set while the client does not acknowledge. Both bits are above all
/// interface indices, so that one comparison detects the usual case.
pub const BY_ROUTE: u32 = 1 << 31;

/// Bit of a reply entry's `client_interface`, set when the client's path is too narrow for the worker's segments. The
/// segments then leave without the DF bit (IPv4), or as smaller ones (IPv6).
pub const IN_FRAGMENTS: u32 = 1 << 30;

/// A tick in nanoseconds, about 17 ms: shorter than the time between two selections, and 32 bits last for two years.
pub const TICK_NS: u64 = 1 << 24;

/// A time of CLOCK_MONOTONIC, in units of [`TICK_NS`].
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds / TICK_NS) as u32
}

/// Nanoseconds from the tick `then` to `now_ns`; 0 if another processor's clock was ahead.
#[inline(always)]
pub const fn elapsed_ns(now_ns: u64, then: u32) -> u64 {
    let passed = ticks(now_ns).wrapping_sub(then);
    if passed > u32::MAX / 2 {
        return 0;
    }
    passed as u64 * TICK_NS
}

/// Directions of a flow entry.
pub mod direction {
    /// Client to backend.
    pub const REQUEST: u8 = 0;
    /// Backend to client.
    pub const REPLY: u8 = 1;
}

/// Bits that record how one direction of a connection has ended.
pub mod ended {
    pub const FIN: u8 = 1;
    pub const RESET: u8 = 2;
    /// The other side has [`RESET`] the connection. Packets of the other direction write this bit, so writes are
    /// atomic.
    pub const BY_RESET: u8 = 4;

    /// The bits to clear in the other direction after `cleared` were cleared in this one.
    #[inline(always)]
    pub fn of_other(cleared: u8) -> u8 {
        let reset = if cleared & BY_RESET != 0 { RESET } else { 0 };
        let by_reset = if cleared & RESET != 0 { BY_RESET } else { 0 };
        reset | by_reset
    }

    /// Whether a connection is over, given the bits of both directions.
    #[inline(always)]
    pub fn both(one: u8, other: u8) -> bool {
        (one | other) & RESET != 0 || one & other & FIN != 0
    }
}
