//! Ports: which ones concern memlb at all, and which of the manager's ports are in use towards a worker.

use crate::headers::PROTOCOL_UDP;

/// Index in `ports` of the word in which a port of a protocol has its bit: first the ports that a
/// client or a worker may send to, then those from which the manager's own servers and the workers of mode `routed` answer; first those
/// of TCP, then those of UDP. A packet without its bit is nobody's business here.
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

/// Value of `port_pools`, by pool: where the searches for a port go on. A pool holds the ports of all of the
/// manager's addresses for NAT towards one endpoint of a worker, and `endpoints` names it.
///
/// Positions number the ports of a pool: [`Settings::source_words`](super::Settings) words of 64 positions for
/// each address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortPool {
    /// Position at which the search for a free port begins.
    pub next_free: u32,
    /// The same of a port that the worker may still keep in TIME_WAIT.
    pub next_waiting: u32,
}

/// Value of `port_words`: the states of 64 ports of a pool, a bit each, lowest position first.
///
/// The words say where to look for a port. Whether a port is in use, the flow table says: a wrong bit costs
/// a look-up or leaves a port unused for a while, and never gives a port to two connections.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortWord {
    /// Ports that are in use, or that the worker may still keep. The others are known to be free: never used,
    /// or the last connection was reset or closed by the client first.
    pub used: u64,
    /// Those of `used` whose connection is over on this side. The worker may keep the tuple in TIME_WAIT
    /// (RFC 9293, section 3.6.1).
    pub waiting: u64,
}

/// How long Linux keeps TIME_WAIT, in nanoseconds (`TCP_TIMEWAIT_LEN`, include/net/tcp.h).
pub const TIME_WAIT_NS: u64 = 60_000_000_000;
/// How many addresses of one family the manager may use for NAT.
pub const MAX_NAT_SOURCES: u32 = 8;
/// Capacity of `nat_sources`: those of IPv4, then those of IPv6.
pub const NAT_SOURCES: u32 = 2 * MAX_NAT_SOURCES;
/// How many ports a [`PortWord`] describes.
pub const PORTS_PER_WORD: u32 = u64::BITS;
/// Capacity of `port_words` for a backend with the default range of ports and one address.
pub const DEFAULT_SOURCE_WORDS: u32 = 28_672 / PORTS_PER_WORD;
