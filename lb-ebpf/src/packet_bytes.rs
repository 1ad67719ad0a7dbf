//! Checked views of the packet's bytes.

use lb_common::{
    headers::{ETHERNET_LEN, PROTOCOL_TCP, PROTOCOL_UDP},
    packet::{FrameBytes, Header, IpAddress, Located, Segment, Transport},
};

/// The linear part of a packet.
#[derive(Clone, Copy, Debug)]
pub struct PacketBytes {
    start: usize,
    end: usize,
}

impl PacketBytes {
    /// Bounds views to the addresses `start..end`.
    ///
    /// # Safety
    ///
    /// * `start..end` is packet data of the running program: readable and writable until a helper changes the
    ///   packet, after which no view may be used.
    /// * No two views of the same bytes are in use at a time.
    #[inline(always)]
    pub unsafe fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// The addresses of the first byte and of the byte after the last.
    #[inline(always)]
    pub fn bounds(self) -> (usize, usize) {
        (self.start, self.end)
    }
}

impl<'a> FrameBytes<'a> for PacketBytes {
    #[inline(always)]
    fn at<T: Header>(self, offset: usize) -> Option<&'a mut T> {
        let header = self.start + offset;
        if header + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet, as `new` requires and the verifier checks again. A `Header` has alignment 1,
        // and every bit pattern is one. `new` requires that no two views of the same bytes are in use.
        Some(unsafe { &mut *(header as *mut T) })
    }
}

/// Views the headers of the segment or datagram at `located`, if all of them are there.
#[inline(always)]
pub fn segment<'a, A: IpAddress>(bytes: PacketBytes, located: Located) -> Option<Segment<'a, A>> {
    let transport = match located.protocol {
        PROTOCOL_TCP => Transport::Tcp(bytes.at(located.offset)?),
        PROTOCOL_UDP => Transport::Udp(bytes.at(located.offset)?),
        _ => return None,
    };
    Some(Segment {
        ethernet: bytes.at(0)?,
        ip: bytes.at(ETHERNET_LEN)?,
        transport,
    })
}

/// The location of a transport header, in a form for maps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeaderOffset {
    protocol: u32,
    offset: u32,
}

impl HeaderOffset {
    /// Mask that bounds the offset for the verifier.
    const OFFSETS: u32 = 0x1ff;

    #[inline(always)]
    pub fn located(self) -> Located {
        Located {
            protocol: self.protocol as u8,
            offset: (self.offset & Self::OFFSETS) as usize,
        }
    }
}

impl From<Located> for HeaderOffset {
    #[inline(always)]
    fn from(located: Located) -> Self {
        Self {
            protocol: located.protocol.into(),
            offset: located.offset as u32,
        }
    }
}
