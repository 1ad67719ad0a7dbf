//! Decides which datagrams count as heartbeats, by rate of the source, size, signature, format and freshness.
//!
//! It checks them in this order, so that an unauthenticated datagram costs little: it parses and allocates nothing
//! before it has verified the signature.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_core::Sequence;

use super::acknowledgement::Acknowledgement;
use super::connection_query::{self, ConnectionReply};
use super::envelope::{DatagramKind, Envelope};
use super::limits::SourceLimits;
use super::nonce::{Freshness, Nonces};
use super::ping::{self, Ping, PingDatagram};
use super::{Decoded, Heartbeat, Refusal, check_size, decode};
use crate::keys::{Key, KeyId, KeyRing};

/// How often the manager acknowledges heartbeats with the newest nonce, so that the agent can measure the round-trip
/// time. A heartbeat that announces a pause is always acknowledged.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);

/// How long after a signed heartbeat unsigned ones of the same worker are refused.
const SIGNED_FOR: Duration = Duration::from_secs(10);

lb_common::named_enum! {
    /// Whether heartbeats must be signed.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Authentication {
        /// Signatures are not verified.
        Off = "off",
        /// Unsigned heartbeats count, unless the worker also sends signed ones.
        Permissive = "permissive",
        /// Only signed heartbeats count.
        Enforce = "enforce",
    }
}

/// A datagram that counts as a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub decoded: Decoded,
    /// `None` if it is unsigned or authentication is off.
    pub signature: Option<Signature>,
}

/// A valid and fresh signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    pub key: KeyId,
    freshness: Freshness,
}

/// A datagram that does not count as a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub refusal: Refusal,
    /// The reply to send: a challenge if a valid heartbeat may be old, or the pong to a ping.
    pub reply: Option<Vec<u8>>,
    /// The sender of a ping, if it may learn whether a service has its worker.
    pub sender: Option<PingSender>,
}

/// The sender of a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingSender {
    pub worker: String,
    /// The pong if no service has this worker.
    pub if_unknown: Vec<u8>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            reply: None,
            sender: None,
        }
    }
}

/// The meaning of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcknowledgementKind {
    /// The heartbeat counts.
    Counted,
    /// The heartbeat may be old: the agent must send another one with this nonce.
    NotFresh,
    /// The agent must draw a new boot id.
    NewBoot,
}

/// Verifies the datagrams that a manager receives.
#[derive(Debug)]
pub struct Authenticator {
    authentication: Authentication,
    legacy: bool,
    keys: KeyRing,
    nonces: Nonces,
    limits: SourceLimits,
    /// When each worker with a key last sent a signed heartbeat.
    last_signed: BTreeMap<String, Instant>,
    /// When a heartbeat of each known key was last acknowledged.
    acknowledged: BTreeMap<KeyId, Instant>,
}

impl Authenticator {
    /// Creates an authenticator. `legacy` accepts the unsigned 2018 format, too.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if there is no random number.
    pub fn new(
        authentication: Authentication,
        legacy: bool,
        keys: KeyRing,
        now: Instant,
    ) -> Result<Self> {
        Ok(Self {
            authentication,
            legacy,
            keys,
            nonces: Nonces::new(now)?,
            limits: SourceLimits::new(now),
            last_signed: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
        })
    }

    pub fn authentication(&self) -> Authentication {
        self.authentication
    }

    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Replaces the settings and the keys. Heartbeats that are signed with a removed key no longer count.
    pub fn reconfigure(&mut self, authentication: Authentication, legacy: bool, keys: KeyRing) {
        self.authentication = authentication;
        self.legacy = legacy;
        self.acknowledged.retain(|id, _| keys.find(*id).is_some());
        self.last_signed
            .retain(|worker, _| keys.of_worker(worker).next().is_some());
        self.keys = keys;
    }

