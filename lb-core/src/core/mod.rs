//! The core: its state, its inputs and its outputs.

mod admin;
mod failing;
mod outage;
mod pause;
mod rebalance;
mod reconfigure;
mod routes;
mod start;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::admin::AdminOverrides;
use crate::deadlines::Deadlines;
use crate::event::Event;
use crate::handshakes::FailingSettings;
use crate::health::Health;
use crate::map_update::MapUpdate;
use crate::milliseconds;
use crate::reason::Rule;
use crate::report::Report;
use crate::sequence::Admission;
use crate::service::Service;
use crate::settings::{BackendId, BackendSettings, ServiceSettings};
use crate::snapshot::{ServiceSnapshot, Snapshot};
use crate::worker::{BackendIndex, Worker};
use pause::Pause;
use reconfigure::RemovedWorker;

/// Whether a heartbeat was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "refusals are counted by reason"]
pub enum HeartbeatOutcome {
    Accepted,
    /// No service has a worker of this name.
    UnknownWorker,
    /// The same sequence number was received before.
    Duplicate,
    /// A later sequence number was received before: late or replayed.
    Reordered,
    /// From before the agent's last restart, or from a second agent with the same name.
    OldBoot,
    /// In the 2018 format, while the same worker sends version 1.
    Superseded,
    /// Signed, received after a silence, with a lower sequence number. It is a replay, or comes from a machine
    /// that was restored from a snapshot and whose agent needs a new boot id.
    SequenceReset,
}

impl HeartbeatOutcome {
    /// Returns the reason under which a refused heartbeat is counted.
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Accepted => None,
            Self::UnknownWorker => Some("unknown_worker"),
            Self::Duplicate => Some("duplicate"),
            Self::Reordered => Some("reordered"),
            Self::OldBoot => Some("old_boot"),
            Self::Superseded => Some("superseded"),
            Self::SequenceReset => Some("sequence_reset"),
        }
    }
}

/// All workers, and each service's selection.
#[derive(Debug)]
pub struct Core {
    down_after: Duration,
    up_after: u32,
    failing: FailingSettings,
    panic_percent: Option<u32>,
    workers: Vec<Worker>,
    by_name: BTreeMap<String, usize>,
    /// The worker of each backend.
    by_backend: BTreeMap<BackendId, usize>,
    /// The sequences of removed workers, so that their heartbeats cannot be replayed when they are back.
    removed: BTreeMap<String, RemovedWorker>,
    services: Vec<Service>,
    overrides: AdminOverrides,
    /// The pauses in force, by worker. `overrides` has them, too.
    pauses: BTreeMap<String, Pause>,
    deadlines: Deadlines,
    /// The failing backends.
    ejected: BTreeSet<BackendId>,
    /// Backends that the caller must try, see [`Core::poll_trial`].
    trials: VecDeque<BackendId>,
    /// When the first worker lost its heartbeats and stayed up because its packets arrive.
    outage_since: Option<Instant>,
    /// The last call. A long gap means that the manager itself did not run.
    last_call: Instant,
    started: Instant,
    map_updates: VecDeque<MapUpdate>,
    events: VecDeque<Event>,
}

impl Core {
    /// Whether a service has a worker of this name.
    pub fn has_worker(&self, worker: &str) -> bool {
        self.by_name.contains_key(worker)
    }

    /// Handles a worker's heartbeat, received at `now`.
    ///
    /// Late, repeated and replayed heartbeats change nothing, neither memory nor liveness.
    pub fn handle_heartbeat(&mut self, report: &Report, now: Instant) -> HeartbeatOutcome {
        self.detect_stall(now);
        let Some(&index) = self.by_name.get(&report.worker) else {
            return HeartbeatOutcome::UnknownWorker;
        };
        let worker = &mut self.workers[index];
        match worker.admit(report, self.down_after, now) {
            Admission::Newer => {}
            Admission::Restarted => {
                let boot = worker.sequence.boot().map(|boot| boot.to_string());
                self.events.extend(boot.map(|boot| Event::AgentRestarted {
                    worker: worker.name.clone(),
                    boot,
                }));
            }
            Admission::Reset => self.events.push_back(Event::SequenceReset {
                worker: worker.name.clone(),
            }),
            Admission::NeedsNewBoot => return HeartbeatOutcome::SequenceReset,
            Admission::Duplicate => return HeartbeatOutcome::Duplicate,
            Admission::Reordered => return HeartbeatOutcome::Reordered,
            Admission::OldBoot => return HeartbeatOutcome::OldBoot,
            Admission::Superseded => return HeartbeatOutcome::Superseded,
        }
        self.check_interval(index, report);
        let worker = &mut self.workers[index];
        let was_stale = worker.memory_stale.is_some();
        let before = worker.update(report, self.down_after, self.up_after, now);
        self.events.extend(worker.memory_event(was_stale));
        if worker.health.is_up() && !before.is_up() {
            // Workers that report right after the manager's start come up together, without a ramp.
            let early = now.saturating_duration_since(self.started) <= self.down_after;
            worker.came_up = (before != Health::Unknown || !early).then_some(now);
        }
        self.end_missing_heartbeats(index, now);
        self.emit_health(index, before, now);
        self.update_pause(index, now);
        self.sync_services(&[index], now);
        HeartbeatOutcome::Accepted
    }

