//! One service: its backends, what is selected and why.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::admin::AdminOverride;
use super::eligibility::{Ineligibility, WorkerRoute};
use super::event::Event;
use super::health::Health;
use super::map_update::MapUpdate;
use super::memory::Memory;
use super::policy::{Spread, WeightInput, is_hot};
use super::reason::{BackendSummary, Reason, Rule};
use super::return_path::ReturnPath;
use super::selection::{self, Candidate, Decision};
use super::settings::{
    ALL_WORKERS, BackendId, MANAGER, NO_BACKEND, ServiceSettings, SlotKind, Threshold,
};
use super::worker::Worker;

/// The `auto` threshold is this part of the smaller worker's memory at least: twins with much of it
/// differ by less than that from one moment to the next.
const MIN_AUTO_PART: u64 = 100;

/// Where a service's new connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selection {
    Fallback,
    /// To the backend of that index.
    Backend(usize),
    /// To all, as the policy spreads them.
    Spread,
}

/// A better worker that waits for the hold to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub backend: usize,
    pub until: Instant,
}

#[derive(Debug)]
pub(super) struct Service {
    pub settings: ServiceSettings,
    /// The index of each backend's worker, in the settings' order.
    pub workers: Vec<usize>,
    pub target: Selection,
    /// Present where the policy spreads connections.
    pub spread: Option<Spread>,
    pub reason: Reason,
    pub since: Instant,
    /// When new connections last went from one worker to another, or were found where they went.
    pub(super) switched: Option<Instant>,
    pub waiting: Option<Waiting>,
    pub learned_threshold_bytes: Option<u64>,
    /// The workers were just seen side by side for the first time, and whoever was heard first is
    /// selected by mere luck: now the best is taken, whatever the threshold.
    first_comparison: bool,
    /// What was last said of each backend, so that nothing is said twice.
    described: Vec<Option<(Health, Option<Memory>, u32)>>,
    /// What the policy compares, side by side: it is gone through at every heartbeat.
    candidates: Vec<Candidate>,
    /// What the operator has ordered of each backend.
    pub overrides: Vec<AdminOverride>,
    /// How each worker is reached.
    pub links: Vec<WorkerRoute>,
    /// In mode `routed`: whether each worker's answers pass the manager.
    pub(super) return_paths: Vec<ReturnPath>,
    /// What was last said to keep each worker that is up from serving.
    pub(super) reported_ineligibility: Vec<Option<Ineligibility>>,
    /// Under policy `memory`: the workers that are up, the one with the most memory first, as last
    /// said.
    ranked: Vec<usize>,
    /// Who came up or was lost since the connections were last spread or the workers ranked.
    pub joined: bool,
    pub lost: bool,
    /// The operator weighs somebody otherwise since then.
    pub reweighed: bool,
    /// No worker had memory to spare when weights were last looked at.
    pub hot: bool,
    /// When shares were last told.
    pub shares_emitted: Option<Instant>,
}

impl Service {
    pub fn new(settings: ServiceSettings, workers: Vec<usize>, now: Instant) -> Self {
        Self {
            described: vec![None; workers.len()],
            candidates: vec![Candidate::UNKNOWN; workers.len()],
            overrides: vec![AdminOverride::default(); workers.len()],
            links: vec![WorkerRoute::Direct; workers.len()],
            return_paths: vec![ReturnPath::default(); workers.len()],
            reported_ineligibility: vec![None; workers.len()],
            workers,
            target: Selection::Fallback,
            spread: settings
                .policy
                .kind()
                .map(|kind| Spread::new(kind, &settings)),
            reason: Reason {
                rule: Rule::NothingHeard,
                to: not_a_worker(fallback_name(&settings)),
                from: None,
                threshold_bytes: None,
            },
            since: now,
            switched: None,
            waiting: None,
            learned_threshold_bytes: None,
            first_comparison: false,
            ranked: Vec::new(),
            joined: false,
            lost: false,
            reweighed: false,
            hot: false,
            shares_emitted: None,
            settings,
        }
    }

    /// Keeps a selection found in the pinned maps, if it names a worker of this service.
    pub fn adopt(&mut self, backend: BackendId, workers: &[Worker]) {
        let index = self.settings.backends.iter().position(|b| b.id == backend);
        if let Some(index) = index {
            self.adopt_target(Selection::Backend(index), workers);
            // An earlier manager may have switched just before it ended.
            self.switched = Some(self.since);
        }
    }

