//! When a service's weights and slots are computed again, and the updates and events of that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Core;
use crate::event::{Cause, Event};
use crate::reason::Rule;
use crate::service::Selection;
use crate::settings::BackendId;

/// The least time between two events about shares that changed by memory, age or ramp only.
const SHARES_EVENT_INTERVAL: Duration = Duration::from_secs(10);

/// How long a worker that came up waits for others, so that many workers that start together cause few changes.
const JOIN_WINDOW: Duration = Duration::from_millis(25);

impl Core {
    /// Handles the number of open connections of each backend. The caller reads it when
    /// [`Self::wants_connections`] returns true, and then calls [`Self::handle_timeout`].
    pub fn handle_connections(&mut self, open: &[(BackendId, u64)]) {
        let mut by_worker: BTreeMap<usize, u64> = BTreeMap::new();
        for (backend, open) in open {
            if let Some(&worker) = self.by_backend.get(backend) {
                let sum = by_worker.entry(worker).or_default();
                *sum = sum.saturating_add(*open);
            }
        }
        for (index, open) in by_worker {
            let worker = &mut self.workers[index];
            worker
                .memory_per_connection
                .count(open, worker.available_bytes());
        }
    }

    /// Whether the next [`Self::handle_timeout`] computes weights, which depend on the number of open connections.
    pub fn wants_connections(&self, now: Instant) -> bool {
        self.poll_rebalance().is_some_and(|due| due <= now)
    }

    pub(super) fn poll_rebalance(&self) -> Option<Instant> {
        let spreads = self.services.iter().filter_map(|it| it.spread.as_ref());
        spreads.filter_map(|spread| spread.due()).min()
    }

    pub(super) fn rebalance_due(&mut self, now: Instant) {
        for index in 0..self.services.len() {
            let service = &self.services[index];
            let due = service.spread.as_ref().and_then(|spread| spread.due());
            if due.is_some_and(|due| due <= now) {
                let cause = match service.joined {
                    true => Cause::Joined,
                    false => Cause::Weights,
                };
                self.rebalance(index, cause, now);
            }
        }
    }

    /// Updates a service that spreads connections after a change of its workers. A lost worker leaves at once; a new
    /// one waits [`JOIN_WINDOW`] for others.
    pub(super) fn sync_spread(&mut self, index: usize, now: Instant) {
        let service = &mut self.services[index];
        if !service.any_up() {
            if service.selection != Selection::Fallback {
                service.switch_to(Selection::Fallback, Rule::NoWorkerUp, &self.workers, now);
                self.emit_selection(index);
            }
            let service = &mut self.services[index];
            service.clear_changes();
            if let Some(spread) = &mut service.spread {
                spread.unschedule();
            }
        } else if service.selection != Selection::Spread {
            self.rebalance(index, Cause::Joined, now);
        } else if service.lost {
            self.rebalance(index, Cause::Lost, now);
        } else if service.reweighed {
            self.rebalance(index, Cause::Operator, now);
        } else if service.joined
            && let Some(spread) = &mut service.spread
        {
            let interval = service.settings.spread.rebalance_interval;
            spread.schedule(now + interval.min(JOIN_WINDOW));
        }
    }

    /// Computes a service's weights, and emits what changed: weights, then slots, then the selection. One worker at
    /// least must be up.
    pub(super) fn rebalance(&mut self, index: usize, cause: Cause, now: Instant) {
        let service = &mut self.services[index];
        let inputs = service.weight_inputs(&self.workers, now);
        let next_ramp = service.next_ramp(&inputs, &self.workers, now);
        let Some(spread) = &mut service.spread else {
            return;
        };
        let changes = spread.rebalance(&inputs, self.down_after, cause != Cause::Weights);
        let was_hot = std::mem::replace(&mut service.hot, spread.is_hot(&inputs));
        spread.unschedule();
        if spread.depends_on_memory() {
            spread.schedule(now + service.settings.spread.rebalance_interval);
        } else if let Some(at) = next_ramp {
            spread.schedule(at);
        }
        service.clear_changes();
        if service.hot && !was_hot {
            self.events.push_back(Event::AllWorkersHot {
                service: service.settings.name.clone(),
            });
        }
        self.emit_service_backends(index, true);
        let service = &mut self.services[index];
        if changes.slots {
            self.map_updates.extend(service.slots_update());
        }
        if service.selection != Selection::Spread {
            service.switch_to(Selection::Spread, Rule::Spread, &self.workers, now);
            self.emit_selection(index);
        }
        // No slot holds a lost worker now, so that its new state can be written.
        self.emit_service_backends(index, false);
        if changes.weights {
            self.emit_shares(index, cause, now);
        }
    }

    /// Emits a service's backends that are up, or all of them.
    pub(super) fn emit_service_backends(&mut self, index: usize, only_up: bool) {
        let service = &mut self.services[index];
        for backend in 0..service.workers.len() {
            let worker = &self.workers[service.workers[backend]];
            if !only_up || service.state(backend, worker).is_up() {
                self.map_updates
                    .extend(service.backend_update(backend, worker));
            }
        }
    }

    fn emit_shares(&mut self, index: usize, cause: Cause, now: Instant) {
        let service = &mut self.services[index];
        let is_recent = |at| now.saturating_duration_since(at) < SHARES_EVENT_INTERVAL;
        let Some(spread) = &service.spread else {
            return;
        };
        if cause == Cause::Weights && service.shares_emitted.is_some_and(is_recent) {
            return;
        }
        let weighted = || (0..service.workers.len()).filter(|worker| spread.weight(*worker) > 0);
        let by_weight = |worker: &usize| spread.weight(*worker);
        if let (Some(most), Some(least)) = (
            weighted().max_by_key(by_weight),
            weighted().min_by_key(by_weight),
        ) {
            let name = |worker: usize| self.workers[service.workers[worker]].name.clone();
            self.events.push_back(Event::SharesChanged {
                service: service.settings.name.clone(),
                policy: service.settings.policy,
                cause,
                workers: weighted().count(),
                most: name(most),
                most_share: spread.share(most),
                least: name(least),
                least_share: spread.share(least),
            });
        }
        service.shares_emitted = Some(now);
    }
}
