//! The ports that memlb tracks, and the NAT ports in use towards workers.

use crate::headers::PROTOCOL_UDP;

/// Index in `ports` of the word with the bit of a port. The order is: TCP destination ports (services, NAT ports),
/// TCP source ports (the manager's own servers, workers of mode `routed`), then the same for UDP. Packets whose bits
/// are not set are unrelated to memlb.
#[inline(always)]
pub fn port_word(protocol: u8, port: [u8; 2], is_source: bool) -> u32 {
    let field = u32::from(protocol == PROTOCOL_UDP) * 2 + u32::from(is_source);
    field * FIELD_WORDS + u32::from(u16::from_be_bytes(port)) / 64
}

/// The port's bit in its word.
#[inline(always)]
pub fn port_bit(port: [u8; 2]) -> u64 {
    1 << (u16::from_be_bytes(port) % 64)
}

/// Words of one of the four bit fields in `ports`.
const FIELD_WORDS: u32 = 65_536 / 64;
/// Capacity of `ports`.
pub const PORT_WORDS: u32 = 4 * FIELD_WORDS;

/// Value of `port_pools`: the positions at which the next searches begin. A pool holds the ports of all of the
/// manager's NAT addresses towards one endpoint of a worker; `endpoints` holds its index.
///
/// Positions number the ports of a pool: [`Settings::source_words`](super::Settings) words of 64 positions for each
/// address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortPool {
    /// Position at which the search for a free port begins; [`NO_PORT`] after a search that found none. The packet
    /// that frees a port sets it again.
    pub next_free: u32,
    /// The same for a port that the worker may hold in TIME_WAIT.
    pub next_waiting: u32,
}

/// No position.
pub const NO_PORT: u32 = u32::MAX;

/// A value for each of two ports in turn: the kernel rounds each entry of an array up to 8 bytes.
pub type PortPair = [u32; 2];

/// Value of `port_words`: the states of 64 ports of a pool, one bit each, lowest position first.
///
/// The words are hints. The flow table decides whether a port is in use: a wrong bit costs a look-up or leaves a port
/// unused for a while, but never gives a port to two connections.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortWord {
    /// Ports in use, or that the worker may hold in TIME_WAIT. The others are free: never used, or the last
    /// connection was reset or closed by the client first.
    pub used: u64,
    /// The ports of `used` whose connection is over. The worker may hold the tuple in TIME_WAIT (RFC 9293, section
    /// 3.6.1).
    pub waiting: u64,
}

/// Duration of TIME_WAIT in Linux, in nanoseconds (`TCP_TIMEWAIT_LEN`, include/net/tcp.h).
pub const TIME_WAIT_NS: u64 = 60_000_000_000;
/// Most NAT addresses of one family.
pub const MAX_NAT_SOURCES: u32 = 8;
/// Capacity of `nat_sources`: IPv4 addresses, then IPv6 addresses.
pub const NAT_SOURCES: u32 = 2 * MAX_NAT_SOURCES;
/// Ports in a [`PortWord`].
pub const PORTS_PER_WORD: u32 = u64::BITS;
/// Capacity of `port_words` for a backend with the default range of ports and one address.
pub const DEFAULT_SOURCE_WORDS: u32 = 28_672 / PORTS_PER_WORD;
