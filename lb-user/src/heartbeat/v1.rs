//! The version-1 datagram: one JSON object with a version, a sequence and the worker's memory.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::name::check_name;
use super::{Refusal, SIZE_LIMIT};
use crate::core::{BootId, Bytes, Memory, Report, Sequence, WorkerState};

/// The number in `memlb` that this code writes and reads.
pub const VERSION: u64 = 1;

const LONGEST_INTERVAL: Duration = Duration::from_secs(3_600);
const LONGEST_AGENT_VERSION: usize = 32;

/// What a worker's agent says at each interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    pub worker: String,
    pub boot: BootId,
    pub seq: u64,
    /// How often this agent sends; counted in whole milliseconds.
    pub interval: Duration,
    pub memory: MemoryReport,
    pub state: WorkerState,
    /// Whether the worker's service answers its agent.
    pub healthy: bool,
    /// The agent's own version, for display.
    pub version: String,
}

/// The host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    pub available_bytes: u64,
    pub total_bytes: u64,
}

impl Heartbeat {
    /// Encodes it as one datagram.
    ///
    /// # Errors
    ///
    /// Refuses to send what a manager would refuse to accept.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        let wire = Wire {
            memlb: VERSION,
            worker: self.worker.clone(),
            boot: self.boot.to_string(),
            seq: self.seq,
            interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            memory: self.memory,
            state: self.state,
            healthy: self.healthy,
            version: self.version.clone(),
        };
        let datagram = serde_json::to_vec(&wire).map_err(|error| Refusal::of_parser(&error))?;
        if datagram.len() >= SIZE_LIMIT {
            return Err(Refusal::Oversized {
                bytes: datagram.len(),
            });
        }
        Ok(datagram)
    }

    /// Decodes a datagram whose size was checked.
    pub(super) fn decode(datagram: &[u8]) -> Result<Self, Refusal> {
        let parse = |error| Refusal::of_parser(&error);
        // The version goes first: of another one nothing else can be expected to make sense.
        let Versioned { memlb } = serde_json::from_slice(datagram).map_err(parse)?;
        match memlb {
            None => return Err(Refusal::NoVersion),
            Some(VERSION) => {}
            Some(version) => return Err(Refusal::OtherVersion { version }),
        }
        let wire: Wire = serde_json::from_slice(datagram).map_err(parse)?;
        let heartbeat = Self {
            boot: boot(&wire.boot)?,
            worker: wire.worker,
            seq: wire.seq,
            interval: Duration::from_millis(wire.interval_ms),
            memory: wire.memory,
            state: wire.state,
            healthy: wire.healthy,
            version: wire.version,
        };
        heartbeat.check()?;
        Ok(heartbeat)
    }

    /// Returns what it tells the core.
    pub fn report(&self) -> Report {
        Report {
            worker: self.worker.clone(),
            sequence: Some(Sequence {
                boot: self.boot,
                number: self.seq,
            }),
            memory: Memory {
                available_bytes: self.memory.available_bytes,
                total_bytes: Some(self.memory.total_bytes),
            },
            state: self.state,
            healthy: self.healthy,
            interval: Some(self.interval),
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        check_name(&self.worker)?;
        let MemoryReport {
            available_bytes,
            total_bytes,
        } = self.memory;
        if total_bytes == 0 {
            return Err(Refusal::ZeroTotalMemory);
        }
        if available_bytes > total_bytes {
            return Err(Refusal::AvailableExceedsTotal {
                available_bytes,
                total_bytes,
            });
        }
        if self.interval < Duration::from_millis(1) || self.interval > LONGEST_INTERVAL {
            return Err(Refusal::AbsurdInterval {
                interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            });
        }
        let version = self.version.as_bytes();
        let sensible = (1..=LONGEST_AGENT_VERSION).contains(&version.len());
        if !sensible || !version.iter().all(u8::is_ascii_graphic) {
            return Err(Refusal::BadAgentVersion);
        }
        Ok(())
    }
}

impl fmt::Display for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} #{}: {} available of {}",
            self.worker,
            self.seq,
            Bytes(self.memory.available_bytes),
            Bytes(self.memory.total_bytes),
        )?;
        match self.state {
            WorkerState::Ready => {}
            WorkerState::Leaving => f.write_str(", leaving")?,
            WorkerState::Maintenance => f.write_str(", in maintenance")?,
        }
        if !self.healthy {
            f.write_str(", service does not answer")?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Versioned {
    memlb: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    memlb: u64,
    worker: String,
    boot: String,
    seq: u64,
    interval_ms: u64,
    memory: MemoryReport,
    state: WorkerState,
    healthy: bool,
    version: String,
}

fn boot(text: &str) -> Result<BootId, Refusal> {
    // `from_str_radix` alone would take a sign, too.
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(text, 16) {
        Ok(boot) if digits => Ok(BootId(boot)),
        Ok(_) | Err(_) => Err(Refusal::BadBoot),
    }
}
