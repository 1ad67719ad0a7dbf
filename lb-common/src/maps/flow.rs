//! Flows: connections under way, as two entries each.

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
    /// The tuple of nothing.
    pub const NONE: Self = Self {
        source: A::NONE,
        destination: A::NONE,
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 0,
    };

    /// Equality by one comparison, which is one way to go for the verifier instead of four.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        self.source.difference(other.source)
            | self.destination.difference(other.destination)
            | u64::from(self.ports() ^ other.ports())
            | u64::from(self.protocol ^ other.protocol)
            == 0
    }

    /// All of it as one word, mixed.
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

    /// Whether it is one of datagrams, which know no handshake.
    #[inline(always)]
    pub fn is_datagram(&self) -> bool {
        self.protocol == PROTOCOL_UDP as u32
    }

    /// The tuple of the answers to this one.
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

/// Value of `flows` and `flows6`. Each connection has two entries, one a direction, and either can rebuild the
/// other. An entry outlives its connection, until the next one takes its place or it is evicted.
///
/// For IPv4 these are 64 bytes, which makes an element of the kernel's hash table, with its 48 bytes of
/// header and the key, two whole cache lines: with many flows, lines not in the cache are what a packet costs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A = V4> {
    /// The tuple the packet leaves with.
    pub translated: FlowKey<A>,
    /// Link address of the client, or of the router to it, as its packets show it.
    pub client_mac: Mac,
    /// The manager's link address towards the client.
    pub manager_mac: Mac,
    pub backend: u32,
    /// Index of the interface on which the client is; [`super::LOOPBACK`] for the manager itself. With
    /// [`BY_ROUTE`] in a reply's entry, the manager's route to the client is used, not `client_mac`; with
    /// [`IN_FRAGMENTS`], its path is narrow.
    pub client_interface: u32,
    /// One of [`direction`].
    pub direction: u8,
    /// Bits of [`ended`].
    pub ended: u8,
    /// 1 while `active` counts the connection; of requests only.
    pub counted: u8,
    /// 1 once the tuple is free for the next connection: no packet goes this way any more.
    pub superseded: u8,
    /// When the connection began, in [`ticks`].
    pub created_ticks: u32,
    /// When the entry last carried a packet, in [`ticks`].
    pub last_seen_ticks: u32,
    /// The sequence number of the last packet that its sender may have sent, by which others are judged; of
    /// a direction that has ended, one that is no smaller than its last. 0 for datagrams.
    pub sequence: u32,
    pub bytes: u64,
}

/// The bit of a reply's `client_interface` that is set while the client does not acknowledge. Like the
/// next, it is above all indices of interfaces, so that one comparison tells the usual interface from all others.
pub const BY_ROUTE: u32 = 1 << 31;

/// The bit of a reply's `client_interface` that is set once the client's path is known to be too narrow for the
/// worker's segments: they then leave so that routers may cut them up.
pub const IN_FRAGMENTS: u32 = 1 << 30;

/// A tick in nanoseconds, about 17 ms: so short that it tells between two selections, so long that a word
/// counts them for two years.
pub const TICK_NS: u64 = 1 << 24;

/// A time of CLOCK_MONOTONIC, in units of [`TICK_NS`].
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds / TICK_NS) as u32
}

/// How many nanoseconds before `now_ns` it was `then`; none where another processor's clock was ahead.
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

/// How one side has ended its part of a connection.
pub mod ended {
    pub const FIN: u8 = 1;
    pub const RESET: u8 = 2;
    /// The other side has [`RESET`] the connection. The only bit that the other direction's packets write,
    /// and so written atomically.
    pub const BY_RESET: u8 = 4;

    /// What of one side's bits follows from what the other one's have lost.
    #[inline(always)]
    pub fn of_other(lost: u8) -> u8 {
        let reset = if lost & BY_RESET != 0 { RESET } else { 0 };
        let by_reset = if lost & RESET != 0 { BY_RESET } else { 0 };
        reset | by_reset
    }

    /// Whether a connection is over whose two sides have ended thus.
    #[inline(always)]
    pub fn both(one: u8, other: u8) -> bool {
        (one | other) & RESET != 0 || one & other & FIN != 0
    }
}