    /// Keeps on spreading connections by the weights found in the pinned maps, if the policy still
    /// spreads them.
    pub fn adopt_spread(&mut self, weight: impl Fn(BackendId) -> u32, workers: &[Worker]) {
        let weights = self
            .settings
            .backends
            .iter()
            .map(|backend| weight(backend.id));
        if let Some(spread) = &mut self.spread {
            spread.adopt(weights.collect());
            self.adopt_target(Selection::Spread, workers);
        }
    }

    /// Leaves connections to the fallback until somebody is up, whatever was found.
    pub fn await_first_worker(&mut self) {
        self.target = Selection::Fallback;
        self.reason.rule = Rule::NothingHeard;
        self.reason.to = not_a_worker(self.fallback_name());
    }

    fn adopt_target(&mut self, target: Selection, workers: &[Worker]) {
        self.target = target;
        self.reason = Reason {
            rule: Rule::Adopted,
            to: self.figure(target, workers),
            from: None,
            threshold_bytes: None,
        };
    }

    /// Returns how a backend is treated: by its worker's health, what the operator ordered, and what
    /// keeps it from serving.
    pub fn state(&self, backend: usize, worker: &Worker) -> Health {
        let health = self.overrides[backend].effective_health(worker.health);
        match self.ineligibility(backend, worker) {
            Some(obstacle) if health.is_up() => obstacle.state(),
            Some(_) | None => health,
        }
    }

    /// Whether what is selected may be: a worker that is up, or the fallback.
    pub fn selected_is_up(&self) -> bool {
        self.selected()
            .is_none_or(|index| self.candidates[index].health.is_up())
    }

    /// Takes over what is known of a backend's worker now.
    pub fn update(&mut self, backend: usize, worker: &Worker) {
        let candidate = Candidate {
            health: self.state(backend, worker),
            available_bytes: self.weighted_bytes(backend, worker),
            hot: (worker.memory)
                .is_some_and(|memory| is_hot(memory, worker.pressure, &self.settings.spread)),
        };
        let before = std::mem::replace(&mut self.candidates[backend], candidate);
        match (before.health.is_up(), candidate.health.is_up()) {
            (false, true) => self.joined = true,
            (true, false) => self.lost = true,
            (true, true) | (false, false) => {}
        }
    }

    pub fn forget_changes(&mut self) {
        (self.joined, self.lost, self.reweighed) = (false, false, false);
    }

    pub fn any_up(&self) -> bool {
        self.candidates.iter().any(|it| it.health.is_up())
    }

    /// Returns how each worker stands that is up.
    pub fn inputs(&self, workers: &[Worker], now: Instant) -> Vec<Option<WeightInput>> {
        let standing = |(backend, worker): (usize, &usize)| {
            let worker = &workers[*worker];
            self.candidates[backend]
                .health
                .is_up()
                .then(|| WeightInput {
                    memory: worker.memory,
                    pressure: worker.pressure,
                    age: worker.age(now).unwrap_or_default(),
                    drift_bytes: worker.memory_per_connection.drift_bytes(),
                    ramp_percent: worker.ramp_percent(self.settings.spread.ramp_up, now),
                    manual_percent: self.manual_percent(backend),
                })
        };
        self.workers.iter().enumerate().map(standing).collect()
    }

    /// Returns the command that fills the service's places.
    pub fn slots_update(&self) -> Option<MapUpdate> {
        let spread = self.spread.as_ref()?;
        let backends = &self.settings.backends;
        Some(MapUpdate::SetSlots {
            service: self.settings.id,
            kind: spread.kind(),
            slots: spread.slots().iter().map(|at| backends[*at].id).collect(),
        })
    }

