//! What the core is told once, at its start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::admin::AdminOverrides;
use super::endpoint::{Endpoint, Protocol};
use super::memory::{Bytes, Pressure};

/// The name under which every service's fallback appears; no worker may have it.
pub const MANAGER: &str = "manager";

/// What stands for a selected worker's name where connections are spread; no name contains it.
pub const ALL_WORKERS: &str = "*";

/// The name of what new connections go to where there is no fallback; no worker may have it.
pub const NO_BACKEND: &str = "nobody";

/// How long a worker may be silent, unless configured.
pub const DEFAULT_DOWN_AFTER: Duration = Duration::from_millis(1500);

/// How long policy `memory` keeps a worker at least that it has switched to, unless told otherwise: two or
/// three reports at the usual interval, and not so long that the crowd fills it meanwhile, see
/// docs/policies.md.
pub const DEFAULT_HOLD: Duration = Duration::from_millis(250);

/// Names a service across the kernel boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceId(pub u32);

/// Names one (service, worker) pair, or a service's fallback, across the kernel boundary; 0 is nobody.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct BackendId(pub u32);

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Everything the core decides by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreSettings {
    /// A worker is up while its last heartbeat is not older than this.
    pub down_after: Duration,
    /// How many consecutive good heartbeats bring a worker back; 0 counts as 1.
    pub up_after: u32,
    pub services: Vec<ServiceSettings>,
}

impl CoreSettings {
    /// Returns the names of a backend's service and worker; nothing for a fallback.
    pub fn names(&self, backend: BackendId) -> Option<(&str, &str)> {
        self.services.iter().find_map(|service| {
            let mut backends = service.backends.iter();
            let found = backends.find(|it| it.id == backend)?;
            Some((service.name.as_str(), found.worker.as_str()))
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSettings {
    pub id: ServiceId,
    pub name: String,
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub mode: Mode,
    pub policy: Policy,
    pub threshold: Threshold,
    /// The least time between two switches by preference, see [`DEFAULT_HOLD`].
    pub hold: Duration,
    pub spread: SpreadSettings,
    /// The manager's own server, used while no worker is up.
    /// Without one, new connections are refused meanwhile.
    pub fallback: Option<FallbackSettings>,
    /// Of two equally good workers the earlier one here is taken.
    pub backends: Vec<BackendSettings>,
}

impl ServiceSettings {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address,
            protocol: self.protocol,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallbackSettings {
    pub id: BackendId,
    pub address: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    pub id: BackendId,
    /// The worker's name, as its heartbeats give it; one worker may serve several services.
    pub worker: String,
    pub address: SocketAddr,
    /// What it takes beside others that are as good, in percent; usually 100.
    pub weight_percent: u32,
}

/// How packets reach a service's workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Addresses are translated both ways; a worker needs nothing installed.
    #[default]
    Nat,
    /// Requests reach the worker as the client sent them, and its answers do not come by here: its
    /// agent's DSR translator translates.
    Dsr,
    /// Only the destination is translated: a worker sees the client's address, and its route back leads
    /// through the manager.
    Routed,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Nat, Self::Dsr, Self::Routed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dsr => "dsr",
            Self::Routed => "routed",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a service's worker is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The worker with the most available memory, kept until another has more by the threshold.
    Memory,
    /// Of two workers drawn by the memory they can spare, the one with fewer connections.
    #[default]
    Balanced,
    /// One worker after the other.
    RoundRobin,
    /// The worker with the fewest connections.
    LeastConnections,
    /// The same worker for the same client address.
    SourceHash,
}

/// What the kernel does with a service's places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// Tries one after the other for a client whose SYN the selected worker does not answer.
    Ranked,
    Balanced,
    RoundRobin,
    LeastConnections,
    SourceHash,
}

impl Policy {
    /// Every policy, the default first.
    pub const ALL: [Self; 5] = [
        Self::Balanced,
        Self::Memory,
        Self::RoundRobin,
        Self::LeastConnections,
        Self::SourceHash,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Balanced => "balanced",
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
            Self::SourceHash => "source_hash",
        }
    }

    /// How connections are spread; nothing for the policy that selects one worker for all.
    pub fn kind(self) -> Option<SlotKind> {
        match self {
            Self::Memory => None,
            Self::Balanced => Some(SlotKind::Balanced),
            Self::RoundRobin => Some(SlotKind::RoundRobin),
            Self::LeastConnections => Some(SlotKind::LeastConnections),
            Self::SourceHash => Some(SlotKind::SourceHash),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How the policies that spread connections weigh workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpreadSettings {
    /// How often weights are looked at, at most.
    pub rebalance_interval: Duration,
    /// The part of its memory that a worker keeps.
    pub reserve_percent: u32,
    /// A worker whose tasks wait for memory this much takes nothing.
    pub pressure_limit: Pressure,
    /// How long a worker that came back takes less than its share.
    pub ramp_up: Duration,
    pub max_share: MaxShare,
}

/// The most that a worker may take of a service's new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxShare {
    /// Of n workers with memory to spare, 6 / (n + 5) by what they claim to have.
    Auto,
    /// In percent; an equal share for each is always allowed.
    Percent(u32),
}

impl fmt::Display for MaxShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Default for SpreadSettings {
    fn default() -> Self {
        Self {
            rebalance_interval: Duration::from_millis(250),
            reserve_percent: 5,
            pressure_limit: Pressure(2_000),
            ramp_up: Duration::from_secs(10),
            max_share: MaxShare::Auto,
        }
    }
}

/// How much more memory another worker must have before the selection moves to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// The absolute difference between the first two workers heard, but not under 1 MiB.
    Auto,
    Bytes(u64),
    /// Of the selected worker's available memory, so that it shrinks as that worker fills up.
    Percent(u32),
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => Bytes(*bytes).fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// What a restarted manager found in the pinned maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdoptedState {
    /// The selection in force; ids that the settings do not know are ignored.
    pub selections: BTreeMap<ServiceId, BackendId>,
    /// The services whose connections were spread.
    pub spread: BTreeSet<ServiceId>,
    /// What the backends weighed.
    pub weights: BTreeMap<BackendId, u32>,
    /// The backends that were up; a selected worker counts as up in any case.
    pub up: BTreeSet<BackendId>,
    /// The backends that got no new connections but kept the ones they had.
    pub draining: BTreeSet<BackendId>,
    /// What the operator had ordered.
    pub overrides: AdminOverrides,
    /// How much is left of each paused worker's pause.
    pub pauses: BTreeMap<String, Duration>,
    /// For how long the workers that were late then had been silent.
    pub silences: BTreeMap<String, Duration>,
}
