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

pub use bytes::ByteReader;
pub use frame::{FRAME_OVERHEAD, Frame, FrameSigner, FrameVerifier, MAX_FRAME};
pub use hello::{
    Advertisement, Hello, MAX_HELLO, MAX_INTERFACES, PROTOCOLS, Role, SessionKeys, common_protocol,
};
pub use message::{BackendDefinition, MAX_ORDERS_BYTES, Message, Resync, Scope};
pub use record::{CLIENT_ADDRESS, LiveFields, Record, RecordKind};
pub use refusal::PeerRefusal;

#[cfg(test)]
mod tests;