    /// Marks the workers as down whose last heartbeat is too old at `now`, and does everything else that is due.
    ///
    /// The caller passes all received datagrams to [`Self::handle_heartbeat`] first: after a stop of the
    /// manager, the heartbeats of that time wait in the socket. If they are lost (a full queue, a suspended
    /// machine), the core detects that it was called long after its deadline, and moves the deadlines of all
    /// workers by the gap.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.detect_stall(now);
        let silent = self.deadlines.due(now);
        let silent = self.apply_panic_threshold(silent, now);
        for &index in &silent {
            let before = self.workers[index].expire();
            self.emit_health(index, before, now);
            self.update_pause(index, now);
        }
        if !silent.is_empty() {
            self.sync_services(&silent, now);
        }
        self.end_due_pauses(now);
        self.begin_due_trials(now);
        self.rebalance_due(now);
        self.end_due_holds(now);
    }

    /// Returns when [`Self::handle_timeout`] is next due: a worker's deadline, a rebalance, the end of a
    /// pause, a trial, or the end of a hold.
    ///
    /// It is later than the `now` of the last [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.services.iter().filter_map(|it| it.memory.waiting());
        let next = [
            self.deadlines.earliest(),
            self.poll_rebalance(),
            self.poll_pause(),
            self.poll_next_trial(),
            waiting.map(|(_, until)| until).min(),
        ];
        next.into_iter().flatten().min()
    }

    /// Returns the next map update.
    pub fn poll_map_update(&mut self) -> Option<MapUpdate> {
        self.map_updates.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the time since a worker's last heartbeat, without the time in which the manager did not
    /// run; `None` if no service has this worker.
    pub fn silent_for(&self, worker: &str, now: Instant) -> Option<Duration> {
        let index = *self.by_name.get(worker)?;
        Some(self.workers[index].silent_for(now))
    }

    /// Returns the workers that have a deadline and have been silent for a fifth of `down_after`, with
    /// how long: the next manager continues from there, see [`crate::AdoptedState::silent_for`].
    pub fn overdue_workers(&self, now: Instant) -> impl Iterator<Item = (&str, Duration)> {
        let has_deadline = |it: &&Worker| it.deadline(self.down_after).is_some();
        let workers = self.workers.iter().filter(has_deadline);
        let late = workers.map(move |worker| (worker.name.as_str(), worker.silent_for(now)));
        late.filter(|(_, silence)| *silence >= self.down_after / 5)
    }

    /// Returns the number of backends that can take new connections. A drained backend cannot.
    pub fn serving_backends(&self) -> usize {
        let serving = |service: &Service| {
            let workers = service.workers.iter().enumerate();
            let states = workers.map(|(at, worker)| service.state(at, &self.workers[*worker]));
            states.filter(|state| state.is_up()).count()
        };
        self.services.iter().map(serving).sum()
    }

    /// Returns the state of all services, for `memlb status` and the API.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let services = self.services.iter();
        Snapshot {
            services: services
                .map(|service| self.service_snapshot(service, now))
                .collect(),
        }
    }

    /// Returns one service of [`Self::snapshot`], by its name.
    pub fn snapshot_of(&self, service: &str, now: Instant) -> Option<ServiceSnapshot> {
        let mut services = self.services.iter();
        let service = services.find(|it| it.settings.name == service)?;
        Some(self.service_snapshot(service, now))
    }

    fn service_snapshot(&self, service: &Service, now: Instant) -> ServiceSnapshot {
        let mut snapshot = service.snapshot(&self.workers, now);
        let workers = service.workers.iter().map(|it| &self.workers[*it]);
        if let Some(outage) = self.outage_text(workers, now) {
            let problem = snapshot.problem.take();
            snapshot.problem = Some(problem.map_or(outage.clone(), |it| format!("{it}; {outage}")));
        }
        snapshot
    }

    fn add_service(&mut self, settings: ServiceSettings, now: Instant) {
        let service = self.services.len();
        let mut workers = Vec::with_capacity(settings.backends.len());
        for (backend, settings) in settings.backends.iter().enumerate() {
            let BackendSettings { worker, id, .. } = settings;
            let index = *self.by_name.entry(worker.clone()).or_insert_with(|| {
                self.workers.push(Worker::new(worker.clone(), now));
                self.workers.len() - 1
            });
            // Heartbeats are expected if one of the worker's services expects them.
            let is_first = self.workers[index].backends.is_empty();
            let agent = settings.agent || (self.workers[index].agent && !is_first);
            self.workers[index].set_agent(agent, now);
            let at = BackendIndex { service, backend };
            self.workers[index].backends.push(at);
            self.by_backend.insert(*id, index);
            workers.push(index);
        }
        self.services.push(Service::new(settings, workers, now));
    }

    /// Detects that the manager itself did not run, and moves all deadlines by that gap.
    fn detect_stall(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.last_call);
        // On a busy machine every call is a little late.
        let tolerance = self.down_after / 4;
        let missed = gap > tolerance
            && self
                .deadlines
                .earliest_after(self.last_call)
                .is_some_and(|due| now.saturating_duration_since(due) > tolerance);
        self.last_call = self.last_call.max(now);
        if missed {
            for (index, worker) in self.workers.iter_mut().enumerate() {
                worker.extend_deadline(gap, now);
                self.deadlines.set(index, worker.deadline(self.down_after));
            }
            self.events.push_back(Event::ManagerStalled {
                gap_ms: milliseconds(gap),
            });
        }
    }

    fn check_interval(&mut self, index: usize, report: &Report) {
        let Some(interval) = report.interval else {
            return;
        };
        let worker = &mut self.workers[index];
        worker.interval = Some(interval);
        let slow = interval.saturating_mul(3) > self.down_after;
        if slow && !worker.slow {
            self.events.push_back(Event::IntervalTooLong {
                worker: worker.name.clone(),
                interval_ms: milliseconds(interval),
                down_after_ms: milliseconds(self.down_after),
            });
        }
        worker.slow = slow;
    }

    fn emit_health(&mut self, index: usize, before: Health, now: Instant) {
        if self.workers[index].health != before {
            self.reset_ejections(index);
        }
        let worker = &self.workers[index];
        if worker.health != before {
            self.events.extend(Event::of_worker(
                worker.name.clone(),
                before,
                worker.health,
                worker.memory,
                milliseconds(worker.silent_for(now)),
                worker.in_maintenance || worker.paused_until.is_some(),
            ));
        }
    }

    /// Updates maps and selections after a change of the given workers, in the order that [`MapUpdate`]
    /// guarantees.
    fn sync_services(&mut self, changed: &[usize], now: Instant) {
        for &index in changed {
            self.propagate(index);
        }
        let backends: Vec<BackendIndex> = changed
            .iter()
            .flat_map(|&index| self.workers[index].backends.iter().copied())
            .collect();
        self.emit_backends(&backends, true);
        let services: BTreeSet<usize> = backends.iter().map(|at| at.service).collect();
        for index in services {
            self.reselect(index, now);
        }
        self.emit_backends(&backends, false);
    }

    /// Updates a worker's deadline, and its state in its services.
    fn propagate(&mut self, index: usize) {
        let worker = &self.workers[index];
        self.deadlines.set(index, worker.deadline(self.down_after));
        for at in &worker.backends {
            let service = &mut self.services[at.service];
            service.update(at.backend, worker);
            self.events
                .extend(service.eligibility_event(at.backend, worker));
            self.events.extend(service.tier_event());
        }
    }

    /// Emits those of the backends that are up, or those that are not.
    fn emit_backends(&mut self, backends: &[BackendIndex], up: bool) {
        for at in backends {
            let service = &mut self.services[at.service];
            let worker = &self.workers[service.workers[at.backend]];
            if service.state(at.backend, worker).is_up() == up {
                self.map_updates
                    .extend(service.backend_update(at.backend, worker));
            }
        }
    }

    fn emit_selection(&mut self, index: usize) {
        let service = &self.services[index];
        let (update, event) = service.selection_update();
        if service.reason.rule == Rule::NoWorkerUp {
            self.events.push_back(Event::AllWorkersDown {
                service: service.settings.name.clone(),
                fallback: service.settings.fallback_name().to_owned(),
            });
        }
        self.map_updates.push_back(update);
        self.events.push_back(event);
    }

    /// Emits the ranking of a service that selects one worker.
    fn emit_ranking(&mut self, index: usize) {
        let service = &mut self.services[index];
        if service.spread.is_none() {
            self.map_updates.extend(service.ranking_update());
        }
    }

    /// Selects again in the services whose hold is over and in which a worker waits for that.
    fn end_due_holds(&mut self, now: Instant) {
        for index in 0..self.services.len() {
            let waiting = self.services[index].memory.waiting();
            if waiting.is_some_and(|(_, until)| until <= now) {
                self.reselect(index, now);
            }
        }
    }

    fn reselect(&mut self, index: usize, now: Instant) {
        let service = &mut self.services[index];
        if service.spread.is_some() {
            return self.sync_spread(index, now);
        }
        self.events.extend(service.learn_threshold(&self.workers));
        let reselected = service.reselect(&self.workers, now);
        if reselected {
            self.emit_selection(index);
        }
        if reselected || self.services[index].has_changed() {
            self.emit_ranking(index);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test begins at some instant")]
mod tests;
