//! Weights: helpers with which several policies weigh workers. Integers only, so that the same reports give the same
//! weights on every machine.

use std::cmp::Reverse;
use std::time::Duration;

use super::settings::{MaxShare, SpreadSettings};
use crate::memory::{Memory, Pressure};

/// The bytes of one unit of weight, where weights stand for memory.
pub const UNIT_BYTES: u64 = 64 << 10;

/// The largest weight, 1 TiB, so that sums cannot overflow.
pub const MAX_WEIGHT: u64 = 1 << 24;

/// New weights are written when a worker's share changes by more than one part of this many.
const STEP: u64 = 32;

/// The figures from which the weight of a worker that is up is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightInput {
    /// `None` before the first heartbeat.
    pub memory: Option<Memory>,
    pub pressure: Option<Pressure>,
    /// Age of the report.
    pub age: Duration,
    /// The memory that connections opened since the report will use; negative if more were closed.
    pub drift_bytes: i64,
    /// Part of its share that a worker that came back gets: 25, 50, 75 or 100.
    pub ramp_percent: u32,
    /// The weight of configuration and operator.
    pub manual_percent: u32,
}

/// Weighs workers by ramp and manual weight only.
pub fn weigh_equally(inputs: &[Option<WeightInput>], max_share: MaxShare) -> Vec<u32> {
    scale_and_cap(vec![1; inputs.len()], inputs, max_share)
}

/// Whether a worker with this report has no memory to spare.
pub fn has_no_headroom(
    memory: Memory,
    pressure: Option<Pressure>,
    settings: &SpreadSettings,
) -> bool {
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

/// Whether shares differ enough to be written.
pub fn shares_differ(before: &[u32], after: &[u32]) -> bool {
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

/// Returns the memory above the reserve, reduced by memory pressure.
pub fn headroom(input: &WeightInput, settings: &SpreadSettings) -> Option<u64> {
    let memory = input.memory?;
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

/// Multiplies weights by ramp and manual weight, and applies `max_share`. One worker at least gets a weight.
pub fn scale_and_cap(
    units: Vec<u64>,
    inputs: &[Option<WeightInput>],
    max_share: MaxShare,
) -> Vec<u32> {
    let scaled = |units: &[u64]| -> Vec<u64> {
        let workers = units.iter().zip(inputs);
        workers
            .map(|(units, input)| input.as_ref().map_or(0, |up| units * percent(up)))
            .collect()
    };
    let all_zero = |weights: &[u64]| weights.iter().all(|weight| *weight == 0);
    let mut weights = scaled(&units);
    if all_zero(&weights) {
        weights = scaled(&vec![1; units.len()]);
    }
    if all_zero(&weights) {
        weights = inputs.iter().map(|it| u64::from(it.is_some())).collect();
    }
    if let MaxShare::Percent(percent) = max_share {
        let workers = weights.iter().filter(|weight| **weight > 0).count() as u64;
        if u64::from(percent) * workers > 100 {
            cap(&mut weights, percent.into(), 100);
        } else {
            // No cap below an equal share is possible.
            cap(&mut weights, 1, workers.max(1));
        }
    }
    // Only a manual weight above 100% on a terabyte exceeds 32 bits.
    let saturating = |weight| u32::try_from(weight).unwrap_or(u32::MAX);
    weights.into_iter().map(saturating).collect()
}

/// Returns the product of ramp and manual weight, in percent; 0 only if the manual weight is 0.
fn percent(input: &WeightInput) -> u64 {
    (u64::from(input.ramp_percent) * u64::from(input.manual_percent)).div_ceil(100)
}

/// Reduces the largest weights until none is more than `part` of `whole` of their sum.
pub fn cap(weights: &mut [u64], part: u64, whole: u64) {
    let mut heaviest: Vec<usize> = (0..weights.len()).filter(|i| weights[*i] > 0).collect();
    heaviest.sort_by_key(|worker| Reverse(weights[*worker]));
    let mut rest: u64 = weights.iter().sum();
    let mut left = whole;
    let mut cut = 0;
    for &worker in &heaviest {
        // Whether it is above its share after the heavier ones were reduced to exactly theirs.
        if weights[worker] * left <= part * rest {
            break;
        }
        rest -= weights[worker];
        left -= part;
        cut += 1;
    }
    for &worker in &heaviest[..cut] {
        weights[worker] = (part * rest / left).max(1);
    }
}