    /// Verifies one datagram. The caller then calls [`Self::record_accepted`] or [`Self::record_refused`].
    ///
    /// # Errors
    ///
    /// Returns the reason why it does not count, and a reply if one is due.
    pub fn verify(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
    ) -> Result<Verified, Refused> {
        self.nonces.rotate(now);
        if !self.limits.allows(from, now) {
            return Err(Refusal::RateLimited.into());
        }
        check_size(datagram)?;
        if let Some(ping) = ping::parse(datagram) {
            return Err(self.handle_ping(ping?));
        }
        if !datagram.starts_with(DatagramKind::Heartbeat.prefix()) {
            return Ok(self.verify_unsigned(datagram, now)?);
        }
        let envelope = Envelope::parse(DatagramKind::Heartbeat, datagram)?;
        match self.authentication {
            Authentication::Off => Ok(Verified {
                decoded: decode(envelope.body, false)?,
                signature: None,
            }),
            Authentication::Permissive | Authentication::Enforce => {
                self.verify_signed(&envelope, from)
            }
        }
    }

    fn verify_unsigned(&self, datagram: &[u8], now: Instant) -> Result<Verified, Refusal> {
        if self.authentication == Authentication::Enforce {
            return Err(Refusal::Unsigned);
        }
        let decoded = decode(datagram, self.legacy)?;
        if self.authentication == Authentication::Permissive
            && let Some(worker) = decoded.worker()
            && self
                .last_signed
                .get(worker)
                .is_some_and(|at| now.saturating_duration_since(*at) < SIGNED_FOR)
        {
            return Err(Refusal::UnsignedBesideSigned);
        }
        Ok(Verified {
            decoded,
            signature: None,
        })
    }

    /// Returns the pong if a heartbeat of the sender would count: signed with a known key, or unsigned where that is
    /// allowed. Only a signed pong says whether the worker exists, unless authentication is off.
    fn handle_ping(&self, ping: PingDatagram<'_>) -> Refused {
        let pong = match (ping, self.authentication) {
            (PingDatagram::Unsigned(_), Authentication::Enforce) => Err(Refusal::Unsigned),
            (PingDatagram::Unsigned(body), Authentication::Permissive) => {
                Ping::decode(body).and_then(|ping| Ok((ping.pong(None, false)?, None)))
            }
            (
                PingDatagram::Unsigned(body) | PingDatagram::Signed(Envelope { body, .. }),
                Authentication::Off,
            ) => Ping::decode(body).and_then(|ping| both_pongs(ping, None)),
            (PingDatagram::Signed(envelope), _) => {
                self.verify_signature(&envelope).and_then(|key| {
                    let ping = Ping::decode(envelope.body)?;
                    check_owner(key, &ping.worker)?;
                    both_pongs(ping, Some(key))
                })
            }
        };
        match pong {
            Ok((pong, sender)) => Refused {
                refusal: Refusal::Ping,
                reply: Some(pong),
                sender,
            },
            Err(refusal) => refusal.into(),
        }
    }

    /// Verifies an agent's connection reply; returns it and the key that signed it. An unsigned reply counts where
    /// unsigned heartbeats do.
    ///
    /// # Errors
    ///
    /// Returns the reason why it does not count.
    pub fn verify_connection_reply(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
    ) -> Result<(ConnectionReply, Option<KeyId>), Refusal> {
        if !self.limits.allows(from, now) {
            return Err(Refusal::RateLimited);
        }
        let keys = |id| self.keys.find(id);
        let keys = (self.authentication != Authentication::Off).then_some(keys);
        let (reply, key) = connection_query::decode_reply(datagram, keys)?;
        if key.is_none() && self.authentication == Authentication::Enforce {
            return Err(Refusal::Unsigned);
        }
        Ok((reply, key.map(Key::id)))
    }

    /// Returns the key that signed a datagram.
    fn verify_signature(&self, envelope: &Envelope<'_>) -> Result<&Key, Refusal> {
        let id = envelope.key;
        let key = self.keys.find(id).ok_or(Refusal::UnknownKey { key: id })?;
        if !envelope.is_signed_by(key) {
            return Err(Refusal::BadSignature { key: id });
        }
        Ok(key)
    }

