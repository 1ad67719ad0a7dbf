//! Why a hello or a frame is refused.

use thiserror::Error;

use super::{MAX_FRAME, MAX_HELLO};

/// Each reason has a stable name for counters.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("the first bytes are not those of a peer's hello")]
    NotHello,
    #[error("the hello has {bytes} bytes, more than {MAX_HELLO}")]
    OversizedHello { bytes: usize },
    #[error("the hello is malformed")]
    MalformedHello,
    #[error("no [[peer]] of this manager has the name {name:?}")]
    UnknownPeer { name: String },
    #[error("it has this manager's own name, {name:?}: set manager.name on one of the two")]
    OwnName { name: String },
    #[error("its name is {name:?}, and the [[peer]] of this address is {expected:?}")]
    OtherName { name: String, expected: String },
    #[error("it has another key: install the same peer key on both managers")]
    OtherKey,
    #[error("the signature is wrong: changed on its way, or made without the key")]
    BadSignature,
    /// A recorded hello, or a frame that is repeated, left out or of another session.
    #[error("it is a repetition: a recorded hello, or a frame out of order")]
    Replayed,
    #[error(
        "it speaks versions {first} to {last} of the peers' protocol, and this manager {} to {}: upgrade the \
         older one",
        super::PROTOCOLS.start(), super::PROTOCOLS.end()
    )]
    Protocol { first: u16, last: u16 },
    #[error("a frame has {bytes} bytes, more than {MAX_FRAME} or fewer than its header")]
    BadLength { bytes: usize },
    #[error("the connection ended within a frame")]
    Cut,
    #[error("a frame of type {kind} does not hold what its header says")]
    Malformed { kind: u8 },
    #[error("too many connections wait for their hello")]
    TooMany,
    #[error("the hello did not come in time")]
    Late,
}

impl Refusal {
    /// Returns the name of the counter; it never changes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotHello => "not_hello",
            Self::OversizedHello { .. } => "oversized_hello",
            Self::MalformedHello => "malformed_hello",
            Self::UnknownPeer { .. } => "unknown_peer",
            Self::OwnName { .. } => "own_name",
            Self::OtherName { .. } => "other_name",
            Self::OtherKey => "other_key",
            Self::BadSignature => "bad_signature",
            Self::Replayed => "replayed",
            Self::Protocol { .. } => "protocol",
            Self::BadLength { .. } => "bad_length",
            Self::Cut => "cut",
            Self::Malformed { .. } => "malformed",
            Self::TooMany => "too_many",
            Self::Late => "late",
        }
    }
}
