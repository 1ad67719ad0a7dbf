//! Why a hello or a frame is refused.

use thiserror::Error;

use super::{MAX_FRAME, MAX_HELLO, PROTOCOLS};

/// The reason of a refusal. Each has a stable name for counters.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PeerRefusal {
    #[error("the first bytes are not those of a peer's hello")]
    NotHello,
    #[error("the hello has {bytes} bytes, more than {MAX_HELLO}")]
    OversizedHello { bytes: usize },
    #[error("the hello is malformed")]
    MalformedHello,
    #[error("this manager has no [[peer]] with the name {name:?}")]
    UnknownPeer { name: String },
    #[error("it has this manager's own name, {name:?}: set manager.name on one of the two")]
    OwnName { name: String },
    #[error("its name is {name:?}, and the [[peer]] of this address is {expected:?}")]
    OtherName { name: String, expected: String },
    #[error("it has another key: install the same peer key on both managers")]
    OtherKey,
    #[error(
        "the signature is wrong: the message was changed on its way, or signed with another key"
    )]
    BadSignature,
    /// A recorded hello, or a frame that is repeated, missing or of another session.
    #[error("it is replayed: a recorded hello, or a frame out of sequence")]
    Replayed,
    #[error(
        "it speaks versions {first} to {last} of the peers' protocol, and this manager {} to {}: upgrade the \
         older one",
        PROTOCOLS.start(), PROTOCOLS.end()
    )]
    Protocol { first: u16, last: u16 },
    #[error("a frame has {bytes} bytes, more than {MAX_FRAME} or fewer than its header")]
    BadLength { bytes: usize },
    #[error("the connection ended within a frame")]
    Cut,
    #[error("the content of a frame of type {kind} does not match its header")]
    Malformed { kind: u8 },
    #[error("too many connections wait for their hello")]
    TooMany,
    #[error("the hello did not arrive in time")]
    Late,
}

impl PeerRefusal {
    /// Returns the name of the counter. Names never change.
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
