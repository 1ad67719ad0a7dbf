//! The core's state at one instant, as `memlb status` shows it.

use std::fmt;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::{AdminState, Audited};
use crate::endpoint::Protocol;
use crate::health::Health;
use crate::memory::Pressure;
use crate::milliseconds;
use crate::names::MANAGER;
use crate::policy::Policy;
use crate::reason::{Rule, fallback_outcome};
use crate::service::{Selection, Service};
use crate::settings::{BackendId, BackendSettings, FallbackSettings, Mode, ServiceId};
use crate::share_reason::ShareReason;
use crate::worker::Worker;

/// All services, in the order of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    pub services: Vec<ServiceSnapshot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceSnapshot<B = BackendSnapshot> {
    pub name: String,
    #[serde(default)]
    pub service_id: ServiceId,
    pub address: String,
    pub protocol: Protocol,
    pub mode: Mode,
    pub policy: Policy,
    /// As configured: `auto`, `64.0 MiB`, `10%`.
    pub threshold: String,
    /// In force; `null` while `auto` has not seen two workers.
    pub threshold_bytes: Option<u64>,
    /// The least time that policy `memory` keeps a worker.
    #[serde(default)]
    pub hold_ms: u64,
    /// A worker that has more memory by more than the threshold, and waits for the end of the hold.
    pub waiting: Option<WaitingSnapshot>,
    /// The selected worker, `manager`, `none`, or `*` while connections are spread.
    pub selected: String,
    pub rule: Rule,
    pub reason: String,
    /// Age of the selection.
    pub since_ms: u64,
    /// A problem that the operator should know: no worker can serve, or heartbeats are missing.
    pub problem: Option<String>,
    /// The workers in the order of the configuration, then the fallback if there is one.
    pub backends: Vec<B>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingSnapshot {
    pub worker: String,
    /// The time left of the hold.
    pub left_ms: u64,
}

impl fmt::Display for WaitingSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, left_ms } = self;
        write!(
            f,
            "{worker} has more memory and waits for the hold to end, in {left_ms} ms"
        )
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendSnapshot {
    pub name: String,
    pub backend_id: BackendId,
    pub address: String,
    /// The source that gave it: `joined` for `auto_join`, `null` for the configuration file.
    pub source: Option<String>,
    /// The health under the operator's commands and the network's limits.
    pub state: Health,
    /// The worker's own health, by its heartbeats.
    pub health: Health,
    /// Why a worker that is up cannot serve.
    pub ineligible_reason: Option<String>,
    /// Why it gets no new connection, or less than its share.
    pub reason: Option<ShareReason>,
    /// Whether it is up, and no check of its agent covers its server.
    #[serde(default)]
    pub unchecked: bool,
    /// The failed handshakes and the trials of a failing worker.
    pub failing: Option<FailingSnapshot>,
    /// Whether it takes connections only while no other worker can.
    #[serde(default)]
    pub backup: bool,
    /// Whether heartbeats are expected.
    #[serde(default = "expected")]
    pub agent: bool,
    /// Whether its heartbeats are missing, and it stays up because its packets arrive.
    #[serde(default)]
    pub heartbeats_missing: bool,
    /// The operator's drain or maintenance.
    pub admin_state: Option<Audited<AdminState>>,
    /// The operator's weight; `null` means 100.
    pub weight_percent: Option<Audited<u32>>,
    /// The operator's pause, in milliseconds.
    pub pause: Option<Audited<u64>>,
    /// The time left of the pause.
    pub pause_left_ms: Option<u64>,
    /// Time since the last heartbeat; `null` before the first one, and for the fallback.
    pub age_ms: Option<u64>,
    /// The heartbeat interval that its agent reports.
    pub interval_ms: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    /// Age of the figures in the last heartbeat, if the agent cannot read new ones.
    pub memory_stale_ms: Option<u64>,
    /// Memory pressure in hundredths of a percent.
    pub memory_pressure: Option<Pressure>,
    /// The weight in the kernel, under a policy that spreads connections.
    pub weight: u32,
    /// Share of the new connections, in hundredths of a percent, as far as the policy fixes it.
    pub share: u16,
    /// The weight of configuration and operator, in percent.
    pub manual_weight_percent: u32,
    /// Below 100 for a while after the worker came back.
    pub ramp_percent: u32,
}

fn expected() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailingSnapshot {
    /// Refused handshakes in the row that made it fail.
    pub refused: u64,
    /// Unanswered handshakes in that row.
    pub unanswered: u64,
    /// Time since the ejection.
    pub since_ms: u64,
    /// Trials that failed.
    pub trials: u32,
    /// Time until the next trial; `null` while one runs.
    pub next_trial_ms: Option<u64>,
}

impl BackendSnapshot {
    /// Returns the state for tables, and whether no check covers a worker that is up.
    pub fn state_text(&self) -> String {
        match (self.state.name(), self.unchecked) {
            (state, true) if self.state.is_up() => format!("{state} unchecked"),
            (state, _) => state.to_owned(),
        }
    }
}

impl<B> ServiceSnapshot<B> {
    /// Returns the same service with other backends.
    pub fn map_backends<C>(self, map: impl FnMut(B) -> C) -> ServiceSnapshot<C> {
        ServiceSnapshot {
            name: self.name,
            service_id: self.service_id,
            address: self.address,
            protocol: self.protocol,
            mode: self.mode,
            policy: self.policy,
            threshold: self.threshold,
            threshold_bytes: self.threshold_bytes,
            hold_ms: self.hold_ms,
            waiting: self.waiting,
            selected: self.selected,
            rule: self.rule,
            reason: self.reason,
            since_ms: self.since_ms,
            problem: self.problem,
            backends: self.backends.into_iter().map(map).collect(),
        }
    }
}