    /// Ranks the workers for clients that the selected one does not answer; returns the command that
    /// says so, if it would say anything new.
    ///
    /// Only when somebody comes or goes: sorting at each heartbeat would cost much and gain little.
    pub fn rank(&mut self) -> Option<MapUpdate> {
        self.forget_changes();
        let candidates = &self.candidates;
        let mut ranked: Vec<usize> = (0..candidates.len())
            .filter(|index| candidates[*index].health.is_up())
            .collect();
        ranked.sort_by_key(|index| {
            let selected = self.target == Selection::Backend(*index);
            (
                Reverse(selected),
                Reverse(candidates[*index].available_bytes),
            )
        });
        if ranked.is_empty() || ranked == self.ranked {
            return None;
        }
        let backends = &self.settings.backends;
        let slots = ranked.iter().map(|index| backends[*index].id).collect();
        self.ranked = ranked;
        Some(MapUpdate::SetSlots {
            service: self.settings.id,
            kind: SlotKind::Ranked,
            slots,
        })
    }

    /// Whether anything happened that changes who takes connections, other than memory.
    pub fn has_changed(&self) -> bool {
        self.joined || self.lost || self.reweighed
    }

    /// What the configuration and the operator let a worker take here.
    pub fn manual_percent(&self, backend: usize) -> u32 {
        let configured = self.settings.backends[backend].weight_percent;
        (configured * self.overrides[backend].weight_percent()).div_ceil(100)
    }

    /// Takes over what the operator has ordered of a backend.
    pub fn apply_admin_state(&mut self, backend: usize, overlay: AdminOverride) {
        self.reweighed |= overlay.weight_percent() != self.overrides[backend].weight_percent();
        self.overrides[backend] = overlay;
    }

