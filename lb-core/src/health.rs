//! When a worker is up, down or neither: the one transition table.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::{Report, WorkerState};

/// How the manager sees a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not heard since the manager started.
    Unknown,
    /// Heard within `down_after`, and ready. The only state in which a worker is selected.
    Up,
    /// Silent for longer than `down_after`, or back for fewer than `up_after` heartbeats.
    Down,
    /// Heard, but its own service does not answer.
    Unhealthy,
    /// Its agent said that it stops.
    Leaving,
    /// Its operator took it out.
    Maintenance,
    /// Drained by the manager's operator. Like [`Self::Cut`] and [`Self::Paused`] never a worker's own state, only how it
    /// is treated, see [`Health::under_admin_state`].
    Draining,
    /// Drained, and its connections cut.
    Cut,
    /// Expected to be silent for a while, by the manager's operator: it keeps its connections, whatever
    /// is heard of it.
    Paused,
    /// Up, but cannot serve as the service's mode asks, see [`super::Ineligibility`]. Never a worker's own
    /// state either.
    Barred,
    /// Up, but the manager has no route to it. It keeps its connections: the route may come back.
    Unreachable,
}

impl Health {
    pub fn is_up(self) -> bool {
        self == Self::Up
    }

    /// Whether silence would mean something new, so that a deadline must be watched.
    pub fn needs_deadline(self) -> bool {
        next(self, HealthEvent::Timeout) != self
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
            Self::Unhealthy => "unhealthy",
            Self::Leaving => "leaving",
            Self::Maintenance => "maintenance",
            Self::Draining => "draining",
            Self::Cut => "cut",
            Self::Paused => "paused",
            Self::Barred => "barred",
            Self::Unreachable => "unreachable",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Maintenance => "in maintenance",
            Self::Draining => "drained",
            Self::Cut => "cut off",
            Self::Barred => "barred from answering clients directly",
            Self::Unreachable => "out of reach",
            other => other.name(),
        })
    }
}

/// What just happened to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthEvent {
    /// A good heartbeat; `proven` once `up_after` of them came in a row.
    Good { proven: bool },
    /// A heartbeat that says the service does not answer.
    Unhealthy,
    /// A heartbeat that says the agent stops.
    Leaving,
    /// A heartbeat that says the worker is in maintenance.
    Maintenance,
    /// Nothing for longer than `down_after`.
    Timeout,
}

impl HealthEvent {
    /// Returns what a heartbeat means; what the worker wants goes before how its service does.
    pub fn of(report: &Report, proven: bool) -> Self {
        match (report.state, report.healthy) {
            (WorkerState::Leaving, _) => Self::Leaving,
            (WorkerState::Maintenance, _) => Self::Maintenance,
            (WorkerState::Ready, false) => Self::Unhealthy,
            (WorkerState::Ready, true) => Self::Good { proven },
        }
    }
}

/// Returns the state after a sign.
///
/// A first contact needs no proof, so that a lab starts at its first heartbeat; every way back does,
/// so that a flapping worker does not flap the service. A worker that took its leave, or is in
/// maintenance, may fall silent without alarm.
pub fn next(health: Health, sign: HealthEvent) -> Health {
    match (health, sign) {
        (_, HealthEvent::Unhealthy) => Health::Unhealthy,
        (_, HealthEvent::Leaving) => Health::Leaving,
        (_, HealthEvent::Maintenance) => Health::Maintenance,
        (Health::Unknown | Health::Up, HealthEvent::Good { .. }) => Health::Up,
        (_, HealthEvent::Good { proven: true }) => Health::Up,
        (unproven, HealthEvent::Good { proven: false }) => unproven,
        (Health::Up | Health::Unhealthy, HealthEvent::Timeout) => Health::Down,
        (quiet, HealthEvent::Timeout) => quiet,
    }
}

#[cfg(test)]
mod tests {
    use super::Health::*;
    use super::*;

    #[test]
    fn the_whole_table() {
        let signs = [
            HealthEvent::Good { proven: false },
            HealthEvent::Good { proven: true },
            HealthEvent::Unhealthy,
            HealthEvent::Leaving,
            HealthEvent::Maintenance,
            HealthEvent::Timeout,
        ];
        // One line for each state, one column for each sign.
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
            assert_eq!(signs.map(|sign| next(health, sign)), expected, "{health:?}");
        }
    }
}
