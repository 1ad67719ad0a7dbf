//! One service: its backends, and where its new connections go and why.

mod eligibility;
mod return_path;
mod tier;

use std::time::{Duration, Instant};

use crate::admin::AdminOverride;
use crate::eligibility::{Ineligibility, WorkerRoute};
use crate::event::Event;
use crate::handshakes::Handshakes;
use crate::health::Health;
use crate::map_update::MapUpdate;
use crate::memory::Memory;
use crate::names::ALL_WORKERS;
use crate::policy::{Candidate, Choice, MemoryPolicy, Spread, WeightInput, has_no_headroom};
use crate::reason::{BackendSummary, Rule, SelectionReason};
use crate::return_path::ReturnPath;
use crate::settings::{BackendId, ServiceSettings};
use crate::worker::{Worker, next_ramp, ramp_percent};
use tier::Tier;

/// Where a service's new connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    Fallback,
    /// An index into the service's backends.
    Backend(usize),
    /// The policy spreads them.
    Spread,
}

#[derive(Debug)]
pub struct Service {
    pub settings: ServiceSettings,
    /// The worker of each backend, as an index into the core's workers.
    pub workers: Vec<usize>,
    pub selection: Selection,
    pub memory: MemoryPolicy,
    /// Present if the policy spreads connections.
    pub spread: Option<Spread>,
    pub reason: SelectionReason,
    pub since: Instant,
    /// State, memory and weight of each backend, as last emitted.
    emitted: Vec<Option<(Health, Option<Memory>, u32)>>,
    /// The backends as policy `memory` compares them.
    pub(super) candidates: Vec<Candidate>,
    /// The handshakes of each backend.
    pub handshakes: Vec<Handshakes>,
    pub(super) tier: Tier,
    pub overrides: Vec<AdminOverride>,
    pub(super) routes: Vec<WorkerRoute>,
    return_paths: Vec<ReturnPath>,
    /// The ineligibility of each worker that is up, as last emitted.
    emitted_ineligibility: Vec<Option<Ineligibility>>,
    /// Whether a worker came up since the last rebalance or ranking.
    pub joined: bool,
    /// Whether a worker was lost since then.
    pub lost: bool,
    /// Whether an operator changed a weight since then.
    pub reweighed: bool,
    /// Whether no worker had headroom at the last rebalance.
    pub hot: bool,
    /// When an event about the shares was last emitted.
    pub shares_emitted: Option<Instant>,
}

impl Service {
    pub fn new(settings: ServiceSettings, workers: Vec<usize>, now: Instant) -> Self {
        let addresses: Vec<_> = settings.backends.iter().map(|it| it.address).collect();
        Self {
            emitted: vec![None; workers.len()],
            candidates: vec![Candidate::default(); workers.len()],
            handshakes: vec![Handshakes::default(); workers.len()],
            tier: Tier::new(workers.len()),
            overrides: vec![AdminOverride::default(); workers.len()],
            routes: vec![WorkerRoute::Direct; workers.len()],
            return_paths: vec![ReturnPath::default(); workers.len()],
            emitted_ineligibility: vec![None; workers.len()],
            workers,
            selection: Selection::Fallback,
            memory: MemoryPolicy::new(settings.memory),
            spread: Spread::new(settings.policy, settings.spread, &addresses),
            reason: SelectionReason {
                rule: Rule::NoHeartbeat,
                to: BackendSummary::without_memory(settings.fallback_name()),
                from: None,
                threshold_bytes: None,
            },
            since: now,
            joined: false,
            lost: false,
            reweighed: false,
            hot: false,
            shares_emitted: None,
            settings,
        }
    }

    /// Keeps a selection found in the pinned maps, if it is a backend of this service.
    pub fn adopt(&mut self, backend: BackendId, workers: &[Worker]) {
        if let Some(index) = self.index_of(backend) {
            self.adopt_selection(Selection::Backend(index), workers);
            // The former manager may have switched just before it ended.
            self.memory.record_switch(self.since);
        }
    }

