//! Slots: how the kernel uses them, and helpers with which several policies assign workers.

use std::cmp::Reverse;

use lb_common::maps::{CHOICE_SLOTS, policy as kernel};

pub const SLOTS: usize = CHOICE_SLOTS as usize;

/// How the kernel uses a service's slots. The number is the one in map `policies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotKind {
    Balanced = kernel::BALANCED,
    RoundRobin = kernel::ROUND_ROBIN,
    LeastConnections = kernel::LEAST_CONNECTIONS,
    SourceHash = kernel::SOURCE_HASH,
    /// Tries one slot after the other for a client whose SYN the selected worker does not answer.
    Ranked = kernel::RANKED,
}

/// Gives each worker with a weight one slot.
pub fn one_each(current: &[usize], weights: &[u32]) -> Vec<usize> {
    let wanted = |worker: usize| weights.get(worker).is_some_and(|weight| *weight > 0);
    let mut placed = vec![false; weights.len()];
    for &worker in current.iter().filter(|worker| **worker < weights.len()) {
        placed[worker] = true;
    }
    let mut new = (0..weights.len()).filter(|worker| wanted(*worker) && !placed[*worker]);
    let mut slots = current.to_vec();
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

/// Returns the number of slots of each worker in proportion to its weight (the method of largest remainders).
pub fn slot_counts(weights: &[u32]) -> Vec<usize> {
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

#[cfg(test)]
pub mod tests;
