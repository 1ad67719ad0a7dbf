//! The version-1 heartbeat, and the report for the core.

use std::fmt;
use std::time::Duration;

use lb_core::{
    BootId, Bytes, Endpoint, MAX_PAUSE, MIN_PAUSE, Memory, Pressure, Report, Sequence, WorkerState,
};
use serde::{Deserialize, Serialize};

use super::{MAX_TRANSLATED, Refusal, nonce::Nonce};
use crate::worker_name::check_name;

const MAX_INTERVAL: Duration = Duration::from_secs(3_600);
const MAX_AGENT_VERSION_BYTES: usize = 32;

/// A heartbeat of version 1.
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
    /// Whether the agent checks the service; without a check, `healthy` is always true.
    pub checked: bool,
    /// The services of mode `dsr` that the agent's DSR translator translates.
    pub translates: Vec<Endpoint>,
    /// The agent's version, for display.
    pub version: String,
    /// For how long the worker will be silent. It counts only if the heartbeat is signed.
    pub pause: Option<Duration>,
    /// The manager's last nonce; `None` before the first one, and without a key.
    pub nonce: Option<Nonce>,
}

/// The worker's memory, as its agent reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// `MemAvailable` of the host.
    pub available_bytes: u64,
    /// `MemTotal` of the host.
    pub total_bytes: u64,
    /// The cgroup whose limit applies, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupMemory>,
    /// Of the limited cgroup, else of the host; `None` if the kernel does not measure it.
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
    /// `inactive_file` of `memory.stat`: the cache that the kernel reclaims first.
    pub inactive_file_bytes: u64,
}

/// Pressure stall information: the share of the last ten seconds in which tasks waited for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureReport {
    /// At least one task waited.
    #[serde(with = "percent")]
    pub some_avg10: Pressure,
    /// All tasks waited.
    #[serde(with = "percent")]
    pub full_avg10: Pressure,
}

impl MemoryReport {
    /// Returns the figures for decisions: the host's, or those of the cgroup's limit if they are smaller.
    ///
    /// Cache that the kernel reclaims first counts as available, as in `MemAvailable`.
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
    /// Returns the memory that is left under the limit.
    ///
    /// The figures may contradict each other: the agent reads the files one after another, and a limit may be below the
    /// usage. Then nothing is left.
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
        if self.interval < Duration::from_millis(1) || self.interval > MAX_INTERVAL {
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
        let fits = (1..=MAX_AGENT_VERSION_BYTES).contains(&version.len());
        if !fits || !version.iter().all(u8::is_ascii_graphic) {
            return Err(Refusal::BadAgentVersion);
        }
        Ok(())
    }
}

/// Checks the length of an announced pause.
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
