//! The core's state at one instant, as `memlb status` shows it.

use std::fmt;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::admin::{AdminState, Audited};
use super::endpoint::Protocol;
use super::health::Health;
use super::memory::Pressure;
use super::milliseconds;
use super::reason::Rule;
use super::service::{Selection, Service};
use super::settings::{BackendId, BackendSettings, FallbackSettings, MANAGER, Mode, Policy};
use super::worker::Worker;

/// All services, in the order of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    pub services: Vec<ServiceSnapshot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceSnapshot<B = BackendSnapshot> {
    pub name: String,
    pub address: String,
    pub protocol: Protocol,
    pub mode: Mode,
    pub policy: Policy,
    /// As configured: `auto`, `64.0 MiB`, `10%`.
    pub threshold: String,
    /// In force at present; nothing while `auto` has not seen two workers.
    pub threshold_bytes: Option<u64>,
    /// How long policy `memory` keeps the worker that it switched to, at least.
    #[serde(default)]
    pub hold_ms: u64,
    /// A worker that has more memory by more than the threshold, and waits for the hold to end.
    #[serde(default)]
    pub waiting: Option<WaitingSnapshot>,
    /// The selected worker's name, or `manager`, or `*` where connections are spread.
    pub selected: String,
    pub rule: Rule,
    pub reason: String,
    /// How long the selection has stood.
    pub since_ms: u64,
    /// The workers in the order of the configuration, then the manager if it serves when none is up.
    pub backends: Vec<B>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingSnapshot {
    pub worker: String,
    /// How long the hold still lasts.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendSnapshot {
    pub name: String,
    pub backend_id: BackendId,
    pub address: String,
    /// How it is treated: its own health under the operator's orders.
    pub state: Health,
    /// Its own health, as its heartbeats or their absence show it.
    pub health: Health,
    /// Why it cannot serve although it is up.
    #[serde(default)]
    pub barred: Option<String>,
    /// Why the operator lets it have no new connections, and since when.
    pub hold: Option<Audited<AdminState>>,
    /// The operator's weight for it; nothing means 100.
    pub weight_percent: Option<Audited<u32>>,
    /// Why the operator expects it to be silent, since when and for how many milliseconds.
    #[serde(default)]
    pub pause: Option<Audited<u64>>,
    /// How much of that is left.
    #[serde(default)]
    pub pause_left_ms: Option<u64>,
    /// Since the last heartbeat; nothing if none came, and for the manager.
    pub age_ms: Option<u64>,
    /// How often its agent sends, as it said last; nothing if it does not say.
    #[serde(default)]
    pub interval_ms: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    /// How old the figures were in the last heartbeat, where the worker's agent cannot read new ones.
    #[serde(default)]
    pub memory_stale_ms: Option<u64>,
    /// In hundredths of a percent; nothing if the worker does not say.
    pub memory_pressure: Option<Pressure>,
    /// What it weighs against the others in the kernel, where connections are spread.
    pub weight: u32,
    /// Its part of the new connections, in hundredths of a percent, as far as the policy fixes it.
    pub share: u16,
    /// What configuration and operator let it take, in percent.
    pub manual_weight_percent: u32,
    /// Less than 100 for a while after it came back.
    pub ramp_percent: u32,
}

impl<B> ServiceSnapshot<B> {
    /// Returns the same service with more, or less, said about its backends.
    pub fn map_backends<C>(self, map: impl FnMut(B) -> C) -> ServiceSnapshot<C> {
        ServiceSnapshot {
            name: self.name,
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
            backends: self.backends.into_iter().map(map).collect(),
        }
    }
}

impl Service {
    pub(super) fn snapshot(&self, workers: &[Worker], now: Instant) -> ServiceSnapshot {
        let mut backends: Vec<BackendSnapshot> = (0..self.workers.len())
            .map(|backend| self.backend(backend, workers, now))
            .collect();
        backends.extend(self.settings.fallback.as_ref().map(|it| self.fallback(it)));
        ServiceSnapshot {
            name: self.settings.name.clone(),
            address: self.settings.address.to_string(),
            protocol: self.settings.protocol,
            mode: self.settings.mode,
            policy: self.settings.policy,
            threshold: self.settings.threshold.to_string(),
            threshold_bytes: self.threshold_bytes(),
            hold_ms: milliseconds(self.settings.hold),
            waiting: self
                .remaining_hold(now)
                .map(|(backend, left)| WaitingSnapshot {
                    worker: workers[self.workers[backend]].name.clone(),
                    left_ms: milliseconds(left),
                }),
            selected: self.reason.to.name.clone(),
            rule: self.reason.rule,
            reason: self.reason.to_string(),
            since_ms: milliseconds(now.saturating_duration_since(self.since)),
            backends,
        }
    }

    fn backend(&self, backend: usize, workers: &[Worker], now: Instant) -> BackendSnapshot {
        let worker = &workers[self.workers[backend]];
        let BackendSettings { id, address, .. } = &self.settings.backends[backend];
        BackendSnapshot {
            name: worker.name.clone(),
            backend_id: *id,
            address: address.to_string(),
            state: self.state(backend, worker),
            health: worker.health,
            barred: self.ineligible_reason(backend, worker),
            hold: self.overrides[backend].state.clone(),
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
            ramp_percent: worker.ramp_percent(self.settings.spread.ramp_up, now),
        }
    }

    fn fallback(&self, fallback: &FallbackSettings) -> BackendSnapshot {
        let FallbackSettings { id, address } = fallback;
        BackendSnapshot {
            name: MANAGER.to_owned(),
            backend_id: *id,
            address: address.to_string(),
            state: Health::Up,
            health: Health::Up,
            barred: None,
            hold: None,
            weight_percent: None,
            pause: None,
            pause_left_ms: None,
            age_ms: None,
            interval_ms: None,
            memory_available_bytes: None,
            memory_total_bytes: None,
            memory_stale_ms: None,
            memory_pressure: None,
            weight: 1,
            share: self.share(Selection::Fallback),
            manual_weight_percent: 100,
            ramp_percent: 100,
        }
    }

    fn share(&self, of: Selection) -> u16 {
        match (self.target, &self.spread, of) {
            (Selection::Spread, Some(spread), Selection::Backend(backend)) => spread.share(backend),
            (target, _, of) if target == of => 10_000,
            _ => 0,
        }
    }
}
