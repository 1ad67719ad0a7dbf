//! The health of a worker, and its transition table.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::report::{Report, WorkerState};

lb_common::named_enum! {
    /// The state of a worker, or of a backend.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Health {
        /// No heartbeat since the manager started.
        #[default]
        Unknown = "unknown",
        /// Ready, and its last heartbeat is not older than `down_after`. Only such a worker is selected.
        Up = "up",
        /// No heartbeat within `down_after`, or fewer than `up_after` since.
        Down = "down",
        /// Its agent reports that its server does not answer.
        Unhealthy = "unhealthy",
        /// Its agent announced that it stops.
        Leaving = "leaving",
        /// Its agent announced maintenance.
        Maintenance = "maintenance",
        /// Drained by the operator. This state and those below are states of a backend, not of a worker.
        Draining = "draining",
        /// Drained, and its open connections are reset.
        Terminated = "terminated",
        /// Its silence is expected for a while: it keeps its connections, also while heartbeats are missing.
        Paused = "paused",
        /// Up, but cannot serve in the service's mode, see [`super::Ineligibility`].
        Ineligible = "ineligible",
        /// Up, but the manager has no route to it. It keeps its connections: the route may come back.
        Unreachable = "unreachable",
        /// Up, but its server refuses or does not answer clients' handshakes. It keeps its connections.
        Failing = "failing",
    }
}

impl Health {
    pub fn is_up(self) -> bool {
        self == Self::Up
    }

    /// Whether silence changes the state.
    pub fn needs_deadline(self) -> bool {
        transition(self, HealthEvent::Timeout) != self
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Maintenance => "in maintenance",
            Self::Draining => "drained",
            Self::Ineligible => "not able to serve in its mode",
            Self::Unreachable => "out of reach",
            other => other.name(),
        })
    }
}

/// What happened to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthEvent {
    /// A good heartbeat; `proven` from the `up_after`th in a row on.
    Good { proven: bool },
    /// A heartbeat that reports that the server does not answer.
    Unhealthy,
    /// A heartbeat that announces the stop of the agent.
    Leaving,
    /// A heartbeat that announces maintenance.
    Maintenance,
    /// No heartbeat within `down_after`.
    Timeout,
}

impl HealthEvent {
    /// Returns the event of a heartbeat. The announced state has precedence over the health of the server.
    pub fn of(report: &Report, proven: bool) -> Self {
        match (report.state, report.healthy) {
            (WorkerState::Leaving, _) => Self::Leaving,
            (WorkerState::Maintenance, _) => Self::Maintenance,
            (WorkerState::Ready, false) => Self::Unhealthy,
            (WorkerState::Ready, true) => Self::Good { proven },
        }
    }
}

/// Returns the state after an event.
///
/// One good heartbeat is enough for the first time, so that a service starts at once. A worker that returns needs
/// `up_after` of them, so that a flapping worker does not flap the service. A worker that is leaving or in maintenance
/// may be silent.
pub fn transition(health: Health, event: HealthEvent) -> Health {
    match (health, event) {
        (_, HealthEvent::Unhealthy) => Health::Unhealthy,
        (_, HealthEvent::Leaving) => Health::Leaving,
        (_, HealthEvent::Maintenance) => Health::Maintenance,
        (Health::Unknown | Health::Up, HealthEvent::Good { .. }) => Health::Up,
        (_, HealthEvent::Good { proven: true }) => Health::Up,
        (unproven, HealthEvent::Good { proven: false }) => unproven,
        (Health::Up | Health::Unhealthy, HealthEvent::Timeout) => Health::Down,
        (other, HealthEvent::Timeout) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::Health::*;
    use super::*;

    #[test]
    fn every_transition_of_the_health_table() {
        let events = [
            HealthEvent::Good { proven: false },
            HealthEvent::Good { proven: true },
            HealthEvent::Unhealthy,
            HealthEvent::Leaving,
            HealthEvent::Maintenance,
            HealthEvent::Timeout,
        ];
        // One line for each state, one column for each event.
        let table = [
            (Unknown, [Up, Up, Unhealthy, Leaving, Maintenance, Unknown]),
            (Up, [Up, Up, Unhealthy, Leaving, Maintenance, Down]),
            (Down, [Down, Up, Unhealthy, Leaving, Maintenance, Down]),
            (
                Unhealthy,
                [Unhealthy, Up, Unhealthy, Leaving, Maintenance, Down],
            ),
            (
                Leaving,
                [Leaving, Up, Unhealthy, Leaving, Maintenance, Leaving],
            ),
            (
                Maintenance,
                [
                    Maintenance,
                    Up,
                    Unhealthy,
                    Leaving,
                    Maintenance,
                    Maintenance,
                ],
            ),
        ];
        for (health, expected) in table {
            assert_eq!(
                events.map(|event| transition(health, event)),
                expected,
                "{health:?}"
            );
        }
    }
}
