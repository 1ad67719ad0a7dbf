//! The format of 2018: a datagram with a file's name, then one with that file's content.
//!
//! `worker1_memory.json`, then
//! `[{"NamaWorker": "worker1", "IP": "192.168.56.103", "Waktu": "2018-06-04 14:00:59", "freeMemory": "394"}]`.
//! The list alone is the heartbeat, so that the first datagram may be lost. The sender claims address and time: memlb
//! shows them and never trusts them.

use std::fmt;

use lb_core::{Bytes, Memory, Report, WorkerState};
use serde::Deserialize;

use super::Refusal;
use crate::worker_name::check_name;

/// More than any machine has; in bytes, it does not overflow.
const MAX_FREE_MIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;
/// The most characters of the claimed address or time.
const MAX_CLAIM_CHARACTERS: usize = 40;

/// A 2018 worker's heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyHeartbeat {
    pub worker: String,
    pub free_memory_bytes: u64,
    /// The address that the sender claims, in printable characters.
    pub claimed_address: Option<String>,
    /// The time that the sender claims, in printable characters.
    pub claimed_time: Option<String>,
}

impl LegacyHeartbeat {
    /// Decodes the second datagram. The caller has checked its size.
    pub(super) fn decode(datagram: &[u8]) -> Result<Self, Refusal> {
        let list: Vec<LegacyEntry> = serde_json::from_slice(datagram)?;
        let length = list.len();
        let [entry] =
            <[LegacyEntry; 1]>::try_from(list).map_err(|_| Refusal::LegacyLength { length })?;
        check_name(&entry.worker)?;
        Ok(Self {
            worker: entry.worker,
            free_memory_bytes: entry.free_memory.bytes()?,
            claimed_address: entry.address.map(printable),
            claimed_time: entry.time.map(printable),
        })
    }

    /// Returns the report for the core.
    pub fn report(&self) -> Report {
        Report {
            worker: self.worker.clone(),
            sequence: None,
            signed: false,
            memory_stale: None,
            memory: Memory {
                available_bytes: self.free_memory_bytes,
                total_bytes: None,
            },
            pressure: None,
            state: WorkerState::Ready,
            healthy: true,
            checked: false,
            translates: Vec::new(),
            interval: None,
        }
    }
}

impl fmt::Display for LegacyHeartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (2018 format): {} free",
            self.worker,
            Bytes(self.free_memory_bytes)
        )?;
        if let Some(time) = &self.claimed_time {
            write!(f, ", its clock says {time}")?;
        }
        Ok(())
    }
}

/// Recognises the first datagram: a bare name of a JSON file.
pub(super) fn file_name(datagram: &[u8]) -> Option<&str> {
    let name = str::from_utf8(datagram)
        .ok()?
        .trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
    let stem = name.strip_suffix(".json")?;
    check_name(stem).ok()?;
    Some(name)
}

#[derive(Deserialize)]
struct LegacyEntry {
    #[serde(rename = "NamaWorker")]
    worker: String,
    #[serde(rename = "IP")]
    address: Option<String>,
    #[serde(rename = "Waktu")]
    time: Option<String>,
    #[serde(rename = "freeMemory")]
    free_memory: FreeMemory,
}

/// The old workers wrote the number as a string; some variants did not.
#[derive(Deserialize)]
#[serde(untagged)]
enum FreeMemory {
    Number(f64),
    Text(String),
}

impl FreeMemory {
    fn bytes(&self) -> Result<u64, Refusal> {
        let mib = match self {
            Self::Number(number) => *number,
            Self::Text(text) => {
                let text = text.trim();
                // `f64` alone would accept "inf" and "nan", too.
                let mut bytes = text.bytes();
                let number = text.parse().ok();
                let number = number.filter(|_| bytes.all(|it| it.is_ascii_digit() || it == b'.'));
                number.ok_or(Refusal::AbsurdFreeMemory)?
            }
        };
        if !(0.0..=MAX_FREE_MIB as f64).contains(&mib) {
            return Err(Refusal::AbsurdFreeMemory);
        }
        Ok((mib * MIB as f64) as u64)
    }
}

fn printable(claim: String) -> String {
    let escaped = claim.chars().flat_map(char::escape_debug);
    escaped.take(MAX_CLAIM_CHARACTERS).collect()
}
