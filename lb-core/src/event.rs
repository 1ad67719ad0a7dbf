//! What happened, for the log: structured for machines, one line for people.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::admin::AdminCommand;
use super::eligibility::Ineligibility;
use super::health::Health;
use super::memory::{Bytes, Memory, Pressure};
use super::reason::{Reason, Rule, fallback_outcome};
use super::settings::{ALL_WORKERS, BackendId, Policy};

/// How much an event should alarm.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warn,
}

/// Why connections are spread otherwise than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A worker came up.
    Joined,
    /// A worker is no longer up.
    Lost,
    /// Weights have moved: by memory, age or ramp.
    Weights,
    /// An operator's word.
    Operator,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joined => "a worker came up",
            Self::Lost => "a worker was lost",
            Self::Weights => "weights have moved",
            Self::Operator => "the operator said so",
        })
    }
}

/// Something the core saw or decided. The JSON form is one object with its kind in `event`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    WorkerUp {
        worker: String,
        was: Health,
        memory_available_bytes: Option<u64>,
        memory_total_bytes: Option<u64>,
    },
    WorkerDown {
        worker: String,
        was: Health,
        /// How long nothing was heard.
        silent_ms: u64,
        /// As last heard.
        memory_available_bytes: Option<u64>,
        /// The operator has it in maintenance.
        expected: bool,
    },
    WorkerUnhealthy {
        worker: String,
        was: Health,
        expected: bool,
    },
    WorkerLeaving {
        worker: String,
        was: Health,
    },
    WorkerMaintenance {
        worker: String,
        was: Health,
    },
    /// A worker that is up cannot serve a service.
    WorkerBarred {
        worker: String,
        service: String,
        obstacle: Ineligibility,
        reason: String,
    },
    /// What barred it is gone.
    WorkerUnbarred {
        worker: String,
        service: String,
    },
    /// A worker's agent was started anew.
    AgentRestarted {
        worker: String,
        boot: String,
    },
    /// The numbers of a worker's unsigned heartbeats begin anew after a silence, under the same boot id:
    /// its machine was restored from a snapshot.
    SequenceReset {
        worker: String,
    },
    /// A worker's agent cannot read the memory figures any more, and repeats the last ones.
    MemoryStale {
        worker: String,
    },
    /// It reads them again.
    MemoryFresh {
        worker: String,
    },
    /// A worker sends too seldom for `down_after`: losing a datagram or two would look like death.
    IntervalTooLong {
        worker: String,
        interval_ms: u64,
        down_after_ms: u64,
    },
    SelectionChanged {
        service: String,
        /// Nothing at the manager's start.
        from: Option<String>,
        /// A worker, `manager`, or `*` where connections are spread.
        to: String,
        /// Nothing where connections are spread.
        backend: Option<BackendId>,
        rule: Rule,
        reason: String,
        from_memory_available_bytes: Option<u64>,
        to_memory_available_bytes: Option<u64>,
        threshold_bytes: Option<u64>,
    },
    /// A restarted manager keeps what it found in the pinned maps.
    SelectionAdopted {
        service: String,
        to: String,
        backend: Option<BackendId>,
    },
    /// Connections are spread otherwise than before. While only memory figures move, this is told now
    /// and then.
    SharesChanged {
        service: String,
        policy: Policy,
        cause: Cause,
        /// How many workers take connections.
        workers: usize,
        /// Who takes most and least, and how much, in hundredths of a percent.
        most: String,
        most_share: u16,
        least: String,
        least_share: u16,
    },
    /// No worker of a service has memory to spare, so that all are treated alike.
    AllWorkersHot {
        service: String,
    },
    /// The last worker of a service that was up is not any more.
    AllWorkersDown {
        service: String,
        fallback: String,
    },
    /// `threshold = "auto"` has found its value.
    ThresholdLearned {
        service: String,
        threshold_bytes: u64,
        one: String,
        one_memory_available_bytes: Option<u64>,
        other: String,
        other_memory_available_bytes: Option<u64>,
    },
    /// The operator has ordered something of a worker.
    OperatorOrder {
        #[serde(flatten)]
        order: AdminCommand,
    },
    /// A pause that the operator had ordered is over.
    PauseEnded {
        worker: String,
        /// Whether it was silent and is up again; otherwise its time is over.
        is_back: bool,
    },
    /// The manager itself did not run (suspended, overloaded); the gap counts against no worker.
    ManagerOverslept {
        gap_ms: u64,
    },
}

