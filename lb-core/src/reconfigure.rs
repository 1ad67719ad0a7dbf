//! How the core takes over a changed configuration, with all that it knows.

use std::collections::BTreeMap;
use std::mem;
use std::time::Instant;

use super::event::Cause;
use super::reason::Rule;
use super::sequence::SequenceWindow;
use super::service::{Selection, Service};
use super::settings::{BackendId, CoreSettings, ServiceId};
use super::worker::Worker;
use super::{Core, Deadlines, WorkerRoute};

/// How many removed workers are remembered, the latest ones. They are not forgotten by time: how long a
/// heartbeat is fresh is not the core's to know.
const REMEMBERED_WORKERS: usize = 1_024;

/// What is remembered of a worker that is in no service any more.
#[derive(Debug)]
pub(super) struct RemovedWorker {
    sequence: SequenceWindow,
    at: Instant,
}

impl Core {
    /// Goes on with other settings. Workers are known by their names and stay as healthy as they
    /// are, services by their numbers and keep their selection as long as it makes sense.
    ///
    /// Everything is described anew; of selections only changes are events. `links` are as for
    /// [`Self::handle_routes`].
    pub fn reconfigure(
        &mut self,
        settings: CoreSettings,
        links: &BTreeMap<BackendId, WorkerRoute>,
        now: Instant,
    ) {
        self.wake(now);
        self.down_after = settings.down_after;
        self.up_after = settings.up_after;
        let services = mem::take(&mut self.services).into_iter();
        let mut old_services: BTreeMap<ServiceId, Service> =
            services.map(|it| (it.settings.id, it)).collect();
        let workers = mem::take(&mut self.workers).into_iter();
        let mut old_workers: BTreeMap<String, Worker> =
            workers.map(|it| (it.name.clone(), it)).collect();
        self.by_name.clear();
        self.by_backend.clear();
        self.deadlines = Deadlines::default();
        for service in settings.services {
            self.add_service(service, now);
        }
        for worker in &mut self.workers {
            if let Some(old) = old_workers.remove(&worker.name) {
                let new = mem::replace(worker, old);
                worker.backends = new.backends;
            } else if let Some(removed) = self.removed.remove(&worker.name) {
                worker.sequence = removed.sequence;
            }
        }
        self.remember(old_workers, now);
        for service in &mut self.services {
            if let Some(old) = old_services.get(&service.settings.id) {
                service.inherit_routes(old);
            }
            service.update_routes(links);
        }
        for index in 0..self.workers.len() {
            self.overlay(index);
            self.propagate(index);
        }
        for index in 0..self.services.len() {
            let old = old_services.remove(&self.services[index].settings.id);
            self.replace_service(index, old, now);
        }
        // Who is not up is described as such after all selections have left it.
        self.emit_all(false);
    }

    /// Remembers what the removed workers had said, and of the earlier ones as many as fit.
    fn remember(&mut self, workers: BTreeMap<String, Worker>, now: Instant) {
        let removed = workers.into_iter().map(|(name, Worker { sequence, .. })| {
            let removed = RemovedWorker { sequence, at: now };
            (name, removed)
        });
        self.removed.extend(removed);
        let Some(excess) = self.removed.len().checked_sub(REMEMBERED_WORKERS) else {
            return;
        };
        let mut by_age: Vec<_> = self
            .removed
            .iter()
            .map(|(name, it)| (it.at, name))
            .collect();
        by_age.sort();
        let oldest = by_age
            .into_iter()
            .take(excess)
            .map(|(_, name)| name.clone());
        for name in oldest.collect::<Vec<_>>() {
            self.removed.remove(&name);
        }
    }

    /// Lets a service begin where the one before it with the same number ends.
    fn replace_service(&mut self, index: usize, old: Option<Service>, now: Instant) {
        let service = &mut self.services[index];
        let selected_before = old.as_ref().map(Service::selected_id);
        if let Some(old) = old {
            service.inherit(old);
        }
        let any_up = service.any_up();
        if service.target == Selection::Spread && !any_up {
            service.switch_to(Selection::Fallback, Rule::NoWorkerUp, &self.workers, now);
        }
        let spreads = service.spread.is_some();
        if !spreads {
            service.reselect(&self.workers, now);
        }
        self.emit_up(index);
        if spreads && any_up {
            self.rebalance(index, Cause::Operator, now);
            if selected_before != Some(None) {
                return;
            }
        }
        let service = &self.services[index];
        if selected_before == Some(service.selected_id()) {
            self.map_updates.push_back(service.selection().0);
        } else {
            self.emit_selection(index);
        }
        self.rank(index);
    }

    /// Describes a service's fallback and those of its workers that are up.
    fn emit_up(&mut self, index: usize) {
        self.emit_workers(index, true);
        let fallback = self.services[index].fallback_update();
        self.map_updates.extend(fallback);
    }

    /// Describes those that are up, or the others.
    fn emit_all(&mut self, up: bool) {
        let all = self
            .workers
            .iter()
            .flat_map(|worker| worker.backends.clone());
        let places: Vec<_> = all.collect();
        self.describe(&places, up);
    }
}

impl Service {
    fn inherit(&mut self, old: Service) {
        self.switched = old.switched;
        if self.settings.threshold == old.settings.threshold {
            self.learned_threshold_bytes = old.learned_threshold_bytes;
        }
        let backends = &self.settings.backends;
        let target = match old.target {
            Selection::Fallback => Some(Selection::Fallback),
            Selection::Backend(place) => {
                let id = old.settings.backends[place].id;
                let place = backends.iter().position(|it| it.id == id);
                place.map(Selection::Backend)
            }
            Selection::Spread => Some(Selection::Spread),
        };
        if let (Some(spread), Some(before)) = (&mut self.spread, &old.spread) {
            let weight = |id| {
                let place = old.settings.backends.iter().position(|it| it.id == id);
                place.map_or(0, |place| before.weight(place))
            };
            spread.adopt(backends.iter().map(|it| weight(it.id)).collect());
        }
        if let Some(target) = target {
            self.target = target;
            self.reason = old.reason;
            self.since = old.since;
        }
    }
}
