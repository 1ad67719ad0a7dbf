//! From what workers report to what they weigh against each other. Integers only, so that the same
//! reports give the same weights everywhere.

use std::cmp::Reverse;
use std::time::Duration;

use super::super::memory::{Memory, Pressure};
use super::super::settings::{MaxShare, SpreadSettings};

/// What one unit of weight stands for, where weights stand for memory.
pub const UNIT_BYTES: u64 = 64 << 10;

/// The most that a worker can weigh, 1 TiB: whatever it claims, sums stay far from overflowing.
const MAX_WEIGHT: u64 = 1 << 24;

/// How much of a new figure is taken at each rebalancing: one part of so many.
const SMOOTHING: u64 = 4;

/// A weight is worth writing when a worker's share moves by more than one part of so many.
const STEP: u64 = 32;

/// A worker that is up, as it is weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightInput {
    /// Nothing while the worker was not heard.
    pub memory: Option<Memory>,
    pub pressure: Option<Pressure>,
    /// How old the report is.
    pub age: Duration,
    /// What the connections opened since the report will take; less than 0 if more were closed.
    pub drift_bytes: i64,
    /// How far a worker is that came back: 25, 50, 75 or 100.
    pub ramp_percent: u32,
    /// What the operator lets it take.
    pub manual_percent: u32,
}

/// The workers' memory, smoothed over time. Workers are named by their workers, as everywhere.
#[derive(Debug)]
pub struct Headrooms {
    /// In bytes; nothing of a worker that is not up or was not heard.
    smoothed: Vec<Option<u64>>,
}

impl Headrooms {
    pub fn new(workers: usize) -> Self {
        Self {
            smoothed: vec![None; workers],
        }
    }

    /// Weighs the workers that are up by the memory they can spare; nothing if none was heard yet.
    ///
    /// A report counts the less, the older it is: at the age of `down_after` its worker counts as
    /// the average of all. A worker without memory to spare takes nothing, at once. Where nobody has
    /// any, all count the same, because somebody must serve.
    pub fn weigh(
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
        for (index, input) in inputs.iter().enumerate() {
            let smoothed = &mut self.smoothed[index];
            let Some(input) = input else {
                *smoothed = None;
                continue;
            };
            let target = match fresh[index] {
                Some(0) => 0,
                Some(fresh) => towards(fresh, mean, input.age, down_after),
                None => mean,
            };
            let headroom = match *smoothed {
                Some(before) if before != 0 && target != 0 => approach(before, target),
                _ => target,
            };
            *smoothed = fresh[index].map(|_| headroom);
            units[index] = headroom.div_ceil(UNIT_BYTES).min(MAX_WEIGHT);
        }
        if settings.max_share == MaxShare::Auto {
            // What workers claim is capped, not what the operator says.
            let some = units.iter().filter(|units| **units > 0).count() as u64;
            cap(&mut units, 6, some + 5);
        }
        Some(finish(units, inputs, settings.max_share))
    }

    /// Whether a worker that is up has no memory to spare.
    pub fn is_hot(&self, index: usize) -> bool {
        self.smoothed[index] == Some(0)
    }
}

/// Weighs workers by what the operator says alone: 100 each, unless told otherwise.
pub fn weigh_equally(inputs: &[Option<WeightInput>], max_share: MaxShare) -> Vec<u32> {
    finish(vec![1; inputs.len()], inputs, max_share)
}

/// Whether a worker that reports this has no memory to spare.
pub fn is_hot(memory: Memory, pressure: Option<Pressure>, settings: &SpreadSettings) -> bool {
    let input = WeightInput {
        memory: Some(memory),
        pressure,
        age: Duration::ZERO,
        drift_bytes: 0,
        ramp_percent: 100,
        manual_percent: 100,
    };
    headroom(&input, settings) == Some(0)
}