impl Event {
    /// Returns the service whose new connections go elsewhere from this event on.
    pub fn decided(&self) -> Option<&str> {
        match self {
            Self::SelectionChanged { service, .. }
            | Self::SelectionAdopted { service, .. }
            | Self::SharesChanged { service, .. } => Some(service),
            _ => None,
        }
    }

    pub fn severity(&self) -> Severity {
        match self {
            Self::WorkerDown { expected: true, .. }
            | Self::WorkerUnhealthy { expected: true, .. }
            | Self::PauseEnded { .. }
            | Self::OperatorOrder { .. } => Severity::Info,
            Self::WorkerDown { .. }
            | Self::WorkerUnhealthy { .. }
            | Self::WorkerBarred { .. }
            | Self::MemoryStale { .. }
            | Self::IntervalTooLong { .. }
            | Self::AllWorkersDown { .. }
            | Self::AllWorkersHot { .. }
            | Self::ManagerOverslept { .. } => Severity::Warn,
            Self::WorkerUp { .. }
            | Self::WorkerLeaving { .. }
            | Self::WorkerMaintenance { .. }
            | Self::WorkerUnbarred { .. }
            | Self::AgentRestarted { .. }
            | Self::SequenceReset { .. }
            | Self::MemoryFresh { .. }
            | Self::SelectionChanged { .. }
            | Self::SelectionAdopted { .. }
            | Self::SharesChanged { .. }
            | Self::ThresholdLearned { .. } => Severity::Info,
        }
    }

    /// Returns the event of a worker that is now in state `health`.
    pub(super) fn of_worker(
        worker: String,
        was: Health,
        health: Health,
        memory: Option<Memory>,
        silent_ms: u64,
        expected: bool,
    ) -> Option<Self> {
        let memory_available_bytes = memory.map(|memory| memory.available_bytes);
        Some(match health {
            // The latter are never a worker's own.
            Health::Unknown
            | Health::Draining
            | Health::Cut
            | Health::Paused
            | Health::Barred
            | Health::Unreachable => return None,
            Health::Up => Self::WorkerUp {
                worker,
                was,
                memory_available_bytes,
                memory_total_bytes: memory.and_then(|memory| memory.total_bytes),
            },
            Health::Down => Self::WorkerDown {
                worker,
                was,
                silent_ms,
                memory_available_bytes,
                expected,
            },
            Health::Unhealthy => Self::WorkerUnhealthy {
                worker,
                was,
                expected,
            },
            Health::Leaving => Self::WorkerLeaving { worker, was },
            Health::Maintenance => Self::WorkerMaintenance { worker, was },
        })
    }