    fn verify_signed(
        &self,
        envelope: &Envelope<'_>,
        from: SocketAddr,
    ) -> Result<Verified, Refused> {
        let id = envelope.key;
        let key = self.verify_signature(envelope)?;
        let decoded = decode(envelope.body, false)?;
        let Decoded::Heartbeat(heartbeat) = &decoded else {
            return Err(Refusal::NotJson.into());
        };
        check_owner(key, &heartbeat.worker)?;
        let freshness = self.nonces.check(heartbeat.nonce, from.ip());
        if freshness == Freshness::Stale {
            return Err(Refused {
                refusal: Refusal::NotFresh,
                reply: self.acknowledgement(key, heartbeat, from, AcknowledgementKind::NotFresh),
                sender: None,
            });
        }
        Ok(Verified {
            decoded,
            signature: Some(Signature { key: id, freshness }),
        })
    }

    /// Records that the core accepted a heartbeat; returns an acknowledgement if one is due.
    pub fn record_accepted(
        &mut self,
        verified: &Verified,
        from: SocketAddr,
        now: Instant,
    ) -> Option<Vec<u8>> {
        self.limits.record_accepted(from, now);
        let (Some(signature), Decoded::Heartbeat(heartbeat)) =
            (verified.signature, &verified.decoded)
        else {
            return None;
        };
        match self.last_signed.get_mut(&heartbeat.worker) {
            Some(at) => *at = now,
            None => {
                self.last_signed.insert(heartbeat.worker.clone(), now);
            }
        }
        let last = self.acknowledged.get(&signature.key);
        let is_recent =
            last.is_some_and(|at| now.saturating_duration_since(*at) < ACKNOWLEDGE_EVERY);
        let is_usual = signature.freshness == Freshness::Fresh && heartbeat.pause.is_none();
        if is_recent && is_usual {
            return None;
        }
        self.acknowledged.insert(signature.key, now);
        self.acknowledgement(
            self.keys.find(signature.key)?,
            heartbeat,
            from,
            AcknowledgementKind::Counted,
        )
    }

    /// Returns the reply to a heartbeat whose sequence number the core refused after a silence: the agent should
    /// continue with a new boot id. The heartbeat may be a recording, and an agent applies only a reply to a heartbeat
    /// that it has just sent.
    pub fn request_new_boot(&self, verified: &Verified, from: SocketAddr) -> Option<Vec<u8>> {
        let (signature, Decoded::Heartbeat(heartbeat)) = (verified.signature?, &verified.decoded)
        else {
            return None;
        };
        let key = self.keys.find(signature.key)?;
        self.acknowledgement(key, heartbeat, from, AcknowledgementKind::NewBoot)
    }

    /// Records that a datagram was refused, here or by the core.
    pub fn record_refused(&mut self, from: SocketAddr, now: Instant) {
        self.limits.record_refused(from, now);
    }

    fn acknowledgement(
        &self,
        key: &Key,
        heartbeat: &Heartbeat,
        to: SocketAddr,
        kind: AcknowledgementKind,
    ) -> Option<Vec<u8>> {
        let acknowledgement = Acknowledgement {
            heartbeat: Sequence {
                boot: heartbeat.boot,
                number: heartbeat.seq,
            },
            nonce: self.nonces.of(to.ip()),
            fresh: kind == AcknowledgementKind::Counted,
            new_boot: kind == AcknowledgementKind::NewBoot,
        };
        acknowledgement.encode(key).ok()
    }
}

/// Returns the pongs for a known and for an unknown worker.
fn both_pongs(ping: Ping, key: Option<&Key>) -> Result<(Vec<u8>, Option<PingSender>), Refusal> {
    let pong = ping.pong(key, false)?;
    let if_unknown = ping.pong(key, true)?;
    let sender = PingSender {
        worker: ping.worker,
        if_unknown,
    };
    Ok((pong, Some(sender)))
}

/// Checks that the key belongs to the worker of the heartbeat.
fn check_owner(key: &Key, worker: &str) -> Result<(), Refusal> {
    if worker == key.worker() {
        return Ok(());
    }
    Err(Refusal::OtherWorkersKey {
        key: key.id(),
        of: key.worker().to_owned(),
    })
}

#[cfg(test)]
mod tests;
