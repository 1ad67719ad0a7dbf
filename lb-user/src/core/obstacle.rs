//! What keeps a worker that is up from a service whose workers answer the clients directly.

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
use super::settings::{BackendId, Mode};
use super::worker::Worker;

/// Why a worker cannot serve in mode `dsr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// Its agent does not say that a companion translates the service there.
    NoCompanion,
    /// A router is on the way, which would send packets to the service's address back.
    OtherLink,
}

impl Obstacle {
    /// Says it to a person, with what to do.
    pub fn explain(self, worker: &str, service: Endpoint) -> String {
        match self {
            Self::NoCompanion => {
                format!("{worker} has no companion for {service}: start its agent with --dsr")
            }
            Self::OtherLink => format!(
                "{worker} is behind a router, and mode \"dsr\" needs it on the manager's own link: \
                 move it there, or serve {service} by mode \"nat\""
            ),
        }
    }
}

impl Core {
    /// Takes over whether a router is on the way to each backend's worker.
    pub fn handle_links(&mut self, behind_router: &BTreeMap<BackendId, bool>, now: Instant) {
        self.wake(now);
        let mut changed = BTreeSet::new();
        for service in &mut self.services {
            let backends = service.settings.backends.iter().enumerate();
            for (place, backend) in backends {
                let Some(&behind) = behind_router.get(&backend.id) else {
                    continue;
                };
                if mem::replace(&mut service.behind_router[place], behind) != behind {
                    changed.insert(service.workers[place]);
                }
            }
        }
        if !changed.is_empty() {
            self.settle(&changed.into_iter().collect::<Vec<_>>(), now);
        }
    }
}

impl Service {
    /// Returns what keeps a worker from serving.
    pub(super) fn obstacle(&self, backend: usize, worker: &Worker) -> Option<Obstacle> {
        if self.settings.mode != Mode::Dsr {
            return None;
        }
        if self.behind_router[backend] {
            return Some(Obstacle::OtherLink);
        }
        let lacks = !worker.translates.contains(&self.settings.endpoint());
        lacks.then_some(Obstacle::NoCompanion)
    }

    /// Says to a person what keeps a worker that is up from serving.
    pub(super) fn barred(&self, backend: usize, worker: &Worker) -> Option<String> {
        let obstacle = self.obstacle(backend, worker)?;
        let barred = self.state(backend, worker) == Health::Barred;
        barred.then(|| obstacle.explain(&worker.name, self.settings.endpoint()))
    }

    /// Returns the event of a worker that is up and newly kept from serving, or no longer.
    pub(super) fn tell_obstacle(&mut self, backend: usize, worker: &Worker) -> Option<Event> {
        if !worker.health.is_up() || worker.heard.is_none() {
            return None;
        }
        let obstacle = self.obstacle(backend, worker);
        if mem::replace(&mut self.told_obstacles[backend], obstacle) == obstacle {
            return None;
        }
        let (worker, service) = (worker.name.clone(), self.settings.name.clone());
        Some(match obstacle {
            Some(obstacle) => Event::WorkerBarred {
                reason: obstacle.explain(&worker, self.settings.endpoint()),
                worker,
                service,
                obstacle,
            },
            None => Event::WorkerUnbarred { worker, service },
        })
    }

    /// Keeps what is known of the ways to the workers that stay, and what was said of them.
    pub(super) fn inherit_links(&mut self, old: &Self) {
        for (place, backend) in self.settings.backends.iter().enumerate() {
            let before = old
                .settings
                .backends
                .iter()
                .position(|it| it.id == backend.id);
            if let Some(before) = before {
                self.behind_router[place] = old.behind_router[before];
                if self.settings.mode == old.settings.mode {
                    self.told_obstacles[place] = old.told_obstacles[before];
                }
            }
        }
    }
}
