//! Passive ejection: backends whose server refuses or does not answer handshakes get no new connection,
//! until a trial is answered.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Core;
use crate::event::Event;
use crate::handshakes::{
    AdoptedEjection, Evidence, FailingSettings, TrafficCounters, TrialOutcome,
};
use crate::health::Health;
use crate::milliseconds;
use crate::service::Service;
use crate::settings::BackendId;
use crate::worker::{BackendIndex, Worker};

impl Core {
    /// Handles the packet programs' counters of the backends. The caller calls it several times a second, and before a
    /// worker's deadline, see [`Self::wants_traffic`].
    pub fn handle_traffic(
        &mut self,
        counters: impl IntoIterator<Item = (BackendId, TrafficCounters)>,
        now: Instant,
    ) {
        self.detect_stall(now);
        let mut changed = BTreeSet::new();
        for (id, counted) in counters {
            let Some(at) = self.find_backend(id) else {
                continue;
            };
            let service = &mut self.services[at.service];
            let settings = service.failing_settings(&self.failing);
            let evidence = service.handshakes[at.backend].observe(counted, &settings, now);
            if let Some(evidence) = evidence
                && self.eject(at, evidence, now)
            {
                changed.insert(self.services[at.service].workers[at.backend]);
            }
        }
        self.sync_changed(changed, now);
    }

    /// Whether the next [`Self::handle_timeout`] needs the counters of [`Self::handle_traffic`]: a worker's
    /// deadline is due.
    pub fn wants_traffic(&self, now: Instant) -> bool {
        self.deadlines.earliest().is_some_and(|due| due <= now)
    }

    /// Returns the next backend to try: the caller opens a connection to it, and reports the outcome to
    /// [`Self::handle_trial`].
    pub fn poll_trial(&mut self) -> Option<BackendId> {
        self.trials.pop_front()
    }

    /// Handles the outcome of a trial.
    pub fn handle_trial(&mut self, backend: BackendId, outcome: TrialOutcome, now: Instant) {
        self.detect_stall(now);
        let Some(at) = self.find_backend(backend) else {
            return;
        };
        let service = &mut self.services[at.service];
        let handshakes = &mut service.handshakes[at.backend];
        let Some(ejection) = handshakes.end_trial(outcome, &self.failing, now) else {
            return;
        };
        self.ejected.remove(&backend);
        let index = service.workers[at.backend];
        self.events.push_back(Event::WorkerRecovered {
            worker: self.workers[index].name.clone(),
            service: service.settings.name.clone(),
            failing_ms: milliseconds(now.saturating_duration_since(ejection.since)),
            trials: ejection.trials + 1,
        });
        self.sync_changed(BTreeSet::from([index]), now);
    }

    /// Returns the ejections in force, for the next manager: see [`crate::AdoptedState::ejections`].
    pub fn ejections(&self, now: Instant) -> impl Iterator<Item = (BackendId, AdoptedEjection)> {
        self.ejected.iter().filter_map(move |id| {
            let at = self.find_backend(*id)?;
            let handshakes = &self.services[at.service].handshakes[at.backend];
            Some((*id, handshakes.adoptable(now)?))
        })
    }

    /// Begins the trials that are due.
    pub(super) fn begin_due_trials(&mut self, now: Instant) {
        for id in self.ejected.clone() {
            let Some(at) = self.find_backend(id) else {
                continue;
            };
            if self.services[at.service].handshakes[at.backend].begin_trial(now) {
                self.trials.push_back(id);
            }
        }
    }

    /// Returns when the next trial is due.
    pub(super) fn poll_next_trial(&self) -> Option<Instant> {
        let ejected = self.ejected.iter().filter_map(|id| self.find_backend(*id));
        let due = ejected.filter_map(|at| {
            let handshakes = &self.services[at.service].handshakes[at.backend];
            handshakes.ejection()?.next_trial
        });
        due.min()
    }

