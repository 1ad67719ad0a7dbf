//! Whether a worker that is up can serve the service, by the route to it and the service's mode.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use super::Service;
use crate::eligibility::{Ineligibility, WorkerRoute};
use crate::event::Event;
use crate::settings::{BackendId, Mode};
use crate::worker::Worker;

impl Service {
    /// Updates the routes; returns the workers whose route changed.
    pub fn update_routes(&mut self, routes: &BTreeMap<BackendId, WorkerRoute>) -> BTreeSet<usize> {
        let mut changed = BTreeSet::new();
        for (index, backend) in self.settings.backends.iter().enumerate() {
            let Some(route) = routes.get(&backend.id) else {
                continue;
            };
            if self.routes[index] != *route {
                self.routes[index].clone_from(route);
                changed.insert(self.workers[index]);
            }
        }
        changed
    }

    /// Returns why a worker could not serve if it were up.
    pub(super) fn ineligibility(&self, backend: usize, worker: &Worker) -> Option<Ineligibility> {
        let is_missing = match (&self.routes[backend], self.settings.mode) {
            (WorkerRoute::Missing, _) => return Some(Ineligibility::NoRoute),
            (WorkerRoute::Unattached(_), _) => return Some(Ineligibility::OtherInterface),
            (_, Mode::Nat) => return None,
            (WorkerRoute::ViaRouter, Mode::Dsr) => return Some(Ineligibility::OtherLink),
            (WorkerRoute::Direct, Mode::Dsr) => {
                let lacks = !worker.translates.contains(&self.settings.endpoint());
                return lacks.then_some(Ineligibility::NoDsrTranslator);
            }
            (_, Mode::Routed) => self.return_paths[backend].is_missing(),
        };
        is_missing.then_some(Ineligibility::NoReturnPath)
    }

    /// Returns the explanation of why a worker that is up cannot serve.
    pub fn ineligible_reason(&self, backend: usize, worker: &Worker) -> Option<String> {
        let ineligibility = self.ineligibility(backend, worker)?;
        let applies = self.state(backend, worker) == ineligibility.state();
        applies.then(|| self.explain(ineligibility, backend))
    }

    /// Returns an event if a worker that is up became ineligible or eligible.
    pub fn eligibility_event(&mut self, backend: usize, worker: &Worker) -> Option<Event> {
        if !worker.health.is_up() || worker.last_heartbeat.is_none() {
            return None;
        }
        let now = self.ineligibility(backend, worker);
        if mem::replace(&mut self.emitted_ineligibility[backend], now) == now {
            return None;
        }
        let (worker, service) = (worker.name.clone(), self.settings.name.clone());
        Some(match now {
            Some(ineligibility) => Event::WorkerIneligible {
                reason: self.explain(ineligibility, backend),
                worker,
                service,
                ineligibility,
            },
            None => Event::WorkerEligible { worker, service },
        })
    }

    fn explain(&self, ineligibility: Ineligibility, backend: usize) -> String {
        ineligibility.explain(
            &self.settings.backends[backend],
            &self.routes[backend],
            self.settings.endpoint(),
        )
    }

    /// Takes over routes, return paths, handshakes and emitted events of the backends that stay.
    pub fn inherit_routes(&mut self, old: &Self) {
        self.inherit_tier(old);
        for index in 0..self.settings.backends.len() {
            let Some(before) = old.index_of(self.settings.backends[index].id) else {
                continue;
            };
            self.routes[index] = old.routes[before].clone();
            self.handshakes[index] = old.handshakes[before];
            if self.settings.mode == old.settings.mode {
                self.return_paths[index] = old.return_paths[before];
                self.emitted_ineligibility[index] = old.emitted_ineligibility[before];
            }
        }
    }
}