    pub(super) fn of_selection(
        service: String,
        backend: Option<BackendId>,
        reason: &Reason,
    ) -> Self {
        let to = reason.to.name.clone();
        if reason.rule == Rule::Adopted {
            return Self::SelectionAdopted {
                service,
                to,
                backend,
            };
        }
        Self::SelectionChanged {
            service,
            from: reason.from.as_ref().map(|from| from.name.clone()),
            to,
            backend,
            rule: reason.rule,
            reason: reason.to_string(),
            from_memory_available_bytes: reason.from.as_ref().and_then(|from| from.available_bytes),
            to_memory_available_bytes: reason.to.available_bytes,
            threshold_bytes: reason.threshold_bytes,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkerUp {
                worker,
                was,
                memory_available_bytes,
                memory_total_bytes,
            } => {
                write!(f, "{worker} is up (was {was})")?;
                if let Some(available) = memory_available_bytes {
                    write!(f, ", {} available", Bytes(*available))?;
                }
                match memory_total_bytes {
                    Some(total) => write!(f, " of {}", Bytes(*total)),
                    None => Ok(()),
                }
            }
            Self::WorkerDown {
                worker,
                silent_ms,
                expected,
                ..
            } => {
                write!(f, "{worker} is down: nothing heard for {silent_ms} ms")?;
                f.write_str(if *expected { ", as expected" } else { "" })
            }
            Self::WorkerUnhealthy { worker, .. } => write!(
                f,
                "{worker} is unhealthy: its agent reports that its service does not answer"
            ),
            Self::WorkerLeaving { worker, .. } => {
                write!(f, "{worker} is leaving: its agent stops")
            }
            Self::WorkerMaintenance { worker, .. } => write!(f, "{worker} is in maintenance"),
            Self::WorkerBarred {
                service, reason, ..
            } => write!(f, "{service}: {reason}"),
            Self::WorkerUnbarred { worker, service } => {
                write!(f, "{service}: nothing keeps {worker} from serving any more")
            }
            Self::AgentRestarted { worker, boot } => {
                write!(f, "the agent of {worker} was started anew (boot {boot})")
            }
            Self::SequenceReset { worker } => write!(
                f,
                "the heartbeats of {worker} begin anew with lower numbers: its machine was restored \
                 from a snapshot"
            ),
            Self::MemoryStale { worker } => write!(
                f,
                "the agent of {worker} cannot read its memory figures and repeats the last ones: see \
                 its log"
            ),
            Self::MemoryFresh { worker } => {
                write!(f, "the agent of {worker} reads its memory figures again")
            }
            Self::IntervalTooLong {
                worker,
                interval_ms,
                down_after_ms,
            } => write!(
                f,
                "{worker} sends a heartbeat only every {interval_ms} ms, but counts as down after \
                 {down_after_ms} ms: lower its --interval or raise down_after to three intervals"
            ),
            Self::SelectionChanged {
                service,
                from: Some(from),
                to,
                reason,
                ..
            } => write!(f, "{service}: {from} -> {to}: {reason}"),
            Self::SelectionChanged {
                service,
                from: None,
                to,
                reason,
                ..
            } => write!(f, "{service}: {to} selected: {reason}"),
            Self::SelectionAdopted { service, to, .. } if to == ALL_WORKERS => {
                write!(f, "{service}: connections stay spread over the restart")
            }
            Self::SelectionAdopted { service, to, .. } => {
                write!(f, "{service}: {to} stays selected over the restart")
            }
            Self::SharesChanged {
                service,
                policy,
                cause,
                workers,
                most,
                most_share,
                least,
                least_share,
            } => write!(
                f,
                "{service}: {policy} spreads connections over {workers} workers ({cause}): most go \
                 to {most} ({}), fewest to {least} ({})",
                Pressure(*most_share),
                Pressure(*least_share)
            ),
            Self::AllWorkersHot { service } => write!(
                f,
                "{service}: no worker has memory to spare, so all are treated alike"
            ),
            Self::AllWorkersDown { service, fallback } => write!(
                f,
                "{service}: no worker is up any more; {}",
                fallback_outcome(fallback)
            ),
            Self::ThresholdLearned {
                service,
                threshold_bytes,
                one,
                one_memory_available_bytes,
                other,
                other_memory_available_bytes,
            } => write!(
                f,
                "{service}: the automatic threshold is {} ({one} {}, {other} {})",
                Bytes(*threshold_bytes),
                Bytes(one_memory_available_bytes.unwrap_or(0)),
                Bytes(other_memory_available_bytes.unwrap_or(0)),
            ),
            Self::OperatorOrder { order } => write!(f, "{order}"),
            Self::PauseEnded {
                worker,
                is_back: true,
            } => write!(f, "the pause of {worker} is over: it is back"),
            Self::PauseEnded {
                worker,
                is_back: false,
            } => write!(f, "the pause of {worker} is over: its time has passed"),
            Self::ManagerOverslept { gap_ms } => write!(
                f,
                "the manager did not run for {gap_ms} ms; that time counts against no worker"
            ),
        }
    }
}
