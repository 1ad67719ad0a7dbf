//! The ping with which an agent tests whether it reaches a manager, and the manager's reply, the pong. A ping has no
//! figures of a worker and changes nothing.

use lb_core::Sequence;
use serde::{Deserialize, Serialize};

use super::envelope::{self, DatagramKind, Envelope};
use super::{
    Refusal, VERSION, check_name,
    wire::{WireSequence, check_version},
};
use crate::keys::Key;

/// An agent's ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    pub worker: String,
    pub sequence: Sequence,
}

/// A manager's reply to a ping. It is always shorter than the ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    pub ping: Sequence,
    /// Whether the manager signed it with the worker's key.
    pub is_signed: bool,
    /// Whether no service has such a worker.
    pub is_unknown: bool,
}

/// A ping whose signature is not verified yet.
pub(super) enum PingDatagram<'a> {
    Signed(Envelope<'a>),
    Unsigned(&'a [u8]),
}

/// Recognises a ping; `None` if the datagram is something else.
pub(super) fn parse(datagram: &[u8]) -> Option<Result<PingDatagram<'_>, Refusal>> {
    if let Some(body) = DatagramKind::Ping.unsigned_body(datagram) {
        return Some(Ok(PingDatagram::Unsigned(body)));
    }
    datagram
        .starts_with(DatagramKind::Ping.prefix())
        .then(|| Envelope::parse(DatagramKind::Ping, datagram).map(PingDatagram::Signed))
}

/// Whether a datagram is a ping, valid or not.
pub fn is_ping(datagram: &[u8]) -> bool {
    parse(datagram).is_some()
}

impl Ping {
    /// Encodes it, and signs it if there is a key.
    ///
    /// # Errors
    ///
    /// Refuses an invalid name.
    pub fn encode(&self, key: Option<&Key>) -> Result<Vec<u8>, Refusal> {
        check_name(&self.worker)?;
        let wire = WirePing {
            memlb: VERSION,
            worker: self.worker.clone(),
            sequence: self.sequence.into(),
        };
        envelope::encode(DatagramKind::Ping, key, &wire)
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, Refusal> {
        let wire: WirePing = serde_json::from_slice(body)?;
        check_version(Some(wire.memlb))?;
        check_name(&wire.worker)?;
        Ok(Self {
            sequence: wire.sequence.parse()?,
            worker: wire.worker,
        })
    }

    /// Encodes the reply. `is_unknown` says that no service has such a worker.
    pub(super) fn pong(&self, key: Option<&Key>, is_unknown: bool) -> Result<Vec<u8>, Refusal> {
        let wire = WirePong {
            sequence: self.sequence.into(),
            unknown: is_unknown,
        };
        envelope::encode(DatagramKind::Pong, key, &wire)
    }
}

impl Pong {
    /// Decodes a pong, signed or not.
    ///
    /// # Errors
    ///
    /// Returns why it is not a pong, or that `key` did not sign it.
    pub fn decode(datagram: &[u8], key: Option<&Key>) -> Result<Self, Refusal> {
        let (body, is_signed) = match DatagramKind::Pong.unsigned_body(datagram) {
            Some(body) => (body, false),
            None => {
                let envelope = Envelope::parse(DatagramKind::Pong, datagram)?;
                if !key.is_some_and(|key| envelope.is_signed_by(key)) {
                    return Err(Refusal::BadSignature { key: envelope.key });
                }
                (envelope.body, true)
            }
        };
        let wire: WirePong = serde_json::from_slice(body)?;
        Ok(Self {
            ping: wire.sequence.parse()?,
            is_signed,
            is_unknown: wire.unknown,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct WirePing {
    memlb: u64,
    worker: String,
    #[serde(flatten)]
    sequence: WireSequence,
}

#[derive(Serialize, Deserialize)]
struct WirePong {
    #[serde(flatten)]
    sequence: WireSequence,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unknown: bool,
}
