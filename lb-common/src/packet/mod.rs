//! Packets as views of their headers: are they ours to steer, under which tuple, and how are they
//! rewritten.

mod bytes;
mod icmp_error;
mod ip;
mod segment;
pub mod too_large;

pub use bytes::{FrameBytes, Header};
pub use icmp_error::{ErrorMessage, IcmpError};
pub use ip::{IpHeader, Located, MAX_EXTENSION_BYTES, after_hop};
pub use segment::{PortsFrame, Segment, TcpFrame, Transport};

use crate::checksum::Difference;

/// How much of a frame there is.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Length of the whole frame, link header included, in bytes.
    pub bytes: u32,
    /// Whether it stands for several packets (GSO), so that its length fields may not describe it.
    pub coalesced: bool,
}

/// What a rewrite changed, as far as the checksum of the transport header covers it. The checksum is
/// the caller's, because only the kernel knows whether it is complete or half computed.
#[derive(Clone, Copy, Debug)]
pub struct Rewritten {
    /// In the pseudo header.
    pub addresses: Difference,
    /// In the transport header and behind it.
    pub ports: Difference,
}

impl Rewritten {
    /// Brings a complete checksum up to date.
    #[inline(always)]
    pub fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        self.addresses.plus(self.ports).apply(checksum)
    }
}
