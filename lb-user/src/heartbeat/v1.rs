//! The version-1 heartbeat, and the report for the core.

use std::fmt;
use std::time::Duration;

use lb_core::{
    BootId, Bytes, Endpoint, MAX_PAUSE, MIN_PAUSE, Memory, Pressure, Report, Sequence, WorkerState,
};
use serde::{Deserialize, Serialize};

use super::{Refusal, nonce::Nonce};
use crate::worker_name::check_name;

/// The number in `memlb` that this code writes and reads.
pub const VERSION: u64 = 1;

/// How many services of mode `dsr` a worker may translate: with as many IPv6 addresses a heartbeat still
/// fits into its datagram.
pub const MAX_TRANSLATED: usize = 8;

const LONGEST_INTERVAL: Duration = Duration::from_secs(3_600);
const LONGEST_AGENT_VERSION: usize = 32;

/// What an agent sends at each interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    pub worker: String,
    pub boot: BootId,
    pub seq: u64,
    /// The agent's interval, in whole milliseconds.
    pub interval: Duration,
    pub memory: MemoryReport,
    pub state: WorkerState,
    /// Whether the worker's service answers its agent.
    pub healthy: bool,
    /// Whether the agent checks that; without a check, `healthy` is always true.
    pub checked: bool,
    /// The services of mode `dsr` that the agent's DSR translator translates.
    pub translates: Vec<Endpoint>,
    /// The agent's own version, for display.
    pub version: String,
    /// How long the worker will be silent; it counts only if it is signed.
    pub pause: Option<Duration>,
    /// The manager's last nonce; nothing before the first one, and without a key.
    pub nonce: Option<Nonce>,
}

/// The worker's memory, as its agent reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Of the host: `MemAvailable`.
    pub available_bytes: u64,
    /// Of the host: `MemTotal`.
    pub total_bytes: u64,
    /// Present where the agent runs under a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupMemory>,
    /// Present where the kernel measures it: of the limited cgroup, else of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<PressureReport>,
    /// The age of the figures, if the agent cannot read new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_ms: Option<u64>,
}

/// The memory of a control group (version 2) that has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMemory {
    /// `memory.max`.
    pub limit_bytes: u64,
    /// `memory.current`, which counts the page cache, too.
    pub current_bytes: u64,
    /// `inactive_file` of `memory.stat`: the cache that is given up first.
    pub inactive_file_bytes: u64,
}

/// Pressure stall information: how much tasks waited for memory over the last ten seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureReport {
    /// Some task waited.
    #[serde(with = "percent")]
    pub some_avg10: Pressure,
    /// All tasks waited.
    #[serde(with = "percent")]
    pub full_avg10: Pressure,
}

impl MemoryReport {
    /// Returns the figures for decisions: the host's, or the smaller ones of the limit.
    ///
    /// Cache that the kernel gives up first counts as available, as in `MemAvailable`.
    pub fn effective(&self) -> Memory {
        let Some(cgroup) = self.cgroup else {
            return Memory {
                available_bytes: self.available_bytes,
                total_bytes: Some(self.total_bytes),
            };
        };
        Memory {
            available_bytes: self.available_bytes.min(cgroup.headroom_bytes()),
            total_bytes: Some(self.total_bytes.min(cgroup.limit_bytes)),
        }
    }
}

impl CgroupMemory {
    /// Returns what may still be used under the limit.
    ///
    /// The files are read one after another and a limit may be lowered below what is used: where
    /// the figures do not fit together, nothing is left.
    pub fn headroom_bytes(&self) -> u64 {
        let used = self.current_bytes.saturating_sub(self.inactive_file_bytes);
        self.limit_bytes.saturating_sub(used)
    }
}

impl Heartbeat {
    /// Returns the report for the core.
    pub fn report(&self) -> Report {
        Report {
            worker: self.worker.clone(),
            sequence: Some(Sequence {
                boot: self.boot,
                number: self.seq,
            }),
            signed: false,
            memory: self.memory.effective(),
            memory_stale: self.memory.stale_ms.map(Duration::from_millis),
            pressure: self.memory.pressure.map(|pressure| pressure.some_avg10),
            state: self.state,
            healthy: self.healthy,
            checked: self.checked,
            translates: self.translates.clone(),
            interval: Some(self.interval),
        }
    }

    /// Checks the bounds of each value.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        check_name(&self.worker)?;
        let MemoryReport {
            available_bytes,
            total_bytes,
            cgroup,
            ..
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
        if cgroup.is_some_and(|cgroup| cgroup.limit_bytes == 0) {
            return Err(Refusal::ZeroMemoryLimit);
        }
        if self.interval < Duration::from_millis(1) || self.interval > LONGEST_INTERVAL {
            return Err(Refusal::AbsurdInterval {
                interval_ms: lb_core::milliseconds(self.interval),
            });
        }
        if let Some(pause) = self.pause
            && check_pause(pause).is_err()
        {
            return Err(Refusal::AbsurdPause {
                pause_ms: lb_core::milliseconds(pause),
            });
        }
        if self.translates.len() > MAX_TRANSLATED {
            return Err(Refusal::TooManyTranslated {
                services: self.translates.len(),
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

/// Checks how long a worker announces to be silent.
///
/// # Errors
///
/// Returns the allowed range.
pub fn check_pause(pause: Duration) -> Result<(), String> {
    let format = humantime::format_duration;
    match (MIN_PAUSE..=MAX_PAUSE).contains(&pause) {
        true => Ok(()),
        false => Err(format!(
            "a pause of {} is not possible: expected {} to {}",
            format(pause),
            format(MIN_PAUSE),
            format(MAX_PAUSE)
        )),
    }
}

impl fmt::Display for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.memory.effective();
        write!(
            f,
            "{} #{}: {} available of {}",
            self.worker,
            self.seq,
            Bytes(memory.available_bytes),
            Bytes(memory.total_bytes.unwrap_or(self.memory.total_bytes)),
        )?;
        if self.memory.cgroup.is_some() {
            f.write_str(" (cgroup)")?;
        }
        if let Some(stale) = self.memory.stale_ms {
            write!(f, " (stale for {} s)", stale / 1_000)?;
        }
        if let Some(pressure) = self.memory.pressure
            && pressure.some_avg10 > Pressure(0)
        {
            write!(f, ", pressure {}", pressure.some_avg10)?;
        }
        if let Some(pause) = self.pause {
            write!(f, ", silent for {}", humantime::format_duration(pause))?;
        }
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

/// A percentage as a number with two decimals, from 0 to 100.
mod percent {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use lb_core::Pressure;

    pub fn serialize<S: Serializer>(pressure: &Pressure, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(f64::from(pressure.0) / 100.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Pressure, D::Error> {
        let percent = f64::deserialize(from)?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(D::Error::custom("a pressure is not between 0 and 100"));
        }
        Ok(Pressure((percent * 100.0).round() as u16))
    }
}
