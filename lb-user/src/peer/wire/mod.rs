//! What managers send each other: hellos, frames and what is in them. Pure: bytes in, values out, and the reverse.
//!
//! All numbers are big endian. Everyone can connect to the port: decoding never panics, and bounds everything.
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
    About, Hello, MAX_HELLO, MAX_INTERFACES, PROTOCOLS, Role, SessionKeys, common_protocol,
};
pub use message::{BackendName, MAX_ORDERS_BYTES, Message, Resync, Scope};
pub use record::{Live, OWN_ADDRESS, Record, RecordKind};
pub use refusal::Refusal;

#[cfg(test)]
mod tests;
