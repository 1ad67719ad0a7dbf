//! Packets as views of their headers: validation, tuple, rewriting.

mod bytes;
mod icmp_error;
mod ip;
mod segment;
mod syn;
pub mod too_large;

pub use bytes::{FrameBytes, Header};
pub use icmp_error::{ErrorMessage, IcmpError};
pub use ip::{IpAddress, IpHeader, Located, MAX_EXTENSION_BYTES, after_hop};
pub use segment::{PortsFrame, Segment, TcpFrame, Transport};
pub use syn::{SYN_LEN, Syn};

use crate::checksum::Difference;

/// The size of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Length of the whole frame, link header included, in bytes.
    pub bytes: u32,
    /// Whether it is a GSO packet, whose length fields may not match.
    pub coalesced: bool,
}

/// Differences of a rewrite that the transport checksum covers. The caller updates the checksum, because only the
/// kernel knows whether it is complete or partial.
#[derive(Clone, Copy, Debug)]
pub struct Rewritten {
    /// In the pseudo header.
    pub addresses: Difference,
    /// In the transport header and after it.
    pub ports: Difference,
}

impl Rewritten {
    /// Updates a complete checksum.
    #[inline(always)]
    pub fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        self.addresses.plus(self.ports).apply(checksum)
    }
}
