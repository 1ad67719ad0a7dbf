//! Link addresses.

/// A link address as one word, first byte lowest, so that the datapath copies and compares it at once. The two bytes
/// above hold the VLAN tag of its frames; 0: untagged.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mac(u64);

impl Mac {
    /// No address.
    pub const NONE: Self = Self(0);

    /// Marks a tag as present. Replaces the DEI bit (IEEE 802.1Q, section 9.6), which memlb ignores.
    const TAGGED: u16 = 0x1000;

    #[inline(always)]
    pub fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Reads an address from a header. Like [`Self::write`] it accesses a word and a half-word instead of six bytes.
    #[inline(always)]
    pub fn read(header: &[u8; 6]) -> Self {
        let (Some(first), Some(last)) = (header.first_chunk(), header.last_chunk()) else {
            return Self::NONE;
        };
        let (first, last) = (u32::from_le_bytes(*first), u16::from_le_bytes(*last));
        Self(u64::from(first) | u64::from(last) << 32)
    }

    /// Writes the address into a header.
    #[inline(always)]
    pub fn write(self, header: &mut [u8; 6]) {
        if let Some(first) = header.first_chunk_mut() {
            *first = (self.0 as u32).to_le_bytes();
        }
        if let Some(last) = header.last_chunk_mut() {
            *last = ((self.0 >> 32) as u16).to_le_bytes();
        }
    }

    /// A VLAN tag's control information, marked as present.
    #[inline(always)]
    pub fn tag_of(control: u16) -> u16 {
        control | Self::TAGGED
    }

    /// The control information of a tag, without the mark.
    #[inline(always)]
    pub fn untagged(tag: u16) -> u16 {
        tag & !Self::TAGGED
    }

    /// The same address in frames with this tag.
    #[inline(always)]
    pub fn tagged(self, tag: u16) -> Self {
        Self(self.0 | u64::from(tag) << 48)
    }

    /// Whether it can be a frame's source: neither multicast nor zero (IEEE 802, section 8.2).
    #[inline(always)]
    pub fn is_station(self) -> bool {
        self.0 & 1 == 0 && self.0 << 16 != 0
    }

    /// Whether both are the same address, whatever their tags.
    #[inline(always)]
    pub fn is_same_station(self, other: Self) -> bool {
        (self.0 ^ other.0) << 16 == 0
    }

    /// The tag, marked as present; 0: untagged.
    #[inline(always)]
    pub fn tag(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

impl From<[u8; 6]> for Mac {
    #[inline(always)]
    fn from(bytes: [u8; 6]) -> Self {
        Self::read(&bytes)
    }
}
