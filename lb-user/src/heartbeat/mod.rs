//! Heartbeat datagrams: what an agent sends and what a manager accepts.
//!
//! A datagram of version 1 is one JSON object in fewer than 1,200 bytes, so that no path fragments it:
//!
//! ```json
//! {"memlb":1,"worker":"worker1","boot":"00c0ffee00c0ffee","seq":17,"interval_ms":100,
//!  "memory":{"available_bytes":413138944,"total_bytes":734003200},
//!  "state":"ready","healthy":true,"version":"0.1.0"}
//! ```
//!
//! docs/heartbeat.md specifies every field. Unknown fields are ignored, so that the format can grow. A field never
//! changes its meaning under the same number in `memlb`. [`LegacyHeartbeat`] is the format of 2018.
//!
//! Everyone can send to the manager's port. So decoding never panics, bounds everything that it stores, and quotes no
//! control characters.

mod acknowledgement;
mod authenticator;
mod connection_query;
mod envelope;
mod legacy;
mod limits;
mod nonce;
mod ping;
mod refusal;
mod v1;
mod wire;

pub use crate::worker_name::{MAX_NAME_BYTES, NameProblem, check_name};
pub use acknowledgement::Acknowledgement;
pub use authenticator::{Authentication, Authenticator, PingSender, Refused, Signature, Verified};
pub use connection_query::{ConnectionQuery, ConnectionReply, is_connection_reply};
pub use legacy::LegacyHeartbeat;
pub use nonce::Nonce;
pub use ping::{Ping, Pong, is_ping};
pub use refusal::Refusal;
pub use v1::{CgroupMemory, Heartbeat, MemoryReport, PressureReport, check_pause};

use std::time::Duration;

use lb_core::Report;

/// A datagram must be shorter than this. A receive buffer of this size shows whether one is.
pub const SIZE_LIMIT: usize = 1_200;

/// The version of the format, in field `memlb`.
pub const VERSION: u64 = 1;

/// The most services of mode `dsr` that a worker may translate. A heartbeat with this many IPv6 addresses still fits
/// into a datagram.
pub const MAX_TRANSLATED: usize = 8;

/// The most clients of a [`ConnectionQuery`].
pub const MAX_CLIENTS: usize = 45;

/// A decoded datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    Heartbeat(Heartbeat),
    /// The second datagram of the 2018 format, which is the heartbeat.
    Legacy(LegacyHeartbeat),
    /// The first datagram of the 2018 format, the name of a file.
    LegacyFileName(String),
}

impl Decoded {
    /// Returns the worker that the sender claims to be.
    pub fn worker(&self) -> Option<&str> {
        match self {
            Self::Heartbeat(heartbeat) => Some(&heartbeat.worker),
            Self::Legacy(heartbeat) => Some(&heartbeat.worker),
            Self::LegacyFileName(_) => None,
        }
    }

    /// Returns the pause that the worker announces.
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Self::Heartbeat(heartbeat) => heartbeat.pause,
            Self::Legacy(_) | Self::LegacyFileName(_) => None,
        }
    }

    /// Returns the report for the core.
    pub fn report(&self) -> Option<Report> {
        match self {
            Self::Heartbeat(heartbeat) => Some(heartbeat.report()),
            Self::Legacy(heartbeat) => Some(heartbeat.report()),
            Self::LegacyFileName(_) => None,
        }
    }
}

/// Decodes one datagram; `legacy` accepts the 2018 format, too.
///
/// # Errors
///
/// Returns why the datagram is not a valid heartbeat.
pub fn decode(datagram: &[u8], legacy: bool) -> Result<Decoded, Refusal> {
    check_size(datagram)?;
    let first = datagram.iter().find(|byte| !byte.is_ascii_whitespace());
    match first {
        None => Err(Refusal::Empty),
        Some(b'{') => Heartbeat::decode(datagram).map(Decoded::Heartbeat),
        Some(b'[') if legacy => LegacyHeartbeat::decode(datagram).map(Decoded::Legacy),
        Some(b'[') => Err(Refusal::LegacyOff),
        Some(_) => match legacy::file_name(datagram) {
            Some(name) if legacy => Ok(Decoded::LegacyFileName(name.to_owned())),
            Some(_) => Err(Refusal::LegacyOff),
            None => Err(Refusal::NotJson),
        },
    }
}

fn check_size(datagram: &[u8]) -> Result<(), Refusal> {
    let bytes = datagram.len();
    match bytes < SIZE_LIMIT {
        true => Ok(()),
        false => Err(Refusal::Oversized { bytes }),
    }
}

#[cfg(test)]
mod tests;
