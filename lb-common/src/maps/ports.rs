//! Which ports are anybody's business here.

/// Index in `ports` of the word in which a port has its bit: first the ports that a client or a
/// worker may send to, then those from which the manager's own servers answer. A packet
/// without its bit is nobody's business here.
#[inline(always)]
pub fn port_word(port: [u8; 2], is_source: bool) -> u32 {
    let word = u32::from(u16::from_be_bytes(port)) / 64;
    if is_source { PORT_WORDS + word } else { word }
}

/// The port's bit in its word.
#[inline(always)]
pub fn port_bit(port: [u8; 2]) -> u64 {
    1 << (u16::from_be_bytes(port) % 64)
}

/// Words of one of the two bit fields in `ports`.
pub const PORT_WORDS: u32 = 65_536 / 64;
