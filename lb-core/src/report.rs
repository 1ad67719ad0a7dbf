//! The content of a heartbeat, of any format version.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;
use crate::memory::{Memory, Pressure};

/// A heartbeat whose values the receiver has validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub worker: String,
    /// `None` in the 2018 format.
    pub sequence: Option<Sequence>,
    /// Whether the heartbeat has a valid and fresh signature.
    pub signed: bool,
    pub memory: Memory,
    /// Age of the memory figures, if the agent cannot read new ones.
    pub memory_stale: Option<Duration>,
    /// Memory pressure; `None` if the worker's kernel does not report it.
    pub pressure: Option<Pressure>,
    pub state: WorkerState,
    /// Whether the worker's server answers its agent.
    pub healthy: bool,
    /// Whether the agent checks the server; without a check, `healthy` is always true.
    pub checked: bool,
    /// The services of mode `dsr` that the worker's DSR translator translates.
    pub translates: Vec<Endpoint>,
    /// The heartbeat interval; `None` in the 2018 format.
    pub interval: Option<Duration>,
}

/// The state that a worker announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It accepts new connections.
    Ready,
    /// The agent is about to stop.
    Leaving,
    /// The worker is in maintenance.
    Maintenance,
}

/// The boot of the agent, and the number of the heartbeat in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    pub boot: BootId,
    pub number: u64,
}

/// Random at each start of an agent; 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
