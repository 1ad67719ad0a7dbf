//! The decision core: heartbeats and time in, map writes and events out.
//!
//! It reads no clock and performs no I/O. The shell around it calls, whenever the world moves:
//!
//! 1. [`Core::handle_heartbeat`] for each datagram that made sense, until the socket is empty;
//! 2. [`Core::handle_timeout`] once, with the same clock;
//! 3. [`Core::poll_map_update`] and [`Core::poll_event`] until both are empty, carrying each out;
//! 4. then sleeps until [`Core::poll_timeout`] or the next datagram.
//!
//! The same inputs give the same outputs, always.

// What .clippy.toml lists, with reasons.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod admin;
mod apply_admin;
mod deadlines;
mod eligibility;
mod endpoint;
mod event;
mod health;
mod map_update;
mod memory;
mod pause;
mod policy;
mod reason;
mod rebalance;
mod reconfigure;
mod report;
mod return_path;
mod selection;
mod sequence;
mod service;
mod settings;
mod snapshot;
mod worker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

pub use admin::{
    AdminAction, AdminCommand, AdminError, AdminOverride, AdminOverrides, AdminState, Audited,
    MAX_REASON_BYTES, MAX_WEIGHT_PERCENT, check_reason, unknown_name,
};
pub use apply_admin::CommandResult;
pub use eligibility::{Ineligibility, WorkerRoute};
pub use endpoint::{Endpoint, ParseEndpointError, Protocol};
pub use event::{AttachedInterface, Audience, Cause, Event, EventKind, Severity};
pub use health::Health;
pub use map_update::MapUpdate;
pub use memory::{Bytes, Memory, Pressure};
pub use pause::{MAX_PAUSE, MIN_PAUSE};
pub use reason::Rule;
pub use report::{BootId, Report, Sequence, WorkerState};
pub use return_path::ReplyCounters;
pub use settings::{
    ALL_WORKERS, AdoptedState, BackendId, BackendSettings, CoreSettings, DEFAULT_DOWN_AFTER,
    DEFAULT_HOLD, FallbackSettings, MANAGER, MaxShare, Mode, NO_BACKEND, Policy, ServiceId,
    ServiceSettings, SlotKind, SpreadSettings, Threshold,
};
pub use snapshot::{BackendSnapshot, ServiceSnapshot, Snapshot, WaitingSnapshot};

use deadlines::Deadlines;
use pause::Pause;
use reconfigure::RemovedWorker;
use sequence::Admission;
use service::Service;
use worker::{BackendIndex, Worker};

/// What became of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "what is refused is counted by its reason"]
pub enum HeartbeatOutcome {
    Accepted,
    /// No service has a worker of this name.
    UnknownWorker,
    /// The same sequence number was there already.
    Duplicate,
    /// A later sequence number was there already: late or replayed.
    Reordered,
    /// From before the agent's last restart, or from a second agent with the same name.
    OldBoot,
    /// In the 2018 form, while the same worker is heard in version 1.
    Superseded,
    /// Signed, after a silence, with a sequence number lower than one before it: a recording, or the
    /// agent of a machine that was restored from a snapshot and needs a new boot id.
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

/// Knows every worker and every service's selection.
#[derive(Debug)]
pub struct Core {
    down_after: Duration,
    up_after: u32,
    workers: Vec<Worker>,
    by_name: BTreeMap<String, usize>,
    /// The worker of each backend.
    by_backend: BTreeMap<BackendId, usize>,
    /// What removed workers had said, so that a recording of it counts no more when they are back.
    removed: BTreeMap<String, RemovedWorker>,
    services: Vec<Service>,
    overrides: AdminOverrides,
    /// The pauses in force; each is among `orders`, too.
    pauses: BTreeMap<String, Pause>,
    deadlines: Deadlines,
    /// When the shell last called; a long gap means that the manager itself did not run.
    last_call: Instant,
    started: Instant,
    map_updates: VecDeque<MapUpdate>,
    events: VecDeque<Event>,
}

impl Core {
    /// Starts with nothing heard: every service uses its fallback, and an event says so.
    pub fn new(settings: CoreSettings, now: Instant) -> Self {
        Self::resume(settings, &AdoptedState::default(), now)
    }

    /// Starts with what the pinned maps hold from before.
    ///
    /// Adopted selections stay, and adopted workers count as up for `down_after` from `now` on, heard
    /// or not, so that a restart by itself changes nothing. Only what an earlier manager had waited
    /// for a worker in vain counts, too, so that many restarts put off nobody's death. Adopted drains go on as
    /// [`Health::Leaving`] until the worker is heard. A pause lasts until the worker had time to be heard.
    pub fn resume(settings: CoreSettings, adopted: &AdoptedState, now: Instant) -> Self {
        let mut core = Self {
            down_after: settings.down_after,
            up_after: settings.up_after,
            workers: Vec::new(),
            by_name: BTreeMap::new(),
            by_backend: BTreeMap::new(),
            removed: BTreeMap::new(),
            services: Vec::new(),
            overrides: adopted.overrides.clone(),
            pauses: BTreeMap::new(),
            deadlines: Deadlines::default(),
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
            core.overlay(index);
        }
        core.adopt(adopted);
        core.reselect_unusable(now);
        core.emit_initial_state(adopted, now);
        core
    }

