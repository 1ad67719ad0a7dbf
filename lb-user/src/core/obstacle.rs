//! What keeps a worker that is up from a service whose workers answer the clients directly.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;

/// Why a worker cannot serve in mode `dsr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// Its agent does not say that a companion translates the service there.
    NoCompanion,
    /// A router is on the way, which would send packets to the service's address back.
    OtherLink,
}

impl Obstacle {
    /// Says it to a person, with what to do.
    pub fn explain(self, worker: &str, service: Endpoint) -> String {
        match self {
            Self::NoCompanion => {
                format!("{worker} has no companion for {service}: start its agent with --dsr")
            }
            Self::OtherLink => format!(
                "{worker} is behind a router, and mode \"dsr\" needs it on the manager's own link: \
                 move it there, or serve {service} by mode \"nat\""
            ),
        }
    }
}
