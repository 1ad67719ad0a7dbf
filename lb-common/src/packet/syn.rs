//! A stored SYN: the frame that the manager sends again, to another worker.

use super::after_hop;
use crate::{
    address::Address,
    checksum::{Difference, sum},
    headers::{ETHERNET_LEN, Ipv6Header, PROTOCOL_TCP, TcpHeader},
    maps::FlowKey,
};

/// Longest TCP header, in bytes.
const TCP_LEN: usize = 60;

/// Longest frame of a SYN without data, in bytes.
pub const SYN_LEN: usize = ETHERNET_LEN + size_of::<Ipv6Header>() + TCP_LEN;

/// The frame of a SYN as it arrived, and zeros after it. Value of map `syns`, by slot of the handshake.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    /// Bytes of the frame; 0: none is stored, because the SYN has data, IPv4 options or extension headers.
    pub length: u32,
    pub frame: [u8; SYN_LEN],
    pub reserved: [u8; 2],
}

/// Offsets in [`Syn::frame`], by address family.
struct Offsets {
    length: usize,
    protocol: usize,
    time_to_live: usize,
    source: usize,
    tcp: usize,
}

impl Offsets {
    const fn of<A: Address>() -> Self {
        if A::IS_V4 {
            Self {
                length: ETHERNET_LEN + 2,
                protocol: ETHERNET_LEN + 9,
                time_to_live: ETHERNET_LEN + 8,
                source: ETHERNET_LEN + 12,
                tcp: ETHERNET_LEN + 20,
            }
        } else {
            Self {
                length: ETHERNET_LEN + 4,
                protocol: ETHERNET_LEN + 6,
                time_to_live: ETHERNET_LEN + 7,
                source: ETHERNET_LEN + 8,
                tcp: ETHERNET_LEN + 40,
            }
        }
    }
}

impl Syn {
    pub const NONE: Self = Self {
        length: 0,
        frame: [0; SYN_LEN],
        reserved: [0; 2],
    };

    /// Sets the length after `copied` bytes of a frame were copied, and clears what follows the headers.
    #[inline(always)]
    pub fn complete<A: Address>(&mut self, copied: usize) {
        let at = const { Offsets::of::<A>() };
        let frame = &mut self.frame;
        let claimed = u32::from(u16::from_be_bytes([frame[at.length], frame[at.length + 1]]));
        let before = if A::IS_V4 { ETHERNET_LEN } else { at.tcp };
        let length = claimed + before as u32;
        let header = u32::from(frame[at.tcp + 12] >> 4) * 4;
        let (mask, plain) = if A::IS_V4 { (0xff, 0x45) } else { (0xf0, 0x60) };
        let is_kept = frame[ETHERNET_LEN] & mask == plain
            && frame[at.protocol] == PROTOCOL_TCP
            && header >= size_of::<TcpHeader>() as u32
            && length == header + at.tcp as u32
            && length <= copied as u32;
        self.length = if is_kept { length } else { 0 };
        let (options, _) =
            frame[at.tcp + size_of::<TcpHeader>()..at.tcp + TCP_LEN].as_chunks_mut::<4>();
        for (word, option) in (5..).zip(options) {
            if 4 * word >= header {
                *option = [0; 4];
            }
        }
        if A::IS_V4 {
            frame[at.tcp + TCP_LEN..].fill(0);
        }
    }

    /// Whether this is the SYN of the client with this tuple and initial sequence number.
    #[inline(always)]
    pub fn is_of<A: Address>(&self, client: &FlowKey<A>, sequence: u32) -> bool {
        let at = const { Offsets::of::<A>() };
        let pair = |offset: usize| [self.frame[at.tcp + offset], self.frame[at.tcp + offset + 1]];
        let ([a, b], [c, d]) = (pair(4), pair(6));
        let source = read::<A>(&self.frame, at.source);
        let destination = read::<A>(&self.frame, at.source + size_of::<A>());
        self.length != 0
            && client.source.difference(source) | client.destination.difference(destination) == 0
            && pair(0) == client.source_port
            && pair(2) == client.destination_port
            && u32::from_be_bytes([a, b, c, d]) == sequence
    }

    /// Translates the headers to `translated`, decrements the time to live, and sets all checksums.
    #[inline(always)]
    pub fn translate<A: Address>(&mut self, translated: &FlowKey<A>) {
        let at = const { Offsets::of::<A>() };
        let frame = &mut self.frame;
        frame[at.time_to_live] = after_hop(frame[at.time_to_live]);
        write(frame, at.source, translated.source);
        write(frame, at.source + size_of::<A>(), translated.destination);
        frame[at.tcp..at.tcp + 2].copy_from_slice(&translated.source_port);
        frame[at.tcp + 2..at.tcp + 4].copy_from_slice(&translated.destination_port);
        if A::IS_V4 {
            const CHECKSUM: usize = ETHERNET_LEN + 10;
            frame[CHECKSUM..CHECKSUM + 2].fill(0);
            let checksum = sum(&frame[ETHERNET_LEN..at.tcp]).apply([0xff; 2]);
            frame[CHECKSUM..CHECKSUM + 2].copy_from_slice(&checksum);
        }
        frame[at.tcp + 16..at.tcp + 18].fill(0);
        let segment = sum(&frame[at.tcp..at.tcp + TCP_LEN]);
        let checksum = segment.plus(self.pseudo_header::<A>()).apply([0xff; 2]);
        self.set_checksum::<A>(checksum);
    }

    /// Replaces the TCP checksum by the sum of the pseudo header, which the network card completes.
    #[inline(always)]
    pub fn set_partial_checksum<A: Address>(&mut self) {
        let [one, other] = self.pseudo_header::<A>().apply([0xff; 2]);
        self.set_checksum::<A>([!one, !other]);
    }

    #[inline(always)]
    fn set_checksum<A: Address>(&mut self, checksum: [u8; 2]) {
        let at = const { Self::checksum_offset::<A>() };
        self.frame[at..at + 2].copy_from_slice(&checksum);
    }

    /// Offset of the TCP checksum in the frame.
    pub const fn checksum_offset<A: Address>() -> usize {
        Offsets::of::<A>().tcp + 16
    }

    /// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1).
    #[inline(always)]
    fn pseudo_header<A: Address>(&self) -> Difference {
        let at = const { Offsets::of::<A>() };
        let length = (self.length as u16).wrapping_sub(at.tcp as u16);
        sum(&self.frame[at.source..at.source + 2 * size_of::<A>()])
            .plus(Difference::of_u16([0; 2], length.to_be_bytes()))
            .plus(Difference::of_u16([0; 2], [0, PROTOCOL_TCP]))
    }
}

/// The address at an offset.
#[inline(always)]
fn read<A: Address>(frame: &[u8; SYN_LEN], at: usize) -> A {
    let mut mapped = [0; 16];
    let length = size_of::<A>();
    mapped[16 - length..].copy_from_slice(&frame[at..at + length]);
    A::from_mapped(&mapped)
}

/// Writes an address to an offset.
#[inline(always)]
fn write<A: Address>(frame: &mut [u8; SYN_LEN], at: usize, address: A) {
    let length = size_of::<A>();
    frame[at..at + length].copy_from_slice(&address.mapped()[16 - length..]);
}

const _: () = assert!(size_of::<Syn>() == 120);