    /// Whether a service has a worker of this name.
    pub fn knows(&self, worker: &str) -> bool {
        self.by_name.contains_key(worker)
    }

    /// Takes in what a worker said, received at `now`.
    ///
    /// Late, repeated and replayed heartbeats change nothing, neither memory nor liveness.
    pub fn handle_heartbeat(&mut self, report: &Report, now: Instant) -> HeartbeatOutcome {
        self.wake(now);
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
        let before = worker.hear(report, self.down_after, self.up_after, now);
        self.events.extend(worker.memory_event(was_stale));
        if worker.health.is_up() && !before.is_up() {
            // Those heard at the manager's start come up together.
            let early = now.saturating_duration_since(self.started) <= self.down_after;
            worker.came_up = (before != Health::Unknown || !early).then_some(now);
        }
        self.emit_health(index, before, now);
        self.update_pause(index, now);
        self.sync_services(&[index], now);
        HeartbeatOutcome::Accepted
    }

    /// Declares the workers down whose silence is too long at `now`.
    ///
    /// The shell empties the socket into [`Self::handle_heartbeat`] first: when the manager was
    /// stopped for a while, the proof that the workers live is waiting there. Should even that be
    /// lost (a full queue, a paused machine), the core notices that it was called long after the
    /// deadline it had asked for, and counts the gap against no worker.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.wake(now);
        let silent = self.deadlines.due(now);
        for &index in &silent {
            let before = self.workers[index].expire();
            self.emit_health(index, before, now);
            self.update_pause(index, now);
        }
        if !silent.is_empty() {
            self.sync_services(&silent, now);
        }
        self.end_due_pauses(now);
        self.rebalance_due(now);
        self.end_due_holds(now);
    }

