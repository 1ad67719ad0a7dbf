//! The policies that spread connections: their trait, the weights and slots in force, and when the weights are computed
//! again.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::settings::SpreadSettings;
use super::weights::{WeightInput, shares_differ, weigh_equally};
use super::{Policy, SlotKind};

/// A policy that spreads connections over all workers that are up.
pub trait SpreadPolicy: fmt::Debug {
    /// How the kernel picks a slot.
    fn slot_kind(&self) -> SlotKind;

    /// Assigns the workers to slots by their weights, of which one at least is not 0. Slots of the `current` assignment
    /// that need not change keep their worker.
    fn assign(&mut self, current: &[usize], weights: &[u32]) -> Vec<usize>;

    /// Whether weights depend on memory, so that they change with reports and their age.
    fn depends_on_memory(&self) -> bool {
        false
    }

    /// Returns the weights of the workers; `None` keeps the weights in force of the workers that are up. `inputs` has
    /// `None` for a worker that is not up, whose weight is 0.
    fn weigh(
        &mut self,
        inputs: &[Option<WeightInput>],
        settings: &SpreadSettings,
        _down_after: Duration,
    ) -> Option<Vec<u32>> {
        Some(weigh_equally(inputs, settings.max_share))
    }

    /// Whether a worker had no memory to spare when it was last weighed.
    fn has_no_headroom(&self, _worker: usize) -> bool {
        false
    }
}

/// How one service's connections are spread.
#[derive(Debug)]
pub struct Spread {
    policy: Box<dyn SpreadPolicy>,
    settings: SpreadSettings,
    /// The weights in force; 0 for a worker that gets no connection.
    weights: Vec<u32>,
    /// The worker of each slot, as in force.
    slots: Vec<usize>,
    /// When the weights are computed again.
    due: Option<Instant>,
}

/// What [`Spread::rebalance`] changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub weights: bool,
    pub slots: bool,
}

impl Spread {
    /// Returns `None` for a policy that does not spread connections.
    pub fn new(policy: Policy, settings: SpreadSettings, workers: &[SocketAddr]) -> Option<Self> {
        Some(Self {
            policy: policy.spread(workers)?,
            settings,
            weights: vec![0; workers.len()],
            slots: Vec::new(),
            due: None,
        })
    }

    /// Takes over the weights that were in force before a restart or a reload.
    pub fn adopt(&mut self, weights: Vec<u32>) {
        self.weights = weights;
    }

    pub fn slot_kind(&self) -> SlotKind {
        self.policy.slot_kind()
    }

    pub fn slots(&self) -> &[usize] {
        &self.slots
    }

    pub fn weight(&self, worker: usize) -> u32 {
        self.weights[worker]
    }

    /// Returns a worker's share of all new connections, in hundredths of a percent.
    pub fn share(&self, worker: usize) -> u16 {
        let sum: u64 = self.weights.iter().map(|weight| u64::from(*weight)).sum();
        let part = u64::from(self.weights[worker]) * 10_000 + sum / 2;
        u16::try_from(part.checked_div(sum).unwrap_or(0)).unwrap_or(10_000)
    }

    /// Whether no worker that is up has memory to spare.
    pub fn is_hot(&self, inputs: &[Option<WeightInput>]) -> bool {
        let mut up = (0..inputs.len()).filter(|worker| inputs[*worker].is_some());
        self.depends_on_memory() && up.all(|worker| self.policy.has_no_headroom(worker))
    }

    pub fn depends_on_memory(&self) -> bool {
        self.policy.depends_on_memory()
    }

    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Makes [`Self::due`] return `at` or an earlier instant.
    pub fn schedule(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    pub fn unschedule(&mut self) {
        self.due = None;
    }

    /// Computes weights and slots. Unless `at_once`, weights that have hardly changed stay in force.
    pub fn rebalance(
        &mut self,
        inputs: &[Option<WeightInput>],
        down_after: Duration,
        at_once: bool,
    ) -> Changes {
        let weights = self.weigh(inputs, down_after);
        let came_or_went = |(before, after): (&u32, &u32)| (*before == 0) != (*after == 0);
        let changed = at_once
            || self.slots.is_empty()
            || self.weights.iter().zip(&weights).any(came_or_went)
            || shares_differ(&self.weights, &weights);
        if !changed || (weights == self.weights && !self.slots.is_empty()) {
            return Changes::default();
        }
        let slots = self.policy.assign(&self.slots, &weights);
        let changes = Changes {
            weights: weights != self.weights,
            slots: slots != self.slots,
        };
        self.weights = weights;
        self.slots = slots;
        changes
    }

    fn weigh(&mut self, inputs: &[Option<WeightInput>], down_after: Duration) -> Vec<u32> {
        if let Some(weights) = self.policy.weigh(inputs, &self.settings, down_after) {
            return weights;
        }
        let kept: Vec<u32> = inputs
            .iter()
            .zip(&self.weights)
            .map(|(input, weight)| input.map_or(0, |_| *weight))
            .collect();
        match kept.iter().any(|weight| *weight > 0) {
            true => kept,
            false => weigh_equally(inputs, self.settings.max_share),
        }
    }
}
