//! Decides which datagrams are heartbeats to believe: size, source, signature, sense, freshness.
//!
//! In that order, so that a stranger costs little: nothing is parsed, and no memory is taken, before
//! the signature is known to be right.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_core::Sequence;

use super::acknowledgement::Acknowledgement;
use super::envelope::{Envelope, Kind};
use super::limits::SourceLimits;
use super::nonce::{Freshness, Nonces};
use super::ping::{self, Asked, Ping};
use super::{Decoded, Heartbeat, Refusal, SIZE_LIMIT, decode};
use crate::keys::{Key, KeyId, KeyRing};

/// How often a worker whose nonce is the newest is answered, so that it knows its round-trip time. What
/// announces a pause is always answered.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);

/// How long after a signed heartbeat an unsigned one cannot speak for the same worker.
const SIGNED_FOR: Duration = Duration::from_secs(10);

/// Whether heartbeats must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// Signatures are not looked at.
    Off,
    /// Unsigned heartbeats count, too, unless the worker's signed ones are heard.
    Permissive,
    /// Only signed heartbeats count.
    Enforce,
}

impl Authentication {
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Permissive => "permissive",
            Self::Enforce => "enforce",
        }
    }
}

/// A datagram that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub decoded: Decoded,
    /// The key that signed it; nothing if nobody did, or if nobody looked.
    pub signature: Option<Signature>,
}

/// A signature that is right and fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    pub key: KeyId,
    freshness: Freshness,
}

/// A datagram that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub refusal: Refusal,
    /// What to answer: the signature is right but the heartbeat may be old, or it is only a question.
    pub challenge: Option<Vec<u8>>,
    /// Who asked, if that one may be told whether a service has such a worker.
    pub asker: Option<Asker>,
}

/// A worker that asks for a manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub worker: String,
    /// What to answer instead if no service has such a worker.
    pub if_unknown: Vec<u8>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            challenge: None,
            asker: None,
        }
    }
}

/// What a signed heartbeat is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Counts,
    NotFresh,
    NewBoot,
}

/// The manager's judgement of datagrams.
#[derive(Debug)]
pub struct Gate {
    authentication: Authentication,
    legacy: bool,
    keys: KeyRing,
    nonces: Nonces,
    limits: SourceLimits,
    /// When each worker was last heard signed; only workers with keys are here.
    signed: BTreeMap<String, Instant>,
    /// When each key was last answered; only known keys are here.
    answered: BTreeMap<KeyId, Instant>,
}

impl Gate {
    /// Opens a gate; `legacy` tells whether the 2018 form is accepted, which nobody can sign.
    ///
    /// # Errors
    ///
    /// Says why the kernel gives no random number.
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

    /// Changes the mode and the keys; what a removed key signed counts no more from here on.
    pub fn reconfigure(&mut self, authentication: Authentication, legacy: bool, keys: KeyRing) {
        self.authentication = authentication;
        self.legacy = legacy;
        self.answered.retain(|id, _| keys.find(*id).is_some());
        self.signed
            .retain(|worker, _| keys.of_worker(worker).next().is_some());
        self.keys = keys;
    }

    /// Judges one datagram. What becomes of it is told by [`Self::accepted`] or [`Self::refused`].
    ///
    /// # Errors
    ///
    /// Returns the reason why it is not to be believed, and perhaps an answer to it.
    pub fn open(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
    ) -> Result<Opened, Refused> {
        self.nonces.rotate(now);
        if !self.limits.admits(from, now) {
            return Err(Refusal::RateLimited.into());
        }
        if datagram.len() >= SIZE_LIMIT {
            let bytes = datagram.len();
            return Err(Refusal::Oversized { bytes }.into());
        }
        if let Some(asked) = ping::asked(datagram) {
            return Err(self.asked(asked?));
        }
        if !datagram.starts_with(Kind::Heartbeat.mark()) {
            return Ok(self.unsigned(datagram, now)?);
        }
        let envelope = Envelope::parse(Kind::Heartbeat, datagram)?;
        match self.authentication {
            Authentication::Off => Ok(Opened {
                decoded: decode(envelope.body, false)?,
                signature: None,
            }),
            Authentication::Permissive | Authentication::Enforce => self.signed(&envelope, from),
        }
    }

    fn unsigned(&self, datagram: &[u8], now: Instant) -> Result<Opened, Refusal> {
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
        Ok(Opened {
            decoded,
            signature: None,
        })
    }