    /// Continues with the weights found in the pinned maps, if the policy still spreads connections.
    pub fn adopt_spread(&mut self, weight: impl Fn(BackendId) -> u32, workers: &[Worker]) {
        let backends = self.settings.backends.iter();
        let weights = backends.map(|backend| weight(backend.id)).collect();
        if let Some(spread) = &mut self.spread {
            spread.adopt(weights);
            self.adopt_selection(Selection::Spread, workers);
        }
    }

    /// Sends connections to the fallback until a worker is up.
    pub fn await_first_worker(&mut self) {
        self.selection = Selection::Fallback;
        self.reason.rule = Rule::NoHeartbeat;
        self.reason.to = BackendSummary::without_memory(self.settings.fallback_name());
    }

    fn adopt_selection(&mut self, selection: Selection, workers: &[Worker]) {
        self.selection = selection;
        self.reason = SelectionReason {
            rule: Rule::Adopted,
            to: self.summary(selection, workers),
            from: None,
            threshold_bytes: None,
        };
    }

    pub fn index_of(&self, backend: BackendId) -> Option<usize> {
        let mut backends = self.settings.backends.iter();
        backends.position(|it| it.id == backend)
    }

    /// Returns a backend's state: its worker's health under the operator's commands and the network's
    /// limits.
    pub fn state(&self, backend: usize, worker: &Worker) -> Health {
        let health = self.overrides[backend].effective_health(worker.health);
        match self.ineligibility(backend, worker) {
            _ if !health.is_up() => health,
            Some(ineligibility) => ineligibility.state(),
            None if self.handshakes[backend].ejection().is_some() => Health::Failing,
            None => health,
        }
    }

    /// Whether the selected backend is up, or is the fallback.
    pub fn selected_is_up(&self) -> bool {
        self.selected()
            .is_none_or(|index| self.candidates[index].is_up)
    }

    /// Updates the policies' data about a backend's worker.
    pub fn update(&mut self, backend: usize, worker: &Worker) {
        let is_usable = self.state(backend, worker).is_up();
        self.set_usable(backend, is_usable);
        let has_no_headroom =
            |memory| has_no_headroom(memory, worker.pressure, &self.settings.spread);
        let candidate = Candidate {
            is_up: is_usable && self.is_in_tier(backend),
            available_bytes: self.weighted_bytes(backend, worker),
            has_no_headroom: worker.memory.is_some_and(has_no_headroom),
        };
        let before = std::mem::replace(&mut self.candidates[backend], candidate);
        self.joined |= candidate.is_up && !before.is_up;
        self.lost |= before.is_up && !candidate.is_up;
    }

    pub fn clear_changes(&mut self) {
        (self.joined, self.lost, self.reweighed) = (false, false, false);
    }

    /// Whether anything but memory changed since [`Self::clear_changes`].
    pub fn has_changed(&self) -> bool {
        self.joined || self.lost || self.reweighed
    }

    pub fn any_up(&self) -> bool {
        self.candidates.iter().any(|it| it.is_up)
    }

    /// Returns the figures for the weight of each backend; `None` if it is not up.
    pub fn weight_inputs(&self, workers: &[Worker], now: Instant) -> Vec<Option<WeightInput>> {
        let input = |(backend, worker): (usize, &usize)| {
            let worker = &workers[*worker];
            self.candidates[backend].is_up.then(|| WeightInput {
                memory: worker.memory,
                pressure: worker.pressure,
                age: worker.age(now).unwrap_or_default(),
                drift_bytes: worker.memory_per_connection.drift_bytes(),
                ramp_percent: self.ramp_percent(backend, workers, now),
                manual_percent: self.manual_percent(backend),
            })
        };
        self.workers.iter().enumerate().map(input).collect()
    }

    /// Returns when the ramp of a backend began: its worker came up, or its server answered again.
    pub fn came_up(&self, backend: usize, workers: &[Worker]) -> Option<Instant> {
        let worker = &workers[self.workers[backend]];
        worker.came_up.max(self.handshakes[backend].returned())
    }

    /// Returns when the ramp of a backend that is up takes its next step.
    pub fn next_ramp(
        &self,
        inputs: &[Option<WeightInput>],
        workers: &[Worker],
        now: Instant,
    ) -> Option<Instant> {
        let ramp_up = self.settings.spread.ramp_up;
        let up = (0..inputs.len()).filter(|backend| inputs[*backend].is_some());
        up.filter_map(|backend| self.came_up(backend, workers))
            .filter_map(|came_up| next_ramp(came_up, ramp_up, now))
            .min()
    }