/// Whether weights differ enough to be written.
pub fn moved(before: &[u32], after: &[u32]) -> bool {
    let sum = |weights: &[u32]| weights.iter().map(|weight| u64::from(*weight)).sum::<u64>();
    let (sum_before, sum_after) = (sum(before), sum(after));
    before.iter().zip(after).any(|(before, after)| {
        let (before, after) = (u128::from(*before), u128::from(*after));
        let (old, new) = (
            before * u128::from(sum_after),
            after * u128::from(sum_before),
        );
        old.abs_diff(new) * u128::from(STEP) > old
    })
}

/// What a worker can spare above its reserve, the less the more its tasks wait for memory.
fn headroom(input: &WeightInput, settings: &SpreadSettings) -> Option<u64> {
    let memory = input.memory?;
    // Absurd claims must not overflow sums.
    let most = MAX_WEIGHT * UNIT_BYTES;
    let available = memory.available_bytes.min(most);
    let total = memory.total_bytes.unwrap_or(0).min(most);
    let drift = input.drift_bytes.unsigned_abs();
    let expected = if input.drift_bytes > 0 {
        available.saturating_sub(drift)
    } else {
        available.saturating_add(drift).min(total.max(available))
    };
    let reserve = total / 100 * u64::from(settings.reserve_percent);
    let spare = expected.saturating_sub(reserve);
    let limit = u64::from(settings.pressure_limit.0);
    let pressure = u64::from(input.pressure.map_or(0, |pressure| pressure.0));
    let eased = u128::from(spare) * u128::from(limit.saturating_sub(pressure));
    u64::try_from(eased / u128::from(limit.max(1))).ok()
}

/// `fresh`, moved to `mean` by the age's part of `down_after`.
fn towards(fresh: u64, mean: u64, age: Duration, down_after: Duration) -> u64 {
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

/// Ramp and the operator's word together, in percent; not 0 unless the operator says so.
fn overlay(input: &WeightInput) -> u64 {
    (u64::from(input.ramp_percent) * u64::from(input.manual_percent)).div_ceil(100)
}

/// Lays ramp and the operator's word over the weights; somebody takes something in the end.
fn finish(units: Vec<u64>, inputs: &[Option<WeightInput>], max_share: MaxShare) -> Vec<u32> {
    let overlays = |units: &[u64]| -> Vec<u64> {
        let up = units.iter().zip(inputs);
        up.map(|(units, input)| input.as_ref().map_or(0, |up| units * overlay(up)))
            .collect()
    };
    let nothing = |weights: &[u64]| weights.iter().all(|weight| *weight == 0);
    let mut weights = overlays(&units);
    if nothing(&weights) {
        weights = overlays(&vec![1; units.len()]);
    }
    if nothing(&weights) {
        let up = inputs.iter();
        weights = up.map(|input| u64::from(input.is_some())).collect();
    }
    if let MaxShare::Percent(percent) = max_share {
        let workers = weights.iter().filter(|weight| **weight > 0).count() as u64;
        if u64::from(percent) * workers > 100 {
            cap(&mut weights, percent.into(), 100);
        } else {
            // Less than an equal share for each is impossible.
            cap(&mut weights, 1, workers.max(1));
        }
    }
    // More than the word holds is only where a terabyte is weighed up by the operator.
    let narrow = |weight| u32::try_from(weight).unwrap_or(u32::MAX);
    weights.into_iter().map(narrow).collect()
}

/// Cuts the heaviest back until none has more than `part` of `whole` of what then is the sum.
fn cap(weights: &mut [u64], part: u64, whole: u64) {
    let mut heaviest: Vec<usize> = (0..weights.len()).filter(|i| weights[*i] > 0).collect();
    heaviest.sort_by_key(|index| Reverse(weights[*index]));
    let mut rest: u64 = weights.iter().sum();
    let mut left = whole;
    let mut cut = 0;
    for &index in &heaviest {
        // Is it more than its share, were those before it cut to exactly theirs?
        if weights[index] * left <= part * rest {
            break;
        }
        rest -= weights[index];
        left -= part;
        cut += 1;
    }
    for &index in &heaviest[..cut] {
        weights[index] = (part * rest / left).max(1);
    }
}

#[cfg(test)]
mod tests;
