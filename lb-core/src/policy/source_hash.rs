//! Policy `source_hash`: the same worker for the same client address, by weighted rendezvous hashing:
//! each slot goes to the worker with the best score there.
//!
//! A worker's score in a slot does not depend on the others. So a worker that leaves gives up only its own slots, and
//! a worker that comes, or whose weight rises, only gains slots: no other client changes its worker.
//! (Wang and Ravishankar 1998; weighted after Schindelhauer and Schomaker 2005.)

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};

use super::slots::SLOTS;
use super::{SlotKind, SpreadPolicy};

/// The winner of each slot.
#[derive(Debug)]
pub struct SourceHash {
    /// The hash of each worker's address, so that every manager finds the same winners.
    keys: Vec<u64>,
    weights: Vec<u32>,
    winners: Vec<Option<Score>>,
}

/// A worker's score in a slot.
#[derive(Debug, Clone, Copy)]
struct Score {
    worker: usize,
    weight: u32,
    number: u64,
    /// −log₂ of the number. The smallest quotient of distance and weight wins.
    distance: u64,
}

impl SpreadPolicy for SourceHash {
    fn slot_kind(&self) -> SlotKind {
        SlotKind::SourceHash
    }

    fn assign(&mut self, _current: &[usize], weights: &[u32]) -> Vec<usize> {
        self.winners(weights)
    }
}

impl SourceHash {
    pub fn new(workers: &[SocketAddr]) -> Self {
        let keys: Vec<u64> = workers.iter().copied().map(hash).collect();
        Self {
            weights: vec![0; keys.len()],
            keys,
            winners: vec![None; SLOTS],
        }
    }

    /// Returns the winner of each slot under these weights.
    fn winners(&mut self, weights: &[u32]) -> Vec<usize> {
        let before = std::mem::replace(&mut self.weights, weights.to_vec());
        let lighter: Vec<bool> = before.iter().zip(weights).map(|(b, a)| a < b).collect();
        let heavier: Vec<usize> = (0..weights.len())
            .filter(|worker| weights[*worker] > before[*worker])
            .collect();
        for slot in 0..self.winners.len() {
            let winner = self.winners[slot];
            self.winners[slot] = match winner {
                // It may have lost to any worker.
                Some(winner) if lighter[winner.worker] => self.best(slot, None, 0..weights.len()),
                Some(winner) => {
                    let winner = Score {
                        weight: weights[winner.worker],
                        ..winner
                    };
                    self.best(slot, Some(winner), heavier.iter().copied())
                }
                None => self.best(slot, None, heavier.iter().copied()),
            };
        }
        let winners = self.winners.iter().flatten();
        winners.map(|winner| winner.worker).collect()
    }

    fn best(
        &self,
        slot: usize,
        first: Option<Score>,
        challengers: impl Iterator<Item = usize>,
    ) -> Option<Score> {
        let mut best = first;
        for worker in challengers.filter(|worker| self.weights[*worker] > 0) {
            // With no more weight and no higher number it loses: no logarithm is needed.
            let number = self.number(slot, worker);
            let loses = best
                .is_some_and(|best| number <= best.number && self.weights[worker] <= best.weight);
            if loses {
                continue;
            }
            let score = self.score(slot, worker);
            if best.is_none_or(|best| score.compare(&best) == Ordering::Less) {
                best = Some(score);
            }
        }
        best
    }

    fn score(&self, slot: usize, worker: usize) -> Score {
        let number = self.number(slot, worker);
        Score {
            worker,
            weight: self.weights[worker],
            number,
            distance: negative_log2(number),
        }
    }

    /// Returns the pseudo-random number of a worker in a slot.
    fn number(&self, slot: usize, worker: usize) -> u64 {
        splitmix64(self.keys[worker] ^ splitmix64(slot as u64 + 1))
    }
}

impl Score {
    /// The better score is less.
    fn compare(&self, other: &Self) -> Ordering {
        let quotient =
            |one: &Self, other: &Self| u128::from(one.distance) * u128::from(other.weight);
        quotient(self, other)
            .cmp(&quotient(other, self))
            .then(other.number.cmp(&self.number))
            .then(self.worker.cmp(&other.worker))
    }
}

fn hash(address: SocketAddr) -> u64 {
    let port = u64::from(address.port());
    match address.ip() {
        IpAddr::V4(ip) => splitmix64(u64::from(u32::from(ip)) << 16 | port),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            splitmix64(splitmix64(splitmix64((bits >> 64) as u64) ^ bits as u64) ^ port)
        }
    }
}

/// One step of SplitMix64.
fn splitmix64(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Returns −log₂ of `number` / 2⁶⁴, times 2⁴⁸, computed bit by bit.
fn negative_log2(number: u64) -> u64 {
    const FRACTION: u32 = 48;
    let number = number.max(1);
    let whole = u64::from(number.leading_zeros());
    // In [2⁶³, 2⁶⁴): 1 to 2 with 63 binary slots.
    let mut mantissa = number << whole;
    let mut logarithm = 0_u64;
    for _ in 0..FRACTION {
        let square = u128::from(mantissa) * u128::from(mantissa);
        logarithm <<= 1;
        if square >> 127 == 1 {
            logarithm |= 1;
            mantissa = (square >> 64) as u64;
        } else {
            mantissa = (square >> 63) as u64;
        }
    }
    ((whole + 1) << FRACTION) - logarithm
}

#[cfg(test)]
mod tests;
