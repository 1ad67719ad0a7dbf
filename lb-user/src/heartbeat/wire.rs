//! The JSON of version 1, as docs/heartbeat.md specifies it.

use std::borrow::Cow;
use std::time::Duration;

use lb_core::{BootId, Endpoint, Sequence, WorkerState, milliseconds};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::nonce::Nonce;
use super::v1::{Heartbeat, MemoryReport};
use super::{Refusal, VERSION, check_size, envelope};
use crate::keys::Key;

impl Heartbeat {
    /// Encodes it as one datagram.
    ///
    /// # Errors
    ///
    /// Refuses to send what a manager would refuse to accept.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        encode(self)
    }

    /// Encodes it as one datagram and signs it.
    ///
    /// # Errors
    ///
    /// Refuses to send what a manager would refuse to accept.
    pub fn encode_signed(&self, key: &Key) -> Result<Vec<u8>, Refusal> {
        let datagram = envelope::sign(envelope::DatagramKind::Heartbeat, key, &self.encode()?);
        check_size(&datagram)?;
        Ok(datagram)
    }

    /// Decodes a datagram. The caller has checked its size.
    pub(super) fn decode(datagram: &[u8]) -> Result<Self, Refusal> {
        let heartbeat = decode(datagram)?;
        heartbeat.check()?;
        Ok(heartbeat)
    }
}

/// Encodes a heartbeat that was checked.
fn encode(heartbeat: &Heartbeat) -> Result<Vec<u8>, Refusal> {
    let wire = WireHeartbeat {
        memlb: Some(VERSION),
        worker: Cow::Borrowed(&heartbeat.worker),
        boot: Cow::Owned(heartbeat.boot.to_string()),
        seq: heartbeat.seq,
        interval_ms: milliseconds(heartbeat.interval),
        memory: heartbeat.memory,
        state: heartbeat.state,
        healthy: heartbeat.healthy,
        checked: heartbeat.checked,
        dsr: Translated(heartbeat.translates.clone()),
        version: Cow::Borrowed(&heartbeat.version),
        pause_ms: heartbeat.pause.map(milliseconds),
        nonce: heartbeat.nonce.map(|nonce| Cow::Owned(nonce.to_string())),
    };
    let datagram = serde_json::to_vec(&wire)?;
    check_size(&datagram)?;
    Ok(datagram)
}

/// Decodes a heartbeat. The caller checks its values.
fn decode(datagram: &[u8]) -> Result<Heartbeat, Refusal> {
    let wire: WireHeartbeat<'_> = serde_json::from_slice(datagram).map_err(|error| {
        // The fields of another version may differ.
        let version = serde_json::from_slice(datagram);
        let refusal = version.map_or(Ok(()), |Versioned { memlb }| check_version(memlb));
        refusal.err().unwrap_or_else(|| Refusal::from(error))
    })?;
    check_version(wire.memlb)?;
    Ok(Heartbeat {
        boot: BootId(number(&wire.boot).ok_or(Refusal::BadBoot)?),
        worker: wire.worker.into_owned(),
        seq: wire.seq,
        interval: Duration::from_millis(wire.interval_ms),
        memory: wire.memory,
        state: wire.state,
        healthy: wire.healthy,
        checked: wire.checked,
        translates: wire.dsr.0,
        version: wire.version.into_owned(),
        pause: wire.pause_ms.map(Duration::from_millis),
        nonce: wire.nonce.as_deref().map(nonce).transpose()?,
    })
}

#[derive(Deserialize)]
struct Versioned {
    memlb: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct WireHeartbeat<'a> {
    memlb: Option<u64>,
    #[serde(borrow)]
    worker: Cow<'a, str>,
    #[serde(borrow)]
    boot: Cow<'a, str>,
    seq: u64,
    interval_ms: u64,
    memory: MemoryReport,
    state: WorkerState,
    healthy: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    checked: bool,
    #[serde(default, skip_serializing_if = "Translated::is_empty")]
    dsr: Translated,
    #[serde(borrow)]
    version: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pause_ms: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    nonce: Option<Cow<'a, str>>,
}

/// The services that a DSR translator translates, each as the text of its endpoint.
#[derive(Default)]
struct Translated(Vec<Endpoint>);

impl Translated {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Translated {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(Endpoint::to_string))
    }
}

impl<'de> Deserialize<'de> for Translated {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let texts = Vec::<Cow<'_, str>>::deserialize(from)?;
        let endpoints = texts.iter().map(|text| text.parse());
        let endpoints: Result<_, _> = endpoints.collect();
        endpoints.map(Self).map_err(D::Error::custom)
    }
}

pub(super) fn check_version(version: Option<u64>) -> Result<(), Refusal> {
    match version {
        None => Err(Refusal::NoVersion),
        Some(VERSION) => Ok(()),
        Some(version) => Err(Refusal::OtherVersion { version }),
    }
}

/// The number of a heartbeat, as other datagrams name it.
#[derive(Serialize, Deserialize)]
pub(super) struct WireSequence {
    boot: String,
    seq: u64,
}

impl From<Sequence> for WireSequence {
    fn from(sequence: Sequence) -> Self {
        Self {
            boot: sequence.boot.to_string(),
            seq: sequence.number,
        }
    }
}

impl WireSequence {
    pub fn parse(&self) -> Result<Sequence, Refusal> {
        Ok(Sequence {
            boot: BootId(number(&self.boot).ok_or(Refusal::BadBoot)?),
            number: self.seq,
        })
    }
}

pub(super) fn nonce(text: &str) -> Result<Nonce, Refusal> {
    number(text).map(Nonce).ok_or(Refusal::BadNonce)
}

/// Parses exactly 16 hexadecimal digits.
fn number(text: &str) -> Option<u64> {
    // `from_str_radix` alone would accept a sign.
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(text, 16).ok())?
}
