//! Internet checksum arithmetic: one's-complement differences and their application (RFC 1624).
//!
//! Sums are taken over words in memory order, which one's-complement addition permits (RFC 1071,
//! section 2 B), so that a [`Difference`] is also what the kernel's `bpf_l4_csum_replace` expects.

/// The one's-complement difference between old and new header words. Carries add up in the upper half, so that only
/// the use of a sum folds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// The difference of replacing the word `old` by `new`.
    #[inline(always)]
    pub fn of_u32(old: [u8; 4], new: [u8; 4]) -> Self {
        Self(u64::from(!u32::from_ne_bytes(old)) + u64::from(u32::from_ne_bytes(new)))
    }

    /// The difference of replacing the half-word `old` by `new`.
    #[inline(always)]
    pub fn of_u16(old: [u8; 2], new: [u8; 2]) -> Self {
        Self(u64::from(!u16::from_ne_bytes(old)) + u64::from(u16::from_ne_bytes(new)))
    }

    /// The difference of replacing the four words `old` by `new`.
    #[inline(always)]
    pub fn of_u128(old: [u8; 16], new: [u8; 16]) -> Self {
        let words = |bytes: [u8; 16]| {
            let bits = u128::from_ne_bytes(bytes);
            [0, 32, 64, 96].map(|shift| ((bits >> shift) as u32).to_ne_bytes())
        };
        let ([a, b, c, d], [e, f, g, h]) = (words(old), words(new));
        Self::of_u32(a, e)
            .plus(Self::of_u32(b, f))
            .plus(Self::of_u32(c, g))
            .plus(Self::of_u32(d, h))
    }

    /// One's-complement sum of two differences.
    #[inline(always)]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The raw 32-bit sum, as `bpf_l4_csum_replace` takes it with size 0.
    #[inline(always)]
    pub fn raw(self) -> u64 {
        // The upper half of the sum of both orders of the halves is their sum with its carry.
        self.0.wrapping_add(self.0.rotate_left(32)) >> 32
    }

    /// The checksum field `checksum` after the difference: HC' = ~(~HC + ~m + m') (RFC 1624, eqn. 3).
    #[inline(always)]
    pub fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let sum = self.plus(Self(u64::from(!u16::from_ne_bytes(checksum))));
        let sum = sum.raw() as u32;
        let folded = sum.wrapping_add(sum.rotate_left(16)) >> 16;
        (!(folded as u16)).to_ne_bytes()
    }
}

/// The one's-complement sum of an even number of bytes.
#[inline(always)]
pub fn sum(bytes: &[u8]) -> Difference {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum = Difference::default();
    for word in words {
        // From 0, whose complement adds nothing to a one's-complement sum.
        sum = sum.plus(Difference::of_u16([0; 2], *word));
    }
    sum
}

/// A checksum for a UDP header, in which 0 means that there is no checksum (RFC 768).
#[inline(always)]
pub fn udp_checksum(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] {
        [0xff, 0xff]
    } else {
        checksum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 in full, over big-endian words: the oracle, independent of the code under test.
    fn full(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn matches_the_example_of_rfc_1624() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000.
        let difference = Difference::of_u16([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(difference.apply([0xDD, 0x2F]), [0x00, 0x00]);
    }

    proptest! {
        #[test]
        fn incremental_update_equals_a_full_checksum(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..64),
            word in any::<[u8; 4]>(),
            half in any::<[u8; 2]>(),
        ) {
            bytes.truncate(bytes.len() / 2 * 2);
            bytes[0] |= 1; // An all-zero packet has two representations of its sum.
            let before = full(&bytes).to_be_bytes();
            let old_word: [u8; 4] = bytes[4..8].try_into().unwrap();
            let old_half: [u8; 2] = bytes[10..12].try_into().unwrap();
            bytes[4..8].copy_from_slice(&word);
            bytes[10..12].copy_from_slice(&half);
            let difference = Difference::of_u32(old_word, word).plus(Difference::of_u16(old_half, half));
            prop_assert_eq!(difference.apply(before), full(&bytes).to_be_bytes());
        }
    }
}
