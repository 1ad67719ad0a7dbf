//! Policy `round_robin`: one worker after the other, in proportion to the weights.

use super::slots::{SLOTS, one_each, slot_counts};
use super::{SlotKind, SpreadPolicy};

#[derive(Debug)]
pub struct RoundRobin;

impl SpreadPolicy for RoundRobin {
    fn slot_kind(&self) -> SlotKind {
        SlotKind::RoundRobin
    }

    fn assign(&mut self, current: &[usize], weights: &[u32]) -> Vec<usize> {
        turns(current, weights)
    }
}

/// Returns an order of turns with each worker in proportion to its weight, as evenly as possible. With equal weights,
/// each has one turn.
fn turns(current: &[usize], weights: &[u32]) -> Vec<usize> {
    let positive = || weights.iter().copied().filter(|weight| *weight > 0);
    let divisor = positive().fold(0, common_divisor);
    if positive().all(|weight| weight == divisor) {
        // The current slots may be those of another policy or of other weights.
        let mut seen = vec![false; weights.len()];
        let once = |worker: &usize| {
            seen.get_mut(*worker)
                .is_some_and(|seen| !std::mem::replace(seen, true))
        };
        let current: Vec<usize> = current.iter().copied().filter(once).collect();
        return one_each(&current, weights);
    }
    let exact: Vec<usize> = weights
        .iter()
        .map(|weight| (weight / divisor) as usize)
        .collect();
    let counts = if exact.iter().sum::<usize>() <= SLOTS {
        exact
    } else {
        slot_counts(weights)
    };
    // Turn k of n is at (2k + 1) / 2n of the round.
    let mut turns: Vec<(u64, usize)> = Vec::new();
    for (worker, &count) in counts.iter().enumerate() {
        let turn = |k: usize| ((2 * k as u64 + 1) << 32) / (2 * count as u64);
        turns.extend((0..count).map(|k| (turn(k), worker)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, worker)| worker).collect()
}

fn common_divisor(one: u32, other: u32) -> u32 {
    if other == 0 {
        one
    } else {
        common_divisor(other, one % other)
    }
}

#[cfg(test)]
mod tests;
