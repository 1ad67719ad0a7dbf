//! What keeps a worker that is up from serving: no way to it, or that it cannot answer the clients as the
//! service's mode asks.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Core;
use super::endpoint::Endpoint;
use super::event::Event;
use super::health::Health;
use super::service::Service;
use super::settings::{BackendId, BackendSettings, Mode};
use super::worker::Worker;

/// How the manager reaches a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerRoute {
    /// Without a router on the way, as far as is known.
    Direct,
    ViaRouter,
    /// No route leads to it.
    Missing,
    /// The route leads through an interface of this name, which memlb is not attached to.
    Unattached(String),
}

/// Why a worker that is up cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ineligibility {
    /// The manager has no route to it.
    NoRoute,
    /// The route leads through an interface that memlb is not attached to: replies would reach no client.
    OtherInterface,
    /// In mode `dsr`: its agent does not say that a DSR translator translates the service there.
    NoDsrTranslator,
    /// In mode `dsr`: a router is on the way, which would send packets to the service's address back.
    OtherLink,
    /// In mode `routed`: the worker's answers do not pass the manager.
    NoReturnPath,
}

impl Ineligibility {
    /// Returns the state in which a worker is treated that would be up without it.
    pub(super) fn state(self) -> Health {
        match self {
            Self::NoRoute | Self::OtherInterface | Self::NoReturnPath => Health::Unreachable,
            Self::NoDsrTranslator | Self::OtherLink => Health::Barred,
        }
    }

    /// Says it to a person, with what to do.
    pub(super) fn explain(
        self,
        backend: &BackendSettings,
        link: &WorkerRoute,
        service: Endpoint,
    ) -> String {
        let BackendSettings {
            worker, address, ..
        } = backend;
        match self {
            Self::NoRoute => {
                let ip = address.ip();
                format!(
                    "the manager has no route to {worker} at {ip}: correct the address or the \
                     routes (ip route get {ip})"
                )
            }
            Self::OtherInterface => {
                let ip = address.ip();
                let interface = match link {
                    WorkerRoute::Unattached(name) => name.as_str(),
                    _ => "another interface",
                };
                format!(
                    "the route to {worker} at {ip} leads through {interface}, which memlb is not \
                     attached to: add it to manager.interfaces and restart the manager, or correct \
                     the route (ip route get {ip})"
                )
            }
            Self::NoDsrTranslator => {
                format!("{worker} has no DSR translator for {service}: start its agent with --dsr")
            }
            Self::OtherLink => format!(
                "{worker} is behind a router, and mode \"dsr\" needs it on the manager's own link: \
                 move it there, or serve {service} by mode \"nat\""
            ),
            Self::NoReturnPath => format!(
                "no answer of {worker} passes the manager: its route to the clients does not lead through \
                 here, or it drops their connections (on {worker}: ip route get CLIENT); correct that, or \
                 serve {service} by mode \"nat\". It is tried again in a while"
            ),
        }
    }
}

impl Core {
    /// Takes over how each backend's worker is reached.
    pub fn handle_routes(&mut self, links: &BTreeMap<BackendId, WorkerRoute>, now: Instant) {
        self.wake(now);
        let mut changed = BTreeSet::new();
        for service in &mut self.services {
            changed.extend(service.update_routes(links));
        }
        if !changed.is_empty() {
            self.sync_services(&changed.into_iter().collect::<Vec<_>>(), now);
        }
    }
}

impl Service {
    /// Takes over how the workers are reached; returns those of whom that is new.
    pub(super) fn update_routes(
        &mut self,
        links: &BTreeMap<BackendId, WorkerRoute>,
    ) -> BTreeSet<usize> {
        let mut changed = BTreeSet::new();
        for (place, backend) in self.settings.backends.iter().enumerate() {
            let Some(link) = links.get(&backend.id) else {
                continue;
            };
            if self.links[place] != *link {
                self.links[place].clone_from(link);
                changed.insert(self.workers[place]);
            }
        }
        changed
    }

    /// Returns what keeps a worker from serving.
    pub(super) fn ineligibility(&self, backend: usize, worker: &Worker) -> Option<Ineligibility> {
        match (&self.links[backend], self.settings.mode) {
            (WorkerRoute::Missing, _) => return Some(Ineligibility::NoRoute),
            (WorkerRoute::Unattached(_), _) => return Some(Ineligibility::OtherInterface),
            (_, Mode::Nat) => return None,
            (WorkerRoute::ViaRouter, Mode::Dsr) => return Some(Ineligibility::OtherLink),
            (WorkerRoute::Direct, Mode::Dsr) => {}
            (_, Mode::Routed) => {
                let is_missing = self.return_paths[backend].is_missing();
                return is_missing.then_some(Ineligibility::NoReturnPath);
            }
        }
        let lacks = !worker.translates.contains(&self.settings.endpoint());
        lacks.then_some(Ineligibility::NoDsrTranslator)
    }

    /// Says to a person what keeps a worker that is up from serving.
    pub(super) fn ineligible_reason(&self, backend: usize, worker: &Worker) -> Option<String> {
        let obstacle = self.ineligibility(backend, worker)?;
        let barred = self.state(backend, worker) == obstacle.state();
        barred.then(|| self.explain(obstacle, backend))
    }

    /// Returns the event of a worker that is up and newly kept from serving, or no longer.
    pub(super) fn eligibility_event(&mut self, backend: usize, worker: &Worker) -> Option<Event> {
        if !worker.health.is_up() || worker.heard.is_none() {
            return None;
        }
        let obstacle = self.ineligibility(backend, worker);
        if mem::replace(&mut self.reported_ineligibility[backend], obstacle) == obstacle {
            return None;
        }
        let (worker, service) = (worker.name.clone(), self.settings.name.clone());
        Some(match obstacle {
            Some(obstacle) => Event::WorkerBarred {
                reason: self.explain(obstacle, backend),
                worker,
                service,
                obstacle,
            },
            None => Event::WorkerUnbarred { worker, service },
        })
    }

    fn explain(&self, obstacle: Ineligibility, backend: usize) -> String {
        obstacle.explain(
            &self.settings.backends[backend],
            &self.links[backend],
            self.settings.endpoint(),
        )
    }

    /// Keeps what is known of the ways to the workers that stay, and what was said of them.
    pub(super) fn inherit_routes(&mut self, old: &Self) {
        for (place, backend) in self.settings.backends.iter().enumerate() {
            let before = old
                .settings
                .backends
                .iter()
                .position(|it| it.id == backend.id);
            if let Some(before) = before {
                self.links[place] = old.links[before].clone();
                if self.settings.mode == old.settings.mode {
                    self.return_paths[place] = old.return_paths[before];
                    self.reported_ineligibility[place] = old.reported_ineligibility[before];
                }
            }
        }
    }
}