    /// Returns when [`Self::handle_timeout`] is next due: the earliest worker's deadline, the next look at
    /// a service's weights, the end of a pause, or that of a hold that a better worker waits for.
    ///
    /// It lies after the `now` of the last [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.services.iter().filter_map(|it| it.waiting);
        let next = [
            self.deadlines.earliest(),
            self.poll_rebalance(),
            self.poll_pause(),
            waiting.map(|it| it.until).min(),
        ];
        next.into_iter().flatten().min()
    }

    /// Returns the next map write.
    pub fn poll_map_update(&mut self) -> Option<MapUpdate> {
        self.map_updates.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns for how long nothing was heard of a worker; nothing if no service has it.
    pub fn silent_for(&self, worker: &str, now: Instant) -> Option<Duration> {
        let index = *self.by_name.get(worker)?;
        Some(self.workers[index].silent_for(now))
    }

    /// Returns the workers whose silence has lasted for a fifth of `down_after` and would mean something,
    /// with how long it has lasted: the next manager should know, see [`AdoptedState::silences`].
    pub fn overdue_workers(&self, now: Instant) -> impl Iterator<Item = (&str, Duration)> {
        let feared = self.workers.iter().filter(|it| it.health.needs_deadline());
        let silences = feared.map(move |worker| (worker.name.as_str(), worker.silent_for(now)));
        silences.filter(|(_, silence)| *silence >= self.down_after / 5)
    }

    /// Returns everything `memlb status` shows of workers and selections.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let services = self.services.iter();
        Snapshot {
            services: services
                .map(|service| service.snapshot(&self.workers, now))
                .collect(),
        }
    }

    /// Returns one service of [`Self::snapshot`], by its name.
    pub fn snapshot_of(&self, service: &str, now: Instant) -> Option<ServiceSnapshot> {
        let mut services = self.services.iter();
        let service = services.find(|it| it.settings.name == service)?;
        Some(service.snapshot(&self.workers, now))
    }

    fn add_service(&mut self, settings: ServiceSettings, now: Instant) {
        let service = self.services.len();
        let mut workers = Vec::with_capacity(settings.backends.len());
        for (backend, BackendSettings { worker, id, .. }) in settings.backends.iter().enumerate() {
            let index = *self.by_name.entry(worker.clone()).or_insert_with(|| {
                self.workers.push(Worker::new(worker.clone(), now));
                self.workers.len() - 1
            });
            self.workers[index]
                .backends
                .push(BackendIndex { service, backend });
            self.by_backend.insert(*id, index);
            workers.push(index);
        }
        self.services.push(Service::new(settings, workers, now));
    }

    fn adopt(&mut self, adopted: &AdoptedState) {
        let mut up = adopted.up.clone();
        for service in &self.services {
            up.extend(adopted.selections.get(&service.settings.id));
        }
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let ids = worker
                .backends
                .iter()
                .map(|place| self.services[place.service].settings.backends[place.backend].id);
            let served = worker.backends.iter().zip(ids.clone());
            // Who took connections directly had a DSR translator; its next heartbeat says whether it has.
            worker.translates = served
                .filter(|(_, id)| up.contains(id))
                .map(|(place, _)| self.services[place.service].settings.endpoint())
                .collect();
            if ids.clone().any(|id| up.contains(&id)) {
                worker.health = Health::Up;
            } else if ids.clone().any(|id| adopted.draining.contains(&id)) {
                // After its pause a silent worker is down.
                worker.health = match worker.paused_until {
                    Some(_) => Health::Up,
                    None => Health::Leaving,
                };
            }
            let silence = adopted.silences.get(&worker.name);
            if let Some(silence) = silence.copied() {
                worker.adopt_silence(silence, self.down_after);
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

    /// Moves adopted selections away from workers that are held since.
    fn reselect_unusable(&mut self, now: Instant) {
        for service in &mut self.services {
            if service.spread.is_none() && !service.selected_is_up() {
                service.reselect(&self.workers, now);
            }
        }
    }

    /// Describes everything once, then says every selection.
    fn emit_initial_state(&mut self, adopted: &AdoptedState, now: Instant) {
        for service in &mut self.services {
            for backend in 0..service.workers.len() {
                let worker = &self.workers[service.workers[backend]];
                self.map_updates.extend(service.describe(backend, worker));
            }
            self.map_updates.extend(service.fallback_update());
        }
        for index in 0..self.services.len() {
            let was_spread = adopted.spread.contains(&self.services[index].settings.id);
            self.start_service(index, was_spread, now);
        }
    }

    /// Says a service's first selection.
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
            // The policy is another one than before the restart.
            service.reselect(&self.workers, now);
        }
        self.emit_selection(index);
        self.rank(index);
    }

    /// Says who comes after the selected worker, where one is selected.
    fn rank(&mut self, index: usize) {
        let service = &mut self.services[index];
        if service.spread.is_none() {
            self.map_updates.extend(service.rank());
        }
    }

    fn emit_selection(&mut self, index: usize) {
        let service = &self.services[index];
        let (command, event) = service.selection();
        if service.reason.rule == Rule::NoWorkerUp {
            self.events.push_back(Event::AllWorkersDown {
                service: service.settings.name.clone(),
                fallback: service.fallback_name().to_owned(),
            });
        }
        self.map_updates.push_back(command);
        self.events.push_back(event);
    }

    /// Notices when the manager itself did not run, and forgives the workers that gap.
    fn wake(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.last_call);
        // A busy machine is a little late all the time; only far later is a sleep.
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
            self.events.push_back(Event::ManagerOverslept {
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

    /// Brings maps and selections in line with the given workers, in the order [`MapUpdate`] promises.
    fn sync_services(&mut self, changed: &[usize], now: Instant) {
        for &index in changed {
            self.propagate(index);
        }
        let places: Vec<BackendIndex> = changed
            .iter()
            .flat_map(|&index| self.workers[index].backends.iter().copied())
            .collect();
        self.describe(&places, true);
        let services: BTreeSet<usize> = places.iter().map(|place| place.service).collect();
        for index in services {
            self.reselect(index, now);
        }
        self.describe(&places, false);
    }

    /// Carries a worker's new state to its deadline and to the services it works for.
    fn propagate(&mut self, index: usize) {
        let worker = &self.workers[index];
        self.deadlines.set(index, worker.deadline(self.down_after));
        for place in &worker.backends {
            let service = &mut self.services[place.service];
            service.update(place.backend, worker);
            self.events
                .extend(service.eligibility_event(place.backend, worker));
        }
    }

    fn describe(&mut self, places: &[BackendIndex], up: bool) {
        for place in places {
            let service = &mut self.services[place.service];
            let worker = &self.workers[service.workers[place.backend]];
            if service.state(place.backend, worker).is_up() == up {
                self.map_updates
                    .extend(service.describe(place.backend, worker));
            }
        }
    }

    /// Turns to the workers whose wait for the hold's end is over.
    fn end_due_holds(&mut self, now: Instant) {
        for index in 0..self.services.len() {
            let waiting = self.services[index].waiting;
            if waiting.is_some_and(|it| it.until <= now) {
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
            self.rank(index);
        }
    }
}

/// Returns a duration in whole milliseconds.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a history begins at some instant"
)]
mod tests;
