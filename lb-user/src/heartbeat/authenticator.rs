//! Decides which datagrams count as heartbeats: rate of the source, size, signature, format, freshness.
//!
//! In this order, so that an unauthenticated datagram costs little: nothing is parsed or allocated before
//! the signature is verified.

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

/// How often a heartbeat with the newest nonce is acknowledged, so that the agent can measure its round-trip
/// time. One that announces a pause is always acknowledged.
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
    /// The key that signed it; nothing if it is unsigned or authentication is off.
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
    /// What to send back: a challenge if a valid heartbeat may be old, or the answer to a ping.
    pub reply: Option<Vec<u8>>,
    /// The sender of a ping, if it may learn whether a service has such a worker.
    pub sender: Option<PingSender>,
}

/// The sender of a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingSender {
    pub worker: String,
    /// The answer if no service has such a worker.
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
enum Reply {
    Counts,
    NotFresh,
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
    /// When each worker last sent a signed heartbeat; only workers with keys are here.
    signed: BTreeMap<String, Instant>,
    /// When a heartbeat of each key was last acknowledged; only known keys are here.
    answered: BTreeMap<KeyId, Instant>,
}

impl Authenticator {
    /// Creates one; `legacy` is whether the unsigned 2018 format is accepted.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if it gives no random number.
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
            signed: BTreeMap::new(),
            answered: BTreeMap::new(),
        })
    }

    pub fn authentication(&self) -> Authentication {
        self.authentication
    }

    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Changes the mode and the keys. Heartbeats signed with a removed key no longer count.
    pub fn reconfigure(&mut self, authentication: Authentication, legacy: bool, keys: KeyRing) {
        self.authentication = authentication;
        self.legacy = legacy;
        self.answered.retain(|id, _| keys.find(*id).is_some());
        self.signed
            .retain(|worker, _| keys.of_worker(worker).next().is_some());
        self.keys = keys;
    }

    /// Verifies one datagram. The caller reports the outcome by [`Self::accepted`] or [`Self::refused`].
    ///
    /// # Errors
    ///
    /// Returns the reason why it does not count, and perhaps a reply.
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
        if !datagram.starts_with(DatagramKind::Heartbeat.mark()) {
            return Ok(self.unsigned(datagram, now)?);
        }
        let envelope = Envelope::parse(DatagramKind::Heartbeat, datagram)?;
        match self.authentication {
            Authentication::Off => Ok(Verified {
                decoded: decode(envelope.body, false)?,
                signature: None,
            }),
            Authentication::Permissive | Authentication::Enforce => self.signed(&envelope, from),
        }
    }

    fn unsigned(&self, datagram: &[u8], now: Instant) -> Result<Verified, Refusal> {
        if self.authentication == Authentication::Enforce {
            return Err(Refusal::Unsigned);
        }
        let decoded = decode(datagram, self.legacy)?;
        if self.authentication == Authentication::Permissive
            && let Some(worker) = decoded.worker()
            && self
                .signed
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

    /// Answers a ping if a heartbeat of its sender would count: signed with a known key, or unsigned where
    /// that is allowed. Only a signed answer says whether the worker exists, unless authentication is off.
    fn handle_ping(&self, ping: PingDatagram<'_>) -> Refused {
        let answer = match (ping, self.authentication) {
            (PingDatagram::Unsigned(_), Authentication::Enforce) => Err(Refusal::Unsigned),
            (PingDatagram::Unsigned(body), Authentication::Permissive) => {
                Ping::decode(body).and_then(|ping| Ok((ping.pong(None, false)?, None)))
            }
            (PingDatagram::Unsigned(body), Authentication::Off) => {
                Ping::decode(body).and_then(|ping| both_answers(ping, None))
            }
            (PingDatagram::Signed(envelope), Authentication::Off) => {
                Ping::decode(envelope.body).and_then(|ping| both_answers(ping, None))
            }
            (PingDatagram::Signed(envelope), _) => {
                self.verify_signature(&envelope).and_then(|key| {
                    let ping = Ping::decode(envelope.body)?;
                    check_owner(key, &ping.worker)?;
                    both_answers(ping, Some(key))
                })
            }
        };
        match answer {
            Ok((answer, sender)) => Refused {
                refusal: Refusal::Ping,
                reply: Some(answer),
                sender,
            },
            Err(refusal) => refusal.into(),
        }
    }

    /// Verifies an agent's answer to a question; returns the key that signed it. An unsigned one counts where
    /// unsigned heartbeats do.
    ///
    /// # Errors
    ///
    /// Returns the reason why it does not count.
    pub fn verify_mine(
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

    /// Returns the key that signed it.
    fn verify_signature(&self, envelope: &Envelope<'_>) -> Result<&Key, Refusal> {
        let id = envelope.key;
        let key = self.keys.find(id).ok_or(Refusal::UnknownKey { key: id })?;
        if !envelope.is_signed_by(key) {
            return Err(Refusal::BadSignature { key: id });
        }
        Ok(key)
    }

    fn signed(&self, envelope: &Envelope<'_>, from: SocketAddr) -> Result<Verified, Refused> {
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
                reply: self.acknowledgement(key, heartbeat, from, Reply::NotFresh),
                sender: None,
            });
        }
        Ok(Verified {
            decoded,
            signature: Some(Signature { key: id, freshness }),
        })
    }

    /// Records that the core accepted a heartbeat; returns an acknowledgement if one is due.
    pub fn accepted(
        &mut self,
        verified: &Verified,
        from: SocketAddr,
        now: Instant,
    ) -> Option<Vec<u8>> {
        self.limits.accepted(from, now);
        let (Some(signature), Decoded::Heartbeat(heartbeat)) =
            (verified.signature, &verified.decoded)
        else {
            return None;
        };
        match self.signed.get_mut(&heartbeat.worker) {
            Some(at) => *at = now,
            None => {
                self.signed.insert(heartbeat.worker.clone(), now);
            }
        }
        let answered = self.answered.get(&signature.key);
        let is_recent =
            answered.is_some_and(|at| now.saturating_duration_since(*at) < ACKNOWLEDGE_EVERY);
        let is_usual = signature.freshness == Freshness::Fresh && heartbeat.pause.is_none();
        if is_recent && is_usual {
            return None;
        }
        self.answered.insert(signature.key, now);
        self.acknowledgement(
            self.keys.find(signature.key)?,
            heartbeat,
            from,
            Reply::Counts,
        )
    }

    /// Returns the reply to a heartbeat whose sequence number the core refused after a silence: its agent
    /// should continue with a new boot id. The heartbeat may be a recording; the agent obeys only a reply to a
    /// heartbeat that it has just sent.
    pub fn demand_new_boot(&self, verified: &Verified, from: SocketAddr) -> Option<Vec<u8>> {
        let (signature, Decoded::Heartbeat(heartbeat)) = (verified.signature?, &verified.decoded)
        else {
            return None;
        };
        let key = self.keys.find(signature.key)?;
        self.acknowledgement(key, heartbeat, from, Reply::NewBoot)
    }

    /// Records that a datagram was refused, here or by the core.
    pub fn refused(&mut self, from: SocketAddr, now: Instant) {
        self.limits.refused(from, now);
    }

    fn acknowledgement(
        &self,
        key: &Key,
        heartbeat: &Heartbeat,
        to: SocketAddr,
        reply: Reply,
    ) -> Option<Vec<u8>> {
        let answer = Acknowledgement {
            heartbeat: Sequence {
                boot: heartbeat.boot,
                number: heartbeat.seq,
            },
            nonce: self.nonces.of(to.ip()),
            fresh: reply == Reply::Counts,
            new_boot: reply == Reply::NewBoot,
        };
        answer.encode(key).ok()
    }
}

/// Returns the answers for a known and for an unknown worker.
fn both_answers(ping: Ping, key: Option<&Key>) -> Result<(Vec<u8>, Option<PingSender>), Refusal> {
    let answer = ping.pong(key, false)?;
    let if_unknown = ping.pong(key, true)?;
    let sender = PingSender {
        worker: ping.worker,
        if_unknown,
    };
    Ok((answer, Some(sender)))
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
