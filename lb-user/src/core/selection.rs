//! Policy `memory`: which worker a service's new connections go to.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::health::Health;
use super::settings::Threshold;

/// The smallest `auto` threshold: two idle twins may differ by less than any page of noise, and the
/// 2018 figures counted whole MiB.
const LEAST_AUTO_BYTES: u64 = 1 << 20;

/// One worker of a service, as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its place in the service's configuration.
    pub index: usize,
    pub health: Health,
    /// Unknown of an adopted worker that was not heard yet.
    pub available_bytes: Option<u64>,
}

/// Why a worker, or the fallback, is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// No worker was heard yet.
    NothingHeard,
    /// Found in the pinned maps at a restart.
    Adopted,
    /// The first worker up when none was.
    FirstUp,
    /// More memory than the selected worker, by more than the threshold.
    MoreMemory,
    /// The selected worker is no longer up; the best of the rest, whatever the threshold.
    Failover,
    /// The selected worker is no longer up, and no other is.
    NoWorkerUp,
}

/// What the policy wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Keep,
    /// `to` is a candidate's index, or nothing for the fallback.
    Switch {
        to: Option<usize>,
        rule: Rule,
    },
}

/// Decides where new connections go, given the candidate selected now (nothing: the fallback).
///
/// `threshold_bytes` is the threshold in force, see [`threshold_bytes`].
pub fn decide(
    selected: Option<usize>,
    candidates: impl Iterator<Item = Candidate> + Clone,
    threshold_bytes: Option<u64>,
) -> Decision {
    let best = candidates
        .clone()
        .filter(|candidate| candidate.health.is_up())
        // An unknown amount is less than any known one; of equals the first configured wins.
        .max_by_key(|candidate| (candidate.available_bytes, Reverse(candidate.index)));
    let current = selected.and_then(|index| {
        candidates
            .clone()
            .find(|candidate| candidate.index == index)
    });
    let current_up = current.filter(|candidate| candidate.health.is_up());

    match (current_up, best) {
        (None, None) if selected.is_none() => Decision::Keep,
        (None, None) => Decision::Switch {
            to: None,
            rule: Rule::NoWorkerUp,
        },
        (None, Some(best)) => Decision::Switch {
            to: Some(best.index),
            rule: match selected {
                None => Rule::FirstUp,
                Some(_) => Rule::Failover,
            },
        },
        (Some(current), Some(best)) if exceeds(best, current, threshold_bytes) => {
            Decision::Switch {
                to: Some(best.index),
                rule: Rule::MoreMemory,
            }
        }
        (Some(_), _) => Decision::Keep,
    }
}

/// Returns the threshold in bytes, as far as it is known yet.
pub fn threshold_bytes(
    threshold: Threshold,
    learned_bytes: Option<u64>,
    selected_available_bytes: Option<u64>,
) -> Option<u64> {
    match threshold {
        Threshold::Auto => learned_bytes,
        Threshold::Bytes(bytes) => Some(bytes),
        Threshold::Percent(percent) => {
            let share = u128::from(selected_available_bytes?) * u128::from(percent) / 100;
            Some(u64::try_from(share).unwrap_or(u64::MAX))
        }
    }
}

/// Returns the `auto` threshold and whom it was seen between, once two workers are heard.
pub fn learn_threshold(
    candidates: impl Iterator<Item = Candidate>,
) -> Option<(u64, Candidate, Candidate)> {
    let mut heard = candidates
        .filter(|candidate| candidate.health.is_up() && candidate.available_bytes.is_some());
    let (one, other) = (heard.next()?, heard.next()?);
    let difference = one.available_bytes?.abs_diff(other.available_bytes?);
    Some((difference.max(LEAST_AUTO_BYTES), one, other))
}

fn exceeds(best: Candidate, current: Candidate, threshold_bytes: Option<u64>) -> bool {
    // A worker adopted but not heard yet is kept: there is nothing to compare with.
    let (Some(best), Some(current), Some(threshold)) = (
        best.available_bytes,
        current.available_bytes,
        threshold_bytes,
    ) else {
        return false;
    };
    best > current && best - current > threshold
}