    /// Returns the percentage of its share that a backend gets.
    pub fn ramp_percent(&self, backend: usize, workers: &[Worker], now: Instant) -> u32 {
        let came_up = self.came_up(backend, workers);
        ramp_percent(came_up, self.settings.spread.ramp_up, now)
    }

    /// Returns the update that fills the slots of a policy that spreads connections.
    pub fn slots_update(&self) -> Option<MapUpdate> {
        let spread = self.spread.as_ref()?;
        Some(MapUpdate::SetSlots {
            service: self.settings.id,
            kind: spread.slot_kind(),
            slots: self.ids(spread.slots()),
        })
    }

    /// Returns the update that ranks the workers for clients whose SYN the selected worker does not
    /// answer, if the ranking changed. The core calls it when a worker comes or goes: sorting at each heartbeat would
    /// cost much and gain little.
    pub fn ranking_update(&mut self) -> Option<MapUpdate> {
        self.clear_changes();
        let selected = self.selected();
        let ranking = self.memory.rank(selected, &self.candidates)?.to_vec();
        Some(MapUpdate::SetSlots {
            service: self.settings.id,
            kind: MemoryPolicy::SLOT_KIND,
            slots: self.ids(&ranking),
        })
    }

    fn ids(&self, indices: &[usize]) -> Vec<BackendId> {
        let backends = &self.settings.backends;
        indices.iter().map(|index| backends[*index].id).collect()
    }

    /// Returns the weight of configuration and operator, in percent.
    pub fn manual_percent(&self, backend: usize) -> u32 {
        let configured = self.settings.backends[backend].weight_percent;
        (configured * self.overrides[backend].weight_percent()).div_ceil(100)
    }

    pub fn apply_admin_state(&mut self, backend: usize, set: AdminOverride) {
        self.reweighed |= set.weight_percent() != self.overrides[backend].weight_percent();
        self.overrides[backend] = set;
    }

