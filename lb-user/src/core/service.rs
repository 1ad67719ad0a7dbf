//! One service: its backends, what is selected and why.

use std::time::Instant;

use super::command::Command;
use super::event::Event;
use super::health::Health;
use super::memory::Memory;
use super::order::Overlay;
use super::reason::{Figure, Reason};
use super::selection::{self, Candidate, Decision, Rule};
use super::settings::{BackendId, MANAGER, ServiceSettings, Threshold};
use super::worker::Worker;

#[derive(Debug)]
pub(super) struct Service {
    pub settings: ServiceSettings,
    /// The place of each backend's worker, in the settings' order.
    pub workers: Vec<usize>,
    /// The place of the selected backend; nothing for the fallback.
    pub selected: Option<usize>,
    pub reason: Reason,
    pub since: Instant,
    pub learned_threshold_bytes: Option<u64>,
    /// The workers were just seen side by side for the first time, and whoever was heard first is
    /// selected by mere luck: now the best is taken, whatever the threshold.
    first_comparison: bool,
    /// What was last said of each backend, so that nothing is said twice.
    described: Vec<Option<(Health, Option<Memory>)>>,
    /// What the policy compares, side by side: it is gone through at every heartbeat.
    candidates: Vec<Candidate>,
    /// What the operator has ordered of each backend.
    pub overlays: Vec<Overlay>,
}

impl Service {
    pub fn new(settings: ServiceSettings, workers: Vec<usize>, now: Instant) -> Self {
        Self {
            described: vec![None; workers.len()],
            candidates: vec![Candidate::UNKNOWN; workers.len()],
            overlays: vec![Overlay::default(); workers.len()],
            workers,
            selected: None,
            reason: Reason {
                rule: Rule::NothingHeard,
                to: manager(),
                from: None,
                threshold_bytes: None,
            },
            since: now,
            learned_threshold_bytes: None,
            first_comparison: false,
            settings,
        }
    }

    /// Keeps a selection found in the pinned maps, if it names a worker of this service.
    pub fn adopt(&mut self, backend: BackendId, workers: &[Worker]) {
        let place = self.settings.backends.iter().position(|b| b.id == backend);
        if let Some(place) = place {
            self.selected = Some(place);
            self.reason = Reason {
                rule: Rule::Adopted,
                to: self.figure(Some(place), workers),
                from: None,
                threshold_bytes: None,
            };
        }
    }

    /// Returns how a backend is treated: by its worker's health and what the operator ordered.
    pub fn state(&self, backend: usize, worker: &Worker) -> Health {
        worker.health.under(self.overlays[backend].held())
    }

    /// Whether what is selected may be: a worker that is up, or the fallback.
    pub fn selected_is_up(&self) -> bool {
        self.selected
            .is_none_or(|place| self.candidates[place].health.is_up())
    }

    /// Takes over what is known of a backend's worker now.
    pub fn update(&mut self, backend: usize, worker: &Worker) {
        self.candidates[backend] = Candidate {
            health: self.state(backend, worker),
            available_bytes: worker.available_bytes(),
        };
    }

    /// Returns the command that describes a backend, if it would say anything new.
    pub fn describe(&mut self, backend: usize, worker: &Worker) -> Option<Command> {
        let description = (self.state(backend, worker), worker.memory);
        if self.described[backend].replace(description) == Some(description) {
            return None;
        }
        Some(Command::SetBackend {
            backend: self.settings.backends[backend].id,
            state: description.0,
            memory: worker.memory,
        })
    }

    /// Applies the policy to what is known now; returns whether the selection changed.
    pub fn reselect(&mut self, workers: &[Worker], now: Instant) -> bool {
        let first = std::mem::take(&mut self.first_comparison);
        let threshold_bytes = self.threshold_bytes();
        let in_force = if first { Some(0) } else { threshold_bytes };
        let decision = selection::decide(self.selected, &self.candidates, in_force);
        let Decision::Switch { to, mut rule } = decision else {
            return false;
        };
        if first && rule == Rule::MoreMemory {
            rule = Rule::FirstComparison;
        }
        self.reason = Reason {
            rule,
            to: self.figure(to, workers),
            from: Some(self.figure(self.selected, workers)),
            threshold_bytes,
        };
        self.selected = to;
        self.since = now;
        true
    }

    /// Fixes the automatic threshold as soon as two workers are heard.
    pub fn learn_threshold(&mut self, workers: &[Worker]) -> Option<Event> {
        if self.settings.threshold != Threshold::Auto || self.learned_threshold_bytes.is_some() {
            return None;
        }
        let (bytes, pair) = selection::learn_threshold(&self.candidates)?;
        self.learned_threshold_bytes = Some(bytes);
        self.first_comparison = self.reason.rule == Rule::FirstUp;
        let [one, other] = pair.map(|place| self.figure(Some(place), workers));
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
        let selected = self.selected.map(|place| self.candidates[place]);
        selection::threshold_bytes(
            self.settings.threshold,
            self.learned_threshold_bytes,
            selected.and_then(|candidate| candidate.available_bytes),
        )
    }

    pub fn selection(&self) -> (Command, Event) {
        let backend = self.selected_id();
        let command = Command::Select {
            service: self.settings.id,
            backend,
        };
        let event = Event::of_selection(self.settings.name.clone(), backend, &self.reason);
        (command, event)
    }

    pub fn selected_id(&self) -> BackendId {
        match self.selected {
            Some(place) => self.settings.backends[place].id,
            None => self.settings.fallback.id,
        }
    }

    fn figure(&self, place: Option<usize>, workers: &[Worker]) -> Figure {
        let Some(place) = place else {
            return manager();
        };
        let worker = &workers[self.workers[place]];
        Figure {
            name: worker.name.clone(),
            state: self.state(place, worker),
            available_bytes: worker.available_bytes(),
        }
    }
}

fn manager() -> Figure {
    Figure {
        name: MANAGER.to_owned(),
        state: Health::Up,
        available_bytes: None,
    }
}