impl Service {
    pub fn snapshot(&self, workers: &[Worker], now: Instant) -> ServiceSnapshot {
        let mut backends: Vec<BackendSnapshot> = (0..self.workers.len())
            .map(|backend| self.backend(backend, workers, now))
            .collect();
        backends.extend(self.settings.fallback.as_ref().map(|it| self.fallback(it)));
        ServiceSnapshot {
            name: self.settings.name.clone(),
            service_id: self.settings.id,
            address: self.settings.address.to_string(),
            protocol: self.settings.protocol,
            mode: self.settings.mode,
            policy: self.settings.policy,
            threshold: self.settings.memory.threshold.to_string(),
            threshold_bytes: self.threshold_bytes(),
            hold_ms: milliseconds(self.settings.memory.hold),
            waiting: self.waiting(now).map(|(backend, left)| WaitingSnapshot {
                worker: workers[self.workers[backend]].name.clone(),
                left_ms: milliseconds(left),
            }),
            selected: self.reason.to.name.clone(),
            rule: self.reason.rule,
            reason: format!("{:#}", self.reason),
            since_ms: milliseconds(now.saturating_duration_since(self.since)),
            problem: self.problem(workers),
            backends,
        }
    }

    fn backend(&self, backend: usize, workers: &[Worker], now: Instant) -> BackendSnapshot {
        let worker = &workers[self.workers[backend]];
        let BackendSettings {
            id,
            address,
            source,
            ..
        } = &self.settings.backends[backend];
        BackendSnapshot {
            name: worker.name.clone(),
            backend_id: *id,
            address: address.to_string(),
            source: source.clone(),
            state: self.state(backend, worker),
            health: worker.health,
            ineligible_reason: self.ineligible_reason(backend, worker),
            reason: self.share_reason(backend, workers, now),
            unchecked: worker.health.is_up() && !worker.checked,
            failing: self.failing(backend, now),
            backup: self.settings.backends[backend].backup,
            agent: worker.agent,
            heartbeats_missing: worker.heartbeats_missing,
            admin_state: self.overrides[backend].state.clone(),
            weight_percent: self.overrides[backend].weight_percent.clone(),
            pause: self.overrides[backend].pause.clone(),
            pause_left_ms: (worker.paused_until)
                .map(|until| milliseconds(until.saturating_duration_since(now))),
            age_ms: worker.age(now).map(milliseconds),
            interval_ms: worker.interval.map(milliseconds),
            memory_available_bytes: worker.available_bytes(),
            memory_total_bytes: worker.memory.and_then(|memory| memory.total_bytes),
            memory_stale_ms: worker.memory_stale.map(milliseconds),
            memory_pressure: worker.pressure,
            weight: self.weight(backend),
            share: self.share(Selection::Backend(backend)),
            manual_weight_percent: self.manual_percent(backend),
            ramp_percent: self.ramp_percent(backend, workers, now),
        }
    }

    fn failing(&self, backend: usize, now: Instant) -> Option<FailingSnapshot> {
        let ejection = self.handshakes[backend].ejection()?;
        Some(FailingSnapshot {
            refused: ejection.evidence.refused,
            unanswered: ejection.evidence.unanswered,
            since_ms: milliseconds(now.saturating_duration_since(ejection.since)),
            trials: ejection.trials,
            next_trial_ms: (ejection.next_trial)
                .map(|at| milliseconds(at.saturating_duration_since(now))),
        })
    }

    /// Returns that no worker, or no primary worker, can serve, with the names of the failing ones.
    fn problem(&self, workers: &[Worker]) -> Option<String> {
        let outcome = match self.selection {
            _ if self.is_on_backups() => "the backups serve".to_owned(),
            Selection::Fallback if self.reason.rule == Rule::NoWorkerUp => {
                fallback_outcome(self.settings.fallback_name())
            }
            _ => return None,
        };
        let all = self.workers.iter().enumerate();
        let failing = all.filter(|(backend, worker)| {
            self.state(*backend, &workers[**worker]) == Health::Failing
        });
        let failing: Vec<&str> = failing.map(|(_, it)| workers[*it].name.as_str()).collect();
        let what = match self.is_on_backups() {
            true => "no primary worker can serve",
            false => "no worker can serve",
        };
        Some(match failing.is_empty() {
            true => format!("{what}: {outcome}"),
            false => format!("{what} ({} failing): {outcome}", failing.join(", ")),
        })
    }

    fn fallback(&self, fallback: &FallbackSettings) -> BackendSnapshot {
        let FallbackSettings { id, address } = fallback;
        BackendSnapshot {
            name: MANAGER.to_owned(),
            backend_id: *id,
            address: address.to_string(),
            state: Health::Up,
            health: Health::Up,
            weight: 1,
            share: self.share(Selection::Fallback),
            manual_weight_percent: 100,
            ramp_percent: 100,
            ..BackendSnapshot::default()
        }
    }

    /// Returns the share of new connections, in hundredths of a percent.
    pub(super) fn share(&self, of: Selection) -> u16 {
        match (self.selection, &self.spread, of) {
            (Selection::Spread, Some(spread), Selection::Backend(backend)) => spread.share(backend),
            (target, _, of) if target == of => 10_000,
            _ => 0,
        }
    }
}
