//! The acknowledgement of a signed heartbeat, with the nonce for the next ones.

use lb_core::Sequence;
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::envelope::{self, DatagramKind};
use super::nonce::Nonce;
use super::wire::{self, WireSequence};
use crate::keys::Key;

/// The reply to a heartbeat. It is shorter than any heartbeat, so that a manager amplifies no traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The acknowledged heartbeat.
    pub heartbeat: Sequence,
    /// The nonce of the next heartbeats.
    pub nonce: Nonce,
    /// Whether the heartbeat counted. If it did not, the agent sends the next one at once.
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
        let wire = WireAcknowledgement {
            heartbeat: self.heartbeat.into(),
            nonce: self.nonce.to_string(),
            fresh: self.fresh,
            new_boot: self.new_boot,
        };
        envelope::encode(DatagramKind::Acknowledgement, Some(key), &wire)
    }

    /// Checks the signature, then decodes.
    ///
    /// # Errors
    ///
    /// Returns why it is not valid.
    pub fn decode(datagram: &[u8], key: &Key) -> Result<Self, Refusal> {
        let body = envelope::signed_body(DatagramKind::Acknowledgement, datagram, Some(key))?;
        let wire: WireAcknowledgement = serde_json::from_slice(body)?;
        Ok(Self {
            heartbeat: wire.heartbeat.parse()?,
            nonce: wire::nonce(&wire.nonce)?,
            fresh: wire.fresh,
            new_boot: wire.new_boot,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct WireAcknowledgement {
    #[serde(flatten)]
    heartbeat: WireSequence,
    nonce: String,
    fresh: bool,
    /// Absent in replies of older managers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    new_boot: bool,
}
