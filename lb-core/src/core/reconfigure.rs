//! How the core applies a changed configuration.

use std::collections::BTreeMap;
use std::mem;
use std::time::Instant;

use super::Core;
use crate::deadlines::Deadlines;
use crate::eligibility::WorkerRoute;
use crate::event::Cause;
use crate::reason::Rule;
use crate::sequence::SequenceWindow;
use crate::service::{Selection, Service};
use crate::settings::{BackendId, CoreSettings, ServiceId};
use crate::worker::Worker;

/// The most removed workers whose sequences the core remembers. They do not expire, because the core does not know how
/// long a signed heartbeat stays fresh.
const MAX_REMOVED_WORKERS: usize = 1_024;

/// The sequence of a removed worker, and when the worker was removed.
#[derive(Debug)]
pub struct RemovedWorker {
    sequence: SequenceWindow,
    at: Instant,
}

impl Core {
    /// Continues with other settings. Workers are identified by name and keep their health, services by
    /// id and keep their selection if it is still valid.
    ///
    /// Emits all backends and selections again as map updates, but only changed selections as events. `routes` are as
    /// for [`Self::handle_routes`].
    pub fn reconfigure(
        &mut self,
        settings: CoreSettings,
        routes: &BTreeMap<BackendId, WorkerRoute>,
        now: Instant,
    ) {
        self.detect_stall(now);
        self.down_after = settings.down_after;
        self.up_after = settings.up_after;
        self.failing = settings.failing;
        self.panic_percent = settings.panic_percent;
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
                worker.set_agent(new.agent, now);
            } else if let Some(removed) = self.removed.remove(&worker.name) {
                worker.sequence = removed.sequence;
            }
        }
        self.record_removed(old_workers, now);
        for service in &mut self.services {
            if let Some(old) = old_services.get(&service.settings.id) {
                service.inherit_routes(old);
            }
            service.update_routes(routes);
        }
        self.inherit_ejections();
        self.end_disabled_outage();
        for index in 0..self.workers.len() {
            self.apply_admin_states(index);
            self.propagate(index);
        }
        for index in 0..self.services.len() {
            let old = old_services.remove(&self.services[index].settings.id);
            self.replace_service(index, old, now);
        }
        // Backends that are not up come last: all selections have left them by then.
        let workers = self.workers.iter();
        let all: Vec<_> = workers.flat_map(|it| it.backends.clone()).collect();
        self.emit_backends(&all, false);
    }

    /// Records removed workers, and drops the earliest beyond the limit.
    fn record_removed(&mut self, workers: BTreeMap<String, Worker>, now: Instant) {
        let removed = workers.into_iter().map(|(name, Worker { sequence, .. })| {
            let removed = RemovedWorker { sequence, at: now };
            (name, removed)
        });
        self.removed.extend(removed);
        let Some(excess) = self.removed.len().checked_sub(MAX_REMOVED_WORKERS) else {
            return;
        };
        let removed = self.removed.iter();
        let mut by_age: Vec<_> = removed.map(|(name, it)| (it.at, name.clone())).collect();
        by_age.sort();
        for (_, name) in by_age.into_iter().take(excess) {
            self.removed.remove(&name);
        }
    }

    /// Continues a service where the one with the same id ended.
    fn replace_service(&mut self, index: usize, old: Option<Service>, now: Instant) {
        let service = &mut self.services[index];
        let selected_before = old.as_ref().map(Service::selected_id);
        if let Some(old) = old {
            service.inherit(old);
        }
        let any_up = service.any_up();
        if service.selection == Selection::Spread && !any_up {
            service.switch_to(Selection::Fallback, Rule::NoWorkerUp, &self.workers, now);
        }
        let spreads = service.spread.is_some();
        if !spreads {
            service.reselect(&self.workers, now);
        }
        self.emit_service_backends(index, true);
        self.map_updates
            .extend(self.services[index].fallback_update());
        if spreads && any_up {
            self.rebalance(index, Cause::Operator, now);
            if selected_before != Some(None) {
                return;
            }
        }
        let service = &self.services[index];
        if selected_before == Some(service.selected_id()) {
            self.map_updates.push_back(service.selection_update().0);
        } else {
            self.emit_selection(index);
        }
        self.emit_ranking(index);
    }
}
