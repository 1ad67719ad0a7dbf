//! Policies: how the workers for a service's new connections are chosen.
//!
//! Each policy has a file of its own. `memory` selects one worker for all connections. Every other
//! policy implements [`SpreadPolicy`]: it weighs the workers and assigns them to slots, and the kernel picks a
//! slot for each connection (`lb_common::maps::policy`). In this module, a worker is an index into the service's
//! backends.

mod balanced;
mod least_connections;
mod memory;
mod memory_per_connection;
mod round_robin;
mod settings;
mod slots;
mod source_hash;
mod spread;
mod weights;

use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use memory::{Candidate, Choice, MemoryPolicy};
pub use memory::{DEFAULT_HOLD, MemorySettings, Threshold};
pub(crate) use memory_per_connection::MemoryPerConnection;
pub use settings::{MaxShare, SpreadSettings};
pub use slots::SlotKind;
pub(crate) use spread::{Spread, SpreadPolicy};
pub(crate) use weights::{WeightInput, has_no_headroom};

lb_common::named_enum! {
    /// How a service's worker is chosen. The first policy is the default.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Policy {
        /// Of two workers drawn by their headroom, the one with fewer connections.
        #[default]
        Balanced = "balanced",
        /// The worker with the most available memory, until another has more by the threshold.
        Memory = "memory",
        /// One worker after the other.
        RoundRobin = "round_robin",
        /// The worker with the fewest connections.
        LeastConnections = "least_connections",
        /// The same worker for the same client address.
        SourceHash = "source_hash",
    }
}

impl Policy {
    /// Returns the policy's implementation for workers at these addresses; `None` for policy `memory`, which does not
    /// spread connections.
    fn spread(self, workers: &[SocketAddr]) -> Option<Box<dyn SpreadPolicy>> {
        Some(match self {
            Self::Memory => return None,
            Self::Balanced => Box::new(balanced::Balanced::new(workers.len())),
            Self::RoundRobin => Box::new(round_robin::RoundRobin),
            Self::LeastConnections => Box::new(least_connections::LeastConnections),
            Self::SourceHash => Box::new(source_hash::SourceHash::new(workers)),
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
