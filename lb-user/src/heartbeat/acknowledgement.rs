//! The acknowledgement of a signed heartbeat, with the nonce for the next ones.

use lb_core::{BootId, Sequence};
use serde::{Deserialize, Serialize};

use super::envelope::{self, Envelope, Kind};
use super::nonce::Nonce;
use super::{Refusal, wire};
use crate::keys::Key;

/// The reply to one heartbeat. It is shorter than any heartbeat, so that a manager cannot be used to amplify
/// traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The heartbeat that it acknowledges.
    pub heartbeat: Sequence,
    /// The nonce of the next heartbeats.
    pub nonce: Nonce,
    /// Whether the heartbeat counted; if not, the agent sends the next one at once.
    pub fresh: bool,
    /// Whether the agent must use a new boot id, because its sequence numbers are lower than before a
    /// silence.
    pub new_boot: bool,
}

impl Acknowledgement {
    /// Encodes and signs it.
    ///
    /// # Errors
    ///
    /// None: it consists of numbers.
    pub fn encode(&self, key: &Key) -> Result<Vec<u8>, Refusal> {
        let wire = Wire {
            boot: self.heartbeat.boot.to_string(),
            seq: self.heartbeat.number,
            nonce: self.nonce.to_string(),
            fresh: self.fresh,
            new_boot: self.new_boot,
        };
        let body = serde_json::to_vec(&wire).map_err(|error| Refusal::of_parser(&error))?;
        Ok(envelope::seal(Kind::Acknowledgement, key, &body))
    }

    /// Checks the signature, then decodes.
    ///
    /// # Errors
    ///
    /// Returns why it is not valid.
    pub fn decode(datagram: &[u8], key: &Key) -> Result<Self, Refusal> {
        let envelope = Envelope::parse(Kind::Acknowledgement, datagram)?;
        if envelope.key != key.id() {
            return Err(Refusal::UnknownKey { key: envelope.key });
        }
        if !envelope.is_signed_by(key) {
            return Err(Refusal::BadSignature { key: envelope.key });
        }
        let wire: Wire =
            serde_json::from_slice(envelope.body).map_err(|error| Refusal::of_parser(&error))?;
        Ok(Self {
            heartbeat: Sequence {
                boot: wire::number(&wire.boot)
                    .map(BootId)
                    .ok_or(Refusal::BadBoot)?,
                number: wire.seq,
            },
            nonce: wire::number(&wire.nonce)
                .map(Nonce)
                .ok_or(Refusal::BadNonce)?,
            fresh: wire.fresh,
            new_boot: wire.new_boot,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    boot: String,
    seq: u64,
    nonce: String,
    fresh: bool,
    /// Absent in replies of older managers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    new_boot: bool,
}
