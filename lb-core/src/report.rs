//! What one heartbeat tells the core, whichever wire form it came in.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::memory::{Memory, Pressure};

/// One heartbeat's content, already checked for sense by the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub worker: String,
    /// Absent in the 2018 form, which numbers nothing.
    pub sequence: Option<Sequence>,
    /// Whether a signature was checked, and is right and fresh.
    pub signed: bool,
    pub memory: Memory,
    /// How old the memory figures are, where the agent cannot read new ones.
    pub memory_stale: Option<Duration>,
    /// How much the worker's tasks wait for memory; absent where its kernel does not say.
    pub pressure: Option<Pressure>,
    pub state: WorkerState,
    /// Whether the worker's own service answers, as its agent sees it.
    pub healthy: bool,
    /// The services of mode `dsr` that the worker's DSR translator translates.
    pub translates: Vec<Endpoint>,
    /// How often the agent says it sends; absent in the 2018 form.
    pub interval: Option<Duration>,
}

/// What a worker says it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// New connections are welcome.
    Ready,
    /// The agent is about to stop.
    Leaving,
    /// An operator took the worker out for a while.
    Maintenance,
}

/// A heartbeat's place in its agent's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    pub boot: BootId,
    pub number: u64,
}

/// A number drawn at random at each start of an agent, written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
