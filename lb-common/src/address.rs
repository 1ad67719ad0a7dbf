//! The two address families.

use core::{fmt::Debug, hash::Hash};

/// An IPv4 address, network byte order.
pub type V4 = [u8; 4];
/// An IPv6 address, network byte order.
pub type V6 = [u8; 16];

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::V4 {}
    impl Sealed for super::V6 {}
}

/// An address of either family. Only [`V4`] and [`V6`] implement it.
pub trait Address: sealed::Sealed + Copy + Debug + Default + Eq + Hash + Ord + 'static {
    /// The unspecified address.
    const NONE: Self;

    /// The address as one word: itself for IPv4, a hash for IPv6.
    fn word(self) -> u32;

    /// Whether this family is IPv4.
    const IS_V4: bool = size_of::<Self>() == size_of::<V4>();

    /// The address as two words. The first word of an IPv4 address is 0.
    fn words(self) -> [u64; 2];

    /// The bits in which two addresses differ, folded into one word. 0 only for equal addresses.
    fn difference(self, other: Self) -> u64;

    /// The address in maps that hold both families: IPv4 as an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
    fn mapped(self) -> V6;

    /// The key in map `clients`: the address as [`Self::mapped`]; of IPv6, the first 64 bits.
    fn prefix(self) -> V6;

    /// Whether it is an IPv4-mapped IPv6 address, which no packet may have.
    fn is_mapped(self) -> bool;

    /// Whether a packet from the network may have this source: not an unspecified, multicast or loopback address (RFC
    /// 1122, section 3.2.1.3; RFC 4291, sections 2.5.2, 2.5.3 and 2.7).
    fn is_valid_source(self) -> bool;

    /// Whether a packet from the network may have this source and `destination`.
    fn is_valid_source_for(self, destination: Self) -> bool;

    /// The reverse of [`Self::mapped`]. Meaningless for an address of the other family.
    fn from_mapped(mapped: &V6) -> Self;
}

impl Address for V4 {
    const NONE: Self = [0; 4];

    #[inline(always)]
    fn word(self) -> u32 {
        u32::from_be_bytes(self)
    }

    #[inline(always)]
    fn words(self) -> [u64; 2] {
        [0, u32::from_ne_bytes(self).into()]
    }

    #[inline(always)]
    fn difference(self, other: Self) -> u64 {
        (u32::from_ne_bytes(self) ^ u32::from_ne_bytes(other)).into()
    }

    #[inline(always)]
    fn mapped(self) -> V6 {
        let [a, b, c, d] = self;
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    #[inline(always)]
    fn prefix(self) -> V6 {
        self.mapped()
    }

    #[inline(always)]
    fn is_mapped(self) -> bool {
        false
    }

    #[inline(always)]
    fn is_valid_source(self) -> bool {
        // As in the kernel (`ip_route_input_slow`): in 0.0.0.0/8 only the unspecified address is invalid (Linux 5.3,
        // 96125bf9985a), in 240.0.0.0/4 only the limited broadcast address.
        !matches!(
            self,
            [127 | 224..=239, ..] | [0, 0, 0, 0] | [255, 255, 255, 255]
        )
    }

    /// A link-local source reaches only link-local destinations (RFC 3927, sections 2.6.2 and 7).
    #[inline(always)]
    fn is_valid_source_for(self, destination: Self) -> bool {
        let is_link_local = |address: Self| matches!(address, [169, 254, ..]);
        self.is_valid_source()
            && self.difference(destination) != 0
            && (!is_link_local(self) || is_link_local(destination))
    }

    #[inline(always)]
    fn from_mapped(mapped: &V6) -> Self {
        // One load of a word instead of four of bytes.
        ((u128::from_le_bytes(*mapped) >> 96) as u32).to_le_bytes()
    }
}

impl Address for V6 {
    const NONE: Self = [0; 16];

    #[inline(always)]
    fn word(self) -> u32 {
        let [high, low] = halves(self);
        let mixed = high.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32) ^ low;
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }

    #[inline(always)]
    fn words(self) -> [u64; 2] {
        halves(self)
    }

    #[inline(always)]
    fn difference(self, other: Self) -> u64 {
        let ([high, low], [other_high, other_low]) = (halves(self), halves(other));
        (high ^ other_high) | (low ^ other_low)
    }

    #[inline(always)]
    fn mapped(self) -> V6 {
        self
    }

    #[inline(always)]
    fn prefix(self) -> V6 {
        let [a, b, c, d, e, f, g, h, ..] = self;
        [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    #[inline(always)]
    fn is_mapped(self) -> bool {
        let [prefix @ .., _, _, _, _] = self;
        prefix == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    }

    #[inline(always)]
    fn is_valid_source(self) -> bool {
        let [first, ..] = self;
        let [high, low] = halves(self);
        let low = low.to_be();
        // An IPv4-mapped source would stand for an IPv4 host in maps that hold both families. The kernel drops it, too
        // (`ip6_rcv_core`; Linux 5.4, 6af1799aaf3f).
        first != 0xff && (high != 0 || low > 1 && low >> 32 != 0xffff)
    }

    #[inline(always)]
    fn is_valid_source_for(self, destination: Self) -> bool {
        self.is_valid_source() && self.difference(destination) != 0
    }

    #[inline(always)]
    fn from_mapped(mapped: &V6) -> Self {
        *mapped
    }
}

#[inline(always)]
fn halves(address: V6) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = address;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes(rest),
    ]
}
