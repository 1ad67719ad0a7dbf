//! The protocol between managers: encodes and decodes hellos, frames and their contents, without I/O.
//!
//! All numbers are big endian. Any host can connect to the port, so decoding never panics and bounds every length.
//! docs/peer-protocol.md describes every field.

mod bytes;
mod frame;
mod hello;
mod message;
mod record;
mod refusal;

use std::ops::RangeInclusive;

pub use bytes::ByteReader;
pub use frame::{FRAME_OVERHEAD, Frame, FrameSigner, FrameVerifier};
pub use hello::{Advertisement, Hello, MAX_INTERFACES, Role, SessionKeys, common_protocol};
pub use message::{BackendDefinition, MAX_ORDERS_BYTES, Message, Resync, Scope};
pub use record::{CLIENT_ADDRESS, LiveFields, Record, RecordKind};
pub use refusal::PeerRefusal;

/// The versions of the protocol that this memlb speaks.
pub const PROTOCOLS: RangeInclusive<u16> = 1..=1;

/// Version of all contents. A receiver skips frames of other versions and of unknown types.
const VERSION: u8 = 1;

/// The longest hello, in bytes.
pub const MAX_HELLO: usize = 2_048;

/// The longest frame, its length included.
pub const MAX_FRAME: usize = 64 * 1024;

#[cfg(test)]
mod tests;