    /// The memory that policy `memory` counts for a worker.
    fn weighted_bytes(&self, backend: usize, worker: &Worker) -> Option<u64> {
        let percent = u128::from(self.manual_percent(backend));
        let bytes = u128::from(worker.available_bytes()?) * percent / 100;
        Some(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// Sends new connections elsewhere from now on.
    pub fn switch_to(&mut self, target: Selection, rule: Rule, workers: &[Worker], now: Instant) {
        self.reason = Reason {
            rule,
            to: self.figure(target, workers),
            from: Some(self.figure(self.target, workers)),
            threshold_bytes: self.threshold_bytes(),
        };
        if let (Selection::Backend(_), Selection::Backend(_)) = (self.target, target) {
            self.switched = Some(now);
        }
        self.target = target;
        self.since = now;
    }

    /// Returns the command that describes a backend, if it would say anything new.
    pub fn describe(&mut self, backend: usize, worker: &Worker) -> Option<MapUpdate> {
        let weight = self.weight(backend);
        let description = (self.state(backend, worker), worker.memory, weight);
        if self.described[backend].replace(description) == Some(description) {
            return None;
        }
        Some(MapUpdate::SetBackend {
            backend: self.settings.backends[backend].id,
            state: description.0,
            memory: worker.memory,
            weight,
        })
    }

    /// Returns what a backend weighs against the others.
    pub fn weight(&self, backend: usize) -> u32 {
        self.spread
            .as_ref()
            .map_or(1, |spread| spread.weight(backend))
    }

    /// Applies the policy to what is known now; returns whether the selection changed.
    pub fn reselect(&mut self, workers: &[Worker], now: Instant) -> bool {
        self.waiting = None;
        let first = std::mem::take(&mut self.first_comparison);
        let threshold_bytes = self.threshold_bytes();
        let in_force = if first { Some(0) } else { threshold_bytes };
        let selected = self.selected();
        let decision = selection::decide(selected, &self.candidates, in_force);
        let Decision::Switch { to, mut rule } = decision else {
            return false;
        };
        if let (Rule::MoreMemory, Some(backend), Some(until)) = (rule, to, self.hold_end(now)) {
            if !self.is_relieved_by(backend) {
                self.waiting = Some(Waiting { backend, until });
                self.first_comparison = first;
                return false;
            }
            rule = Rule::SelectedHot;
        } else if first && rule == Rule::MoreMemory {
            rule = Rule::FirstComparison;
        }
        if self.target == Selection::Spread {
            rule = Rule::PolicyChanged;
        }
        let target = to.map_or(Selection::Fallback, Selection::Backend);
        self.switch_to(target, rule, workers, now);
        true
    }

    /// Until when the selected worker is kept whoever has more memory; nothing if it is not.
    fn hold_end(&self, now: Instant) -> Option<Instant> {
        let until = self.switched?.checked_add(self.settings.hold)?;
        (until > now).then_some(until)
    }

    /// Whether the selected worker has no memory to spare, and this one has.
    fn is_relieved_by(&self, backend: usize) -> bool {
        let selected = self.selected().map(|index| self.candidates[index]);
        selected.is_some_and(|it| it.hot) && !self.candidates[backend].hot
    }

    /// How long [`Self::waiting`] still waits.
    pub fn remaining_hold(&self, now: Instant) -> Option<(usize, Duration)> {
        let Waiting { backend, until } = self.waiting?;
        Some((backend, until.saturating_duration_since(now)))
    }

    /// The index of the backend that gets all connections, if one does.
    fn selected(&self) -> Option<usize> {
        match self.target {
            Selection::Backend(index) => Some(index),
            Selection::Fallback | Selection::Spread => None,
        }
    }

    /// Fixes the automatic threshold as soon as two workers are heard.
    pub fn learn_threshold(&mut self, workers: &[Worker]) -> Option<Event> {
        if self.settings.threshold != Threshold::Auto || self.learned_threshold_bytes.is_some() {
            return None;
        }
        let (difference, pair) = selection::learn_threshold(&self.candidates)?;
        let memory = |index: usize| workers[self.workers[index]].memory;
        let totals = pair.iter().filter_map(|index| memory(*index)?.total_bytes);
        let bytes = difference.max(totals.min().unwrap_or(0) / MIN_AUTO_PART);
        self.learned_threshold_bytes = Some(bytes);
        self.first_comparison = self.reason.rule == Rule::FirstUp;
        let [one, other] = pair.map(|index| self.figure(Selection::Backend(index), workers));
        Some(Event::ThresholdLearned {
            service: self.settings.name.clone(),
            threshold_bytes: bytes,
            one: one.name,
            one_memory_available_bytes: one.available_bytes,
            other: other.name,
            other_memory_available_bytes: other.available_bytes,
        })
    }

    pub fn threshold_bytes(&self) -> Option<u64> {
        let selected = self.selected().map(|index| self.candidates[index]);
        selection::threshold_bytes(
            self.settings.threshold,
            self.learned_threshold_bytes,
            selected.and_then(|candidate| candidate.available_bytes),
        )
    }

    /// Who gets new connections while no worker is up.
    pub fn fallback_name(&self) -> &'static str {
        fallback_name(&self.settings)
    }

    /// Returns the command that describes the fallback, if there is one.
    pub fn fallback_update(&self) -> Option<MapUpdate> {
        let fallback = self.settings.fallback.as_ref()?;
        Some(MapUpdate::SetBackend {
            backend: fallback.id,
            state: Health::Up,
            memory: None,
            weight: 1,
        })
    }

    /// The backend that gets all connections; nothing where they are spread.
    pub fn selected_id(&self) -> Option<BackendId> {
        match self.target {
            Selection::Backend(index) => Some(self.settings.backends[index].id),
            Selection::Fallback => {
                let fallback = self.settings.fallback.as_ref();
                Some(fallback.map_or(BackendId(0), |fallback| fallback.id))
            }
            Selection::Spread => None,
        }
    }

    pub fn selection(&self) -> (MapUpdate, Event) {
        let service = self.settings.id;
        let backend = self.selected_id();
        let command = match backend {
            Some(backend) => MapUpdate::Select { service, backend },
            None => MapUpdate::Spread { service },
        };
        let event = Event::of_selection(self.settings.name.clone(), backend, &self.reason);
        (command, event)
    }

    fn figure(&self, target: Selection, workers: &[Worker]) -> BackendSummary {
        let index = match target {
            Selection::Fallback => return not_a_worker(self.fallback_name()),
            Selection::Spread => return not_a_worker(ALL_WORKERS),
            Selection::Backend(index) => index,
        };
        let worker = &workers[self.workers[index]];
        BackendSummary {
            name: worker.name.clone(),
            state: self.state(index, worker),
            available_bytes: self.weighted_bytes(index, worker),
        }
    }
}

fn fallback_name(settings: &ServiceSettings) -> &'static str {
    match settings.fallback {
        Some(_) => MANAGER,
        None => NO_BACKEND,
    }
}

/// Not one worker, so without memory of its own.
fn not_a_worker(name: &str) -> BackendSummary {
    BackendSummary {
        name: name.to_owned(),
        state: Health::Up,
        available_bytes: None,
    }
}