    /// Ends a worker's ejections, because its own health changed.
    pub(super) fn reset_ejections(&mut self, index: usize) {
        for at in &self.workers[index].backends {
            let service = &mut self.services[at.service];
            if service.handshakes[at.backend].reset().is_some() {
                self.ejected
                    .remove(&service.settings.backends[at.backend].id);
            }
        }
    }

    /// Collects the ejected backends after a reload, and ends the ejections that the new settings disable.
    pub(super) fn inherit_ejections(&mut self) {
        self.ejected.clear();
        for service in &mut self.services {
            let is_off = service.failing_settings(&self.failing).after == 0;
            let backends = service.settings.backends.iter();
            for (handshakes, backend) in service.handshakes.iter_mut().zip(backends) {
                if is_off {
                    handshakes.reset();
                } else if handshakes.ejection().is_some() {
                    self.ejected.insert(backend.id);
                }
            }
        }
    }

    /// Ejects a backend that is up, unless too many backends of its service are failing. Returns whether it did.
    fn eject(&mut self, at: BackendIndex, evidence: Evidence, now: Instant) -> bool {
        let service = &mut self.services[at.service];
        let worker = &self.workers[service.workers[at.backend]];
        if !service.state(at.backend, worker).is_up() {
            return false;
        }
        let lacks_heartbeats = worker.heartbeats_missing;
        let (failing, workers) = service.count_failing(at.backend, &self.workers);
        let limit = (workers * self.failing.max_percent as usize / 100).max(1);
        let alternative = service.has_alternative(at.backend);
        let is_left = alternative || workers - failing > 1;
        // Unanswered handshakes may mean overload, which an ejection would worsen for the other workers. A refusal is
        // certain, and so is a server without answers and heartbeats.
        let is_certain = alternative && evidence.unanswered == 0;
        let may_eject = lacks_heartbeats || is_certain || (is_left && failing < limit);
        let (worker, name) = (worker.name.clone(), service.settings.name.clone());
        let handshakes = &mut service.handshakes[at.backend];
        if may_eject {
            let pause = handshakes.eject(evidence, &self.failing, now);
            self.ejected
                .insert(service.settings.backends[at.backend].id);
            self.events.push_back(Event::WorkerFailing {
                worker,
                service: name,
                evidence,
                trial_in_ms: milliseconds(pause),
            });
        } else if !std::mem::replace(&mut handshakes.is_kept, true) {
            self.events.push_back(Event::FailingWorkerKept {
                worker,
                service: name,
                evidence,
                failing,
                workers,
            });
        }
        may_eject
    }

    pub(super) fn find_backend(&self, id: BackendId) -> Option<BackendIndex> {
        let worker = &self.workers[*self.by_backend.get(&id)?];
        let mut backends = worker.backends.iter();
        let is_it =
            |at: &&BackendIndex| self.services[at.service].settings.backends[at.backend].id == id;
        backends.find(is_it).copied()
    }
}

impl Service {
    /// The settings of passive ejection in this service.
    pub fn failing_settings(&self, settings: &FailingSettings) -> FailingSettings {
        let after = match self.settings.passive_checks {
            true => settings.after,
            false => 0,
        };
        FailingSettings { after, ..*settings }
    }

    /// Returns the number of failing backends of the same tier, and the number of its backends whose workers are up.
    fn count_failing(&self, backend: usize, workers: &[Worker]) -> (usize, usize) {
        let is_backup = |it: usize| self.settings.backends[it].backup;
        let tier = (0..self.workers.len()).filter(|it| is_backup(*it) == is_backup(backend));
        let states = tier.map(|it| self.state(it, &workers[self.workers[it]]));
        states.fold((0, 0), |(failing, all), state| match state {
            Health::Failing => (failing + 1, all + 1),
            Health::Up => (failing, all + 1),
            _ => (failing, all),
        })
    }

    /// Whether the fallback or a backup serves if no worker of the backend's tier does.
    fn has_alternative(&self, backend: usize) -> bool {
        let is_primary = !self.settings.backends[backend].backup;
        self.settings.fallback.is_some() || (is_primary && self.has_usable_backup())
    }
}