    /// Returns the available memory that policy `memory` compares.
    fn weighted_bytes(&self, backend: usize, worker: &Worker) -> Option<u64> {
        let percent = u128::from(self.manual_percent(backend));
        let bytes = u128::from(worker.available_bytes()?) * percent / 100;
        Some(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// Sends new connections elsewhere from now on.
    pub fn switch_to(&mut self, to: Selection, rule: Rule, workers: &[Worker], now: Instant) {
        self.reason = SelectionReason {
            rule,
            to: self.summary(to, workers),
            from: Some(self.summary(self.selection, workers)),
            threshold_bytes: self.threshold_bytes(),
        };
        if let (Selection::Backend(_), Selection::Backend(_)) = (self.selection, to) {
            self.memory.record_switch(now);
        }
        self.selection = to;
        self.since = now;
    }

    /// Returns the update that writes a backend, if it changed.
    pub fn backend_update(&mut self, backend: usize, worker: &Worker) -> Option<MapUpdate> {
        let weight = self.weight(backend);
        let state = self.state(backend, worker);
        let entry = (state, worker.memory, weight);
        if self.emitted[backend].replace(entry) == Some(entry) {
            return None;
        }
        Some(MapUpdate::SetBackend {
            backend: self.settings.backends[backend].id,
            state,
            memory: worker.memory,
            weight,
        })
    }

    /// Returns a backend's weight in the kernel.
    pub fn weight(&self, backend: usize) -> u32 {
        let spread = self.spread.as_ref();
        spread.map_or(1, |spread| spread.weight(backend))
    }

    /// Applies policy `memory`; returns whether the selection changed.
    pub fn reselect(&mut self, workers: &[Worker], now: Instant) -> bool {
        let choice = self.memory.choose(self.selected(), &self.candidates, now);
        let Choice::Switch { to, mut rule } = choice else {
            return false;
        };
        if self.selection == Selection::Spread {
            rule = Rule::PolicyChanged;
        } else if rule == Rule::Failover
            && self.selected().is_some_and(|it| self.is_idle_backup(it))
        {
            rule = Rule::PrimaryUp;
        }
        let to = to.map_or(Selection::Fallback, Selection::Backend);
        self.switch_to(to, rule, workers, now);
        true
    }

    /// Returns the backend that waits for the end of the hold, and the time left.
    pub fn waiting(&self, now: Instant) -> Option<(usize, Duration)> {
        let (backend, until) = self.memory.waiting()?;
        Some((backend, until.saturating_duration_since(now)))
    }

    fn selected(&self) -> Option<usize> {
        match self.selection {
            Selection::Backend(index) => Some(index),
            Selection::Fallback | Selection::Spread => None,
        }
    }

    /// Fixes the automatic threshold once two workers have reported.
    pub fn learn_threshold(&mut self, workers: &[Worker]) -> Option<Event> {
        let total_bytes = |index: usize| workers[self.workers[index]].memory?.total_bytes;
        let is_first = self.reason.rule == Rule::FirstUp;
        let (threshold_bytes, pair) =
            (self.memory).learn_threshold(&self.candidates, total_bytes, is_first)?;
        let [one, other] = pair.map(|index| self.summary(Selection::Backend(index), workers));
        Some(Event::ThresholdLearned {
            service: self.settings.name.clone(),
            threshold_bytes,
            one: one.name,
            one_memory_available_bytes: one.available_bytes,
            other: other.name,
            other_memory_available_bytes: other.available_bytes,
        })
    }

    pub fn threshold_bytes(&self) -> Option<u64> {
        let selected = self.selected().map(|index| self.candidates[index]);
        (self.memory).threshold_bytes(selected.and_then(|it| it.available_bytes))
    }

    /// Returns the update that writes the fallback, if there is one.
    pub fn fallback_update(&self) -> Option<MapUpdate> {
        let fallback = self.settings.fallback.as_ref()?;
        Some(MapUpdate::SetBackend {
            backend: fallback.id,
            state: Health::Up,
            memory: None,
            weight: 1,
        })
    }

    /// Returns the backend that gets all connections; `None` while they are spread.
    pub fn selected_id(&self) -> Option<BackendId> {
        match self.selection {
            Selection::Backend(index) => Some(self.settings.backends[index].id),
            Selection::Fallback => {
                let fallback = self.settings.fallback.as_ref();
                Some(fallback.map_or(BackendId(0), |fallback| fallback.id))
            }
            Selection::Spread => None,
        }
    }

    /// Returns the update and the event of the selection.
    pub fn selection_update(&self) -> (MapUpdate, Event) {
        let service = self.settings.id;
        let backend = self.selected_id();
        let update = match backend {
            Some(backend) => MapUpdate::Select { service, backend },
            None => MapUpdate::Spread { service },
        };
        let event = Event::of_selection(self.settings.name.clone(), backend, &self.reason);
        (update, event)
    }

    fn summary(&self, of: Selection, workers: &[Worker]) -> BackendSummary {
        let index = match of {
            Selection::Fallback => {
                return BackendSummary::without_memory(self.settings.fallback_name());
            }
            Selection::Spread => return BackendSummary::without_memory(ALL_WORKERS),
            Selection::Backend(index) => index,
        };
        let worker = &workers[self.workers[index]];
        BackendSummary {
            name: worker.name.clone(),
            state: self.state(index, worker),
            available_bytes: self.weighted_bytes(index, worker),
        }
    }

    /// Takes over the state of the service with the same id from before a reload.
    pub fn inherit(&mut self, old: Self) {
        self.memory.inherit(&old.memory);
        if let (Some(spread), Some(before)) = (&mut self.spread, &old.spread) {
            let weight = |id| old.index_of(id).map_or(0, |index| before.weight(index));
            let backends = self.settings.backends.iter();
            spread.adopt(backends.map(|it| weight(it.id)).collect());
        }
        let selection = match old.selection {
            Selection::Fallback | Selection::Spread => old.selection,
            Selection::Backend(index) => match self.index_of(old.settings.backends[index].id) {
                Some(index) => Selection::Backend(index),
                None => return,
            },
        };
        self.selection = selection;
        self.reason = old.reason;
        self.since = old.since;
    }
}
