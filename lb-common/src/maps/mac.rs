//! Link addresses.

/// A link address as one word, first byte lowest, so that the datapath copies and compares it whole.
/// In the two bytes above stands the VLAN tag of the frames that it was seen in; 0 for none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mac(u64);

impl Mac {
    /// The address of nobody.
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }
}

impl Mac {
    /// Marks a tag as present; its own bit says something that no network cares for (the DEI, IEEE
    /// 802.1Q, section 9.6).
    const TAGGED: u16 = 0x1000;

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

    /// The same address, in frames with this tag.
    #[inline(always)]
    pub fn tagged(self, tag: u16) -> Self {
        Self(self.0 | u64::from(tag) << 48)
    }

    /// Whether a frame's sender can have it: it is no group's and not zero (IEEE 802, section 8.2).
    #[inline(always)]
    pub fn is_station(self) -> bool {
        self.0 & 1 == 0 && self.0 << 16 != 0
    }

    /// The tag, marked as present; 0 for none.
    #[inline(always)]
    pub fn tag(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

impl From<[u8; 6]> for Mac {
    #[inline(always)]
    fn from([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }
}
