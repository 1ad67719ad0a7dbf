//! Policy `balanced`: of two workers drawn by their headroom, the one with fewer connections.

use std::time::Duration;

use super::slots::{SLOTS, slot_counts};
use super::weights::{MAX_WEIGHT, UNIT_BYTES, WeightInput, cap, headroom, scale_and_cap};
use super::{MaxShare, SlotKind, SpreadPolicy, SpreadSettings};

/// At each rebalance, a weight changes by one part of this many of the difference to its target.
const SMOOTHING: u64 = 4;

/// The step from one filled slot to the next, so that neighbouring slots belong to different workers: the golden
/// section of the table. It is odd, so that all slots are reached.
const STRIDE: usize = 2_531;

#[derive(Debug)]
pub struct Balanced {
    /// Smoothed headroom of each worker, in bytes; `None` if it is not up or has sent no heartbeat.
    headroom: Vec<Option<u64>>,
}

impl Balanced {
    pub fn new(workers: usize) -> Self {
        Self {
            headroom: vec![None; workers],
        }
    }
}

impl SpreadPolicy for Balanced {
    fn slot_kind(&self) -> SlotKind {
        SlotKind::Balanced
    }

    fn depends_on_memory(&self) -> bool {
        true
    }

    /// Weighs the workers by their headroom; `None` if none has sent a heartbeat.
    ///
    /// An older report counts less: at the age of `down_after`, the mean of all workers replaces it. A worker without
    /// headroom gets weight 0 at once. If none has headroom, all weights are equal.
    fn weigh(
        &mut self,
        inputs: &[Option<WeightInput>],
        settings: &SpreadSettings,
        down_after: Duration,
    ) -> Option<Vec<u32>> {
        let fresh: Vec<Option<u64>> = inputs
            .iter()
            .map(|input| input.and_then(|input| headroom(&input, settings)))
            .collect();
        let known = fresh.iter().flatten().count() as u64;
        if known == 0 {
            return None;
        }
        let mean = fresh.iter().flatten().sum::<u64>() / known;
        let mut units = vec![0; inputs.len()];
        for (worker, input) in inputs.iter().enumerate() {
            let smoothed = &mut self.headroom[worker];
            let Some(input) = input else {
                *smoothed = None;
                continue;
            };
            let target = match fresh[worker] {
                Some(0) => 0,
                Some(fresh) => aged(fresh, mean, input.age, down_after),
                None => mean,
            };
            let headroom = match *smoothed {
                Some(before) if before != 0 && target != 0 => approach(before, target),
                _ => target,
            };
            *smoothed = fresh[worker].map(|_| headroom);
            units[worker] = headroom.div_ceil(UNIT_BYTES).min(MAX_WEIGHT);
        }
        if settings.max_share == MaxShare::Auto {
            // The cap applies to the reported headroom, not to the manual weight.
            let some = units.iter().filter(|units| **units > 0).count() as u64;
            cap(&mut units, 6, some + 5);
        }
        Some(scale_and_cap(units, inputs, settings.max_share))
    }

    fn assign(&mut self, current: &[usize], weights: &[u32]) -> Vec<usize> {
        proportional(current, weights)
    }

    fn has_no_headroom(&self, worker: usize) -> bool {
        self.headroom[worker] == Some(0)
    }
}

/// Returns `fresh`, moved towards `mean` by the part of `down_after` that has passed.
fn aged(fresh: u64, mean: u64, age: Duration, down_after: Duration) -> u64 {
    let whole = down_after.as_micros().max(1);
    let old = age.as_micros().min(whole);
    let mixed = u128::from(fresh) * (whole - old) + u128::from(mean) * old;
    u64::try_from(mixed / whole).unwrap_or(u64::MAX)
}

fn approach(before: u64, target: u64) -> u64 {
    if target >= before {
        before + (target - before).div_ceil(SMOOTHING)
    } else {
        before - (before - target).div_ceil(SMOOTHING)
    }
}

/// Fills all slots in proportion to the weights.
fn proportional(current: &[usize], weights: &[u32]) -> Vec<usize> {
    let mut missing = slot_counts(weights);
    let mut slots = vec![None; SLOTS];
    if current.len() == SLOTS {
        for (slot, &worker) in slots.iter_mut().zip(current) {
            if let Some(count) = missing.get_mut(worker).filter(|count| **count > 0) {
                *count -= 1;
                *slot = Some(worker);
            }
        }
    }
    let mut workers = missing
        .into_iter()
        .enumerate()
        .flat_map(|(worker, count)| std::iter::repeat_n(worker, count));
    for number in 0..SLOTS {
        let slot = &mut slots[number * STRIDE % SLOTS];
        if slot.is_none() {
            *slot = workers.next();
        }
    }
    slots.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
