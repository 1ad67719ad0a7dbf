//! From weights to slots: which worker stands where in a service's choices.
//!
//! Slots hold workers by their own slots in the settings. What need not change stays, so that few
//! entries of the map are written.

use std::cmp::Reverse;

use lb_common::maps::CHOICE_SLOTS;

const SLOTS: usize = CHOICE_SLOTS as usize;

/// Neighbouring slots of a fresh table belong to different workers: consecutive numbers are this far
/// apart, and as it is odd, all are met. It is the golden section of the table.
const STRIDE: usize = 2_531;

/// Fills all slots in proportion to the weights, beginning from the slots as they are now.
pub fn proportional(now: &[usize], weights: &[u32]) -> Vec<usize> {
    let mut missing = shares(weights);
    let mut slots = vec![None; SLOTS];
    if now.len() == SLOTS {
        for (slot, &worker) in slots.iter_mut().zip(now) {
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

/// Gives each worker that weighs anything one slot.
pub fn one_each(now: &[usize], weights: &[u32]) -> Vec<usize> {
    let wanted = |worker: usize| weights.get(worker).is_some_and(|weight| *weight > 0);
    let mut placed = vec![false; weights.len()];
    for &worker in now.iter().filter(|worker| **worker < weights.len()) {
        placed[worker] = true;
    }
    let mut new = (0..weights.len()).filter(|worker| wanted(*worker) && !placed[*worker]);
    let mut slots = now.to_vec();
    let mut slot = 0;
    while slot < slots.len() {
        if wanted(slots[slot]) {
            slot += 1;
        } else if let Some(worker) = new.next() {
            slots[slot] = worker;
        } else {
            slots.swap_remove(slot);
        }
    }
    slots.extend(new);
    slots
}

/// An order of turns in which each worker comes as often as it weighs, as evenly as possible; one
/// turn each if all weigh the same.
pub fn turns(now: &[usize], weights: &[u32]) -> Vec<usize> {
    let positive = || weights.iter().copied().filter(|weight| *weight > 0);
    let divisor = positive().fold(0, common_divisor);
    if positive().all(|weight| weight == divisor) {
        // What stood here before may be of another policy, or of other weights.
        let mut seen = vec![false; weights.len()];
        let once = |worker: &usize| {
            seen.get_mut(*worker)
                .is_some_and(|seen| !std::mem::replace(seen, true))
        };
        let now: Vec<usize> = now.iter().copied().filter(once).collect();
        return one_each(&now, weights);
    }
    let exact: Vec<usize> = weights
        .iter()
        .map(|weight| (weight / divisor) as usize)
        .collect();
    let counts = if exact.iter().sum::<usize>() <= SLOTS {
        exact
    } else {
        shares(weights)
    };
    // The turn number k of n stands at (2k + 1) / 2n of the round.
    let mut turns: Vec<(u64, usize)> = Vec::new();
    for (worker, &count) in counts.iter().enumerate() {
        let turn = |k: usize| ((2 * k as u64 + 1) << 32) / (2 * count as u64);
        turns.extend((0..count).map(|k| (turn(k), worker)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, worker)| worker).collect()
}

/// Divides all slots by the weights: whole ones first, the rest by the largest remainders.
fn shares(weights: &[u32]) -> Vec<usize> {
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: &u32| u64::from(*weight) * u64::from(CHOICE_SLOTS);
    let mut counts: Vec<usize> = weights
        .iter()
        .map(|weight| (exact(weight) / sum) as usize)
        .collect();
    let missing = SLOTS - counts.iter().sum::<usize>();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|worker| Reverse(exact(&weights[*worker]) % sum));
    for &worker in &by_remainder[..missing] {
        counts[worker] += 1;
    }
    counts
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