    /// Answers a question as far as its sender could also be heard: signed with a known key, or
    /// unsigned where that counts. Who is a worker is told to workers only, unless anybody may say so
    /// anyway.
    fn asked(&self, asked: Asked<'_>) -> Refused {
        let answer = match (asked, self.authentication) {
            (Asked::Unsigned(_), Authentication::Enforce) => Err(Refusal::Unsigned),
            (Asked::Unsigned(body), Authentication::Permissive) => {
                Ping::decode(body).and_then(|ping| Ok((ping.answer(None, false)?, None)))
            }
            (Asked::Unsigned(body), Authentication::Off) => {
                Ping::decode(body).and_then(|ping| answers(ping, None))
            }
            (Asked::Signed(envelope), Authentication::Off) => {
                Ping::decode(envelope.body).and_then(|ping| answers(ping, None))
            }
            (Asked::Signed(envelope), _) => self.signer(&envelope).and_then(|key| {
                let ping = Ping::decode(envelope.body)?;
                speaks_for(key, &ping.worker)?;
                answers(ping, Some(key))
            }),
        };
        match answer {
            Ok((answer, asker)) => Refused {
                refusal: Refusal::Ping,
                challenge: Some(answer),
                asker,
            },
            Err(refusal) => refusal.into(),
        }
    }

    /// Returns the key that signed it.
    fn signer(&self, envelope: &Envelope<'_>) -> Result<&Key, Refusal> {
        let id = envelope.key;
        let key = self.keys.find(id).ok_or(Refusal::UnknownKey { key: id })?;
        if !envelope.is_signed_by(key) {
            return Err(Refusal::BadSignature { key: id });
        }
        Ok(key)
    }

    fn signed(&self, envelope: &Envelope<'_>, from: SocketAddr) -> Result<Opened, Refused> {
        let id = envelope.key;
        let key = self.signer(envelope)?;
        let decoded = decode(envelope.body, false)?;
        let Decoded::Heartbeat(heartbeat) = &decoded else {
            return Err(Refusal::NotJson.into());
        };
        speaks_for(key, &heartbeat.worker)?;
        let freshness = self.nonces.judge(heartbeat.nonce, from.ip());
        if freshness == Freshness::Stale {
            return Err(Refused {
                refusal: Refusal::NotFresh,
                challenge: self.answer(key, heartbeat, from, Reply::NotFresh),
                asker: None,
            });
        }
        Ok(Opened {
            decoded,
            signature: Some(Signature { key: id, freshness }),
        })
    }

    /// Takes note that the core accepted a heartbeat; returns what to answer, if it is time.
    pub fn accepted(&mut self, opened: &Opened, from: SocketAddr, now: Instant) -> Option<Vec<u8>> {
        self.limits.accepted(from, now);
        let (Some(signature), Decoded::Heartbeat(heartbeat)) = (opened.signature, &opened.decoded)
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
        let lately =
            answered.is_some_and(|at| now.saturating_duration_since(*at) < ACKNOWLEDGE_EVERY);
        let is_usual = signature.freshness == Freshness::Fresh && heartbeat.pause.is_none();
        if lately && is_usual {
            return None;
        }
        self.answered.insert(signature.key, now);
        self.answer(
            self.keys.find(signature.key)?,
            heartbeat,
            from,
            Reply::Counts,
        )
    }

    /// Returns the answer to a heartbeat whose sequence number the core refused after a silence: its
    /// agent should go on under a new boot id. The heartbeat itself proves nothing, it may be a recording;
    /// the agent follows only an answer to what it has just sent itself.
    pub fn demand_new_boot(&self, opened: &Opened, from: SocketAddr) -> Option<Vec<u8>> {
        let (signature, Decoded::Heartbeat(heartbeat)) = (opened.signature?, &opened.decoded)
        else {
            return None;
        };
        let key = self.keys.find(signature.key)?;
        self.answer(key, heartbeat, from, Reply::NewBoot)
    }

    /// Takes note that a datagram was refused, here or by the core.
    pub fn refused(&mut self, from: SocketAddr, now: Instant) {
        self.limits.refused(from, now);
    }

    fn answer(
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

/// Returns both answers to a question that may be answered in full.
fn answers(ping: Ping, key: Option<&Key>) -> Result<(Vec<u8>, Option<Asker>), Refusal> {
    let answer = ping.answer(key, false)?;
    let if_unknown = ping.answer(key, true)?;
    let asker = Asker {
        worker: ping.worker,
        if_unknown,
    };
    Ok((answer, Some(asker)))
}

/// Checks that a key is not used for another worker's name.
fn speaks_for(key: &Key, worker: &str) -> Result<(), Refusal> {
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
