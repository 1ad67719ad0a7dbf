//! What the core is told once, at its start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::memory::Bytes;
use super::order::Orders;

/// The name under which every service's fallback appears; no worker may have it.
pub const MANAGER: &str = "manager";

/// Names a service across the kernel boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceId(pub u32);

/// Names one (service, worker) pair, or a service's fallback, across the kernel boundary; never 0.
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
pub struct Settings {
    /// A worker is up while its last heartbeat is not older than this.
    pub down_after: Duration,
    /// How many consecutive good heartbeats bring a worker back; 0 counts as 1.
    pub up_after: u32,
    pub services: Vec<ServiceSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSettings {
    pub id: ServiceId,
    pub name: String,
    pub address: SocketAddrV4,
    pub policy: Policy,
    pub threshold: Threshold,
    /// The manager's own server, used while no worker is up.
    pub fallback: FallbackSettings,
    /// Of two equally good workers the earlier one here is taken.
    pub backends: Vec<BackendSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallbackSettings {
    pub id: BackendId,
    pub address: SocketAddrV4,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    pub id: BackendId,
    /// The worker's name, as its heartbeats give it; one worker may serve several services.
    pub worker: String,
    pub address: SocketAddrV4,
}

/// How a service's worker is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The worker with the most available memory, kept until another has more by the threshold.
    Memory,
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
pub struct Adopted {
    /// The selection in force; ids that the settings do not know are ignored.
    pub selections: BTreeMap<ServiceId, BackendId>,
    /// The backends that were up; a selected worker counts as up in any case.
    pub up: BTreeSet<BackendId>,
    /// The backends that got no new connections but kept the ones they had.
    pub draining: BTreeSet<BackendId>,
    /// What the operator had ordered.
    pub orders: Orders,
}
