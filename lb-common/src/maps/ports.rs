//! Which ports are anybody's business here.

use crate::headers::PROTOCOL_UDP;

/// Index in `ports` of the word in which a port of a protocol has its bit: first the ports that a
/// client or a worker may send to, then those from which the manager's own servers answer; first those
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
