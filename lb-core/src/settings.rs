//! The settings of the core, and the state that it adopts at its start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::{AdminOverrides, AdminState, Audited};
use crate::endpoint::{Endpoint, Protocol};
use crate::handshakes::{AdoptedEjection, FailingSettings};
use crate::names::{MANAGER, NO_BACKEND};
use crate::policy::{MemorySettings, Policy, SpreadSettings};

/// The default of [`CoreSettings::down_after`].
pub const DEFAULT_DOWN_AFTER: Duration = Duration::from_millis(1500);

/// A service in the maps.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct ServiceId(pub u32);

/// A worker in one service, or a service's fallback, in the maps; 0 is none.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct BackendId(pub u32);

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreSettings {
    /// A worker is up while its last heartbeat is not older than this.
    pub down_after: Duration,
    /// The good heartbeats in a row after which a worker is up again; 0 counts as 1.
    pub up_after: u32,
    pub failing: FailingSettings,
    /// If this part of a service's workers falls silent together, those whose packets arrive stay up; `None` disables
    /// that.
    pub panic_percent: Option<u32>,
    pub services: Vec<ServiceSettings>,
}

impl CoreSettings {
    /// Returns the names of a backend's service and worker; `None` for a fallback.
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
    pub memory: MemorySettings,
    pub spread: SpreadSettings,
    /// Whether a worker that refuses or does not answer handshakes is failing.
    pub passive_checks: bool,
    /// The manager's own server, used while no worker is up. Without it, new connections are refused then.
    pub fallback: Option<FallbackSettings>,
    /// Whether the packet programs send a SYN to another worker after a worker answered it with RST.
    pub retry_refused: bool,
    /// Of two equal workers the first one is selected.
    pub backends: Vec<BackendSettings>,
}

impl ServiceSettings {
    /// Returns the name of what serves while no worker is up: [`MANAGER`] or [`NO_BACKEND`].
    pub fn fallback_name(&self) -> &'static str {
        match self.fallback {
            Some(_) => MANAGER,
            None => NO_BACKEND,
        }
    }

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
    /// The worker's name in its heartbeats; one worker may serve several services.
    pub worker: String,
    pub address: SocketAddr,
    /// The configured weight; 100 is the default.
    pub weight_percent: u32,
    /// The source that gave it; `None` if it is from the configuration file.
    pub source: Option<String>,
    /// The state that its source requests. Of this and the operator's state, the greater one is in force.
    pub source_state: Option<Audited<AdminState>>,
    /// Whether it takes connections only while no other worker can.
    pub backup: bool,
    /// Whether heartbeats are expected. Without an agent, the worker is up until its handshakes fail.
    pub agent: bool,
    /// The most open connections; 0 is no limit.
    pub max_connections: u32,
}

lb_common::named_enum! {
    /// How packets reach a service's workers.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Mode {
        /// Both addresses are translated; a worker needs nothing installed.
        #[default]
        Nat = "nat",
        /// Requests reach the worker as the client sent them, and its replies go directly to the client: its
        /// agent's DSR translator translates.
        Dsr = "dsr",
        /// Only the destination is translated: a worker sees the client's address, and its replies are routed
        /// through the manager.
        Routed = "routed",
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a restarted manager found in the pinned maps and its state files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdoptedState {
    /// The selections in force; unknown ids are ignored.
    pub selections: BTreeMap<ServiceId, BackendId>,
    /// The services whose connections were spread.
    pub spread: BTreeSet<ServiceId>,
    /// The weights of the backends.
    pub weights: BTreeMap<BackendId, u32>,
    /// The backends that were up; a selected backend counts as up.
    pub up: BTreeSet<BackendId>,
    /// The backends that got no new connection but kept their open ones.
    pub draining: BTreeSet<BackendId>,
    /// The operators' commands in force.
    pub overrides: AdminOverrides,
    /// The time left of each worker's pause.
    pub pauses: BTreeMap<String, Duration>,
    /// The silence of the workers of [`crate::Core::overdue_workers`].
    pub silent_for: BTreeMap<String, Duration>,
    /// The failing backends of [`crate::Core::ejections`].
    pub ejections: BTreeMap<BackendId, AdoptedEjection>,
}
