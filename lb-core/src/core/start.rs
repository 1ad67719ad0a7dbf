//! The core's start: with nothing, or with what the pinned maps hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::Core;
use super::pause::Pause;
use crate::deadlines::Deadlines;
use crate::event::Cause;
use crate::health::Health;
use crate::service::Selection;
use crate::settings::{AdoptedState, CoreSettings};
use crate::worker::Worker;

impl Core {
    /// Starts without pinned maps: every service uses its fallback, and an event says so.
    pub fn new(settings: CoreSettings, now: Instant) -> Self {
        Self::resume(settings, &AdoptedState::default(), now)
    }

    /// Starts with what the pinned maps hold.
    ///
    /// Adopted selections stay, and adopted workers count as up for `down_after` from `now` on, so that a restart by
    /// itself changes nothing. The silence that the former manager observed counts, so that repeated restarts do not
    /// keep a dead worker up. Failing backends are tried at once. An adopted backend that was draining continues as
    /// [`Health::Leaving`] until its worker's first heartbeat. A pause lasts at least until the worker had time to
    /// send one.
    pub fn resume(settings: CoreSettings, adopted: &AdoptedState, now: Instant) -> Self {
        let mut core = Self {
            down_after: settings.down_after,
            up_after: settings.up_after,
            failing: settings.failing,
            panic_percent: settings.panic_percent,
            workers: Vec::new(),
            by_name: BTreeMap::new(),
            by_backend: BTreeMap::new(),
            removed: BTreeMap::new(),
            services: Vec::new(),
            overrides: adopted.overrides.clone(),
            pauses: BTreeMap::new(),
            deadlines: Deadlines::default(),
            ejected: BTreeSet::new(),
            trials: VecDeque::new(),
            outage_since: None,
            last_call: now,
            started: now,
            map_updates: VecDeque::new(),
            events: VecDeque::new(),
        };
        for service in settings.services {
            core.add_service(service, now);
        }
        for (worker, left) in &adopted.pauses {
            let left = (*left).max(core.down_after + core.down_after / 4);
            let pause = now.checked_add(left).map(Pause::new);
            core.pauses
                .extend(pause.map(|pause| (worker.clone(), pause)));
        }
        for index in 0..core.workers.len() {
            core.apply_admin_states(index);
        }
        core.adopt(adopted, now);
        core.reselect_unusable(now);
        core.emit_initial_state(adopted, now);
        core
    }

    fn adopt_ejections(&mut self, adopted: &AdoptedState, now: Instant) {
        for (id, ejection) in &adopted.ejections {
            let Some(at) = self.find_backend(*id) else {
                continue;
            };
            let service = &mut self.services[at.service];
            if service.failing_settings(&self.failing).after > 0 {
                service.handshakes[at.backend].adopt(ejection, now);
                self.ejected.insert(*id);
            }
        }
    }

    fn adopt(&mut self, adopted: &AdoptedState, now: Instant) {
        self.adopt_ejections(adopted, now);
        // A failing backend has its state in the maps for its handshakes, not for its worker's health.
        let mut up = adopted.up.clone();
        up.extend(self.ejected.iter());
        for service in &self.services {
            up.extend(adopted.selections.get(&service.settings.id));
        }
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let backends = worker.backends.iter().map(|at| {
                let settings = &self.services[at.service].settings;
                (settings.backends[at.backend].id, settings.endpoint())
            });
            let ids = backends.clone().map(|(id, _)| id);
            // A worker that was up in mode `dsr` had a DSR translator; its next heartbeat says whether it has.
            worker.translates = backends
                .filter(|(id, _)| up.contains(id))
                .map(|(_, endpoint)| endpoint)
                .collect();
            if ids.clone().any(|id| up.contains(&id)) {
                worker.health = Health::Up;
            } else if worker.agent && ids.clone().any(|id| adopted.draining.contains(&id)) {
                // A worker that is silent at the end of its pause is down.
                worker.health = match worker.paused_until {
                    Some(_) => Health::Up,
                    None => Health::Leaving,
                };
            }
            if let Some(silence) = adopted.silent_for.get(&worker.name) {
                worker.adopt_silence(*silence, self.down_after);
            }
            self.propagate(index);
        }
        for service in &mut self.services {
            if let Some(&backend) = adopted.selections.get(&service.settings.id) {
                service.adopt(backend, &self.workers);
            }
            if adopted.spread.contains(&service.settings.id) {
                let weight = |id| adopted.weights.get(&id).copied().unwrap_or(0);
                service.adopt_spread(weight, &self.workers);
            }
        }
    }

    /// Moves adopted selections away from workers that have been drained since.
    fn reselect_unusable(&mut self, now: Instant) {
        for service in &mut self.services {
            // No heartbeat would select a worker without an agent.
            let workers = || service.workers.iter().map(|it| &self.workers[*it]);
            let is_fallback = service.selection == Selection::Fallback;
            let is_wrong = is_fallback && workers().any(Worker::is_assumed_up);
            if service.spread.is_none() && (is_wrong || !service.selected_is_up()) {
                service.reselect(&self.workers, now);
            }
        }
    }

    /// Emits every backend, then every selection.
    fn emit_initial_state(&mut self, adopted: &AdoptedState, now: Instant) {
        for index in 0..self.services.len() {
            self.emit_service_backends(index, false);
            self.map_updates
                .extend(self.services[index].fallback_update());
        }
        for index in 0..self.services.len() {
            let was_spread = adopted.spread.contains(&self.services[index].settings.id);
            self.start_service(index, was_spread, now);
        }
    }

    /// Emits a service's first selection.
    fn start_service(&mut self, index: usize, was_spread: bool, now: Instant) {
        let service = &mut self.services[index];
        let any_up = service.any_up();
        if service.spread.is_some() && any_up {
            self.rebalance(index, Cause::Operator, now);
            if !was_spread {
                return;
            }
        } else if service.spread.is_some() {
            service.await_first_worker();
        } else if was_spread && any_up {
            // The policy was changed while no manager ran.
            service.reselect(&self.workers, now);
        }
        self.emit_selection(index);
        self.emit_ranking(index);
    }
}
