//! Policies that spread connections: what each worker of a service weighs, and which slots it takes.
//!
//! The kernel chooses among the slots at each connection, see `lb_common::maps::policy`. Workers are
//! named here by their slots in the service's settings.

mod memory_per_connection;
mod rendezvous;
mod slots;
mod weights;

use std::time::{Duration, Instant};

pub use memory_per_connection::MemoryPerConnection;
pub use weights::{WeightInput, is_hot};

use super::settings::{ServiceSettings, SlotKind, SpreadSettings};
use rendezvous::Rendezvous;
use weights::Headrooms;

/// How a service's connections are spread.
#[derive(Debug)]
pub struct Spread {
    kind: SlotKind,
    settings: SpreadSettings,
    headrooms: Headrooms,
    rendezvous: Rendezvous,
    /// In force; 0 for a worker that takes nothing.
    weights: Vec<u32>,
    /// In force: the workers at the service's slots.
    slots: Vec<usize>,
    /// When to look at the weights again.
    due: Option<Instant>,
}

/// What is to be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub weights: bool,
    pub slots: bool,
}

impl Spread {
    pub fn new(kind: SlotKind, settings: &ServiceSettings) -> Self {
        let workers = settings.backends.len();
        Self {
            kind,
            settings: settings.spread,
            headrooms: Headrooms::new(workers),
            rendezvous: Rendezvous::new(settings.backends.iter().map(|backend| backend.address)),
            weights: vec![0; workers],
            slots: Vec::new(),
            due: None,
        }
    }

    /// Begins with the weights that were in force before a restart.
    pub fn adopt(&mut self, weights: Vec<u32>) {
        self.weights = weights;
    }

    pub fn kind(&self) -> SlotKind {
        self.kind
    }

    pub fn slots(&self) -> &[usize] {
        &self.slots
    }

    pub fn weight(&self, worker: usize) -> u32 {
        self.weights[worker]
    }

    /// Returns a worker's part of all new connections, in hundredths of a percent.
    pub fn share(&self, worker: usize) -> u16 {
        let sum: u64 = self.weights.iter().map(|weight| u64::from(*weight)).sum();
        let part = u64::from(self.weights[worker]) * 10_000 + sum / 2;
        u16::try_from(part.checked_div(sum).unwrap_or(0)).unwrap_or(10_000)
    }

    /// Whether all of the workers that are up lack memory.
    pub fn is_hot(&self, inputs: &[Option<WeightInput>]) -> bool {
        let mut up = (0..inputs.len()).filter(|worker| inputs[*worker].is_some());
        self.follows_memory() && up.all(|worker| self.headrooms.is_hot(worker))
    }

    /// Whether weights change by themselves, as reports come and age.
    pub fn follows_memory(&self) -> bool {
        self.kind == SlotKind::Balanced
    }

    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Asks to be looked at by then.
    pub fn look_by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Has nothing to do until it is asked again.
    pub fn rest(&mut self) {
        self.due = None;
    }

    /// Weighs the workers anew; nothing stands for one that is not up. Unless `at_once` is asked for,
    /// weights that have hardly moved stay as they are.
    pub fn rebalance(
        &mut self,
        inputs: &[Option<WeightInput>],
        down_after: Duration,
        at_once: bool,
    ) -> Changes {
        let weights = self.weigh(inputs, down_after);
        let joined_or_lost = |(before, after): (&u32, &u32)| (*before == 0) != (*after == 0);
        let changed = at_once
            || self.slots.is_empty()
            || self.weights.iter().zip(&weights).any(joined_or_lost)
            || weights::moved(&self.weights, &weights);
        if !changed || (weights == self.weights && !self.slots.is_empty()) {
            return Changes::default();
        }
        let slots = match self.kind {
            SlotKind::Balanced => slots::proportional(&self.slots, &weights),
            SlotKind::RoundRobin => slots::turns(&self.slots, &weights),
            SlotKind::LeastConnections | SlotKind::Ranked => slots::one_each(&self.slots, &weights),
            SlotKind::SourceHash => self.rendezvous.assign(&weights),
        };
        let changes = Changes {
            weights: weights != self.weights,
            slots: slots != self.slots,
        };
        self.weights = weights;
        self.slots = slots;
        changes
    }

    fn weigh(&mut self, inputs: &[Option<WeightInput>], down_after: Duration) -> Vec<u32> {
        if self.follows_memory() {
            if let Some(weights) = self.headrooms.weigh(inputs, &self.settings, down_after) {
                return weights;
            }
            // Nobody was heard since the restart: what was in force stays, as far as it goes.
            let kept: Vec<u32> = inputs
                .iter()
                .zip(&self.weights)
                .map(|(input, weight)| input.map_or(0, |_| *weight))
                .collect();
            if kept.iter().any(|weight| *weight > 0) {
                return kept;
            }
        }
        weights::weigh_equally(inputs, self.settings.max_share)
    }
}
