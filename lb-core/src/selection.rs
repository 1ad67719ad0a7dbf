//! Policy `memory`: which worker a service's new connections go to.

use super::health::Health;
use super::reason::Rule;
use super::settings::Threshold;

/// The smallest `auto` threshold: two idle twins may differ by less than any page of noise, and the
/// 2018 figures counted whole MiB.
const MIN_AUTO_BYTES: u64 = 1 << 20;

/// One worker of a service, as the policy sees it; its place among the others is the configuration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub health: Health,
    /// Unknown of an adopted worker that was not heard yet.
    pub available_bytes: Option<u64>,
    /// It has no memory to spare.
    pub hot: bool,
}

impl Candidate {
    pub const UNKNOWN: Self = Self {
        health: Health::Unknown,
        available_bytes: None,
        hot: false,
    };
}

/// What the policy wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Keep,
    /// `to` is a candidate's place, or nothing for the fallback.
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
    candidates: &[Candidate],
    threshold_bytes: Option<u64>,
) -> Decision {
    let best = best(candidates);
    let current = selected.and_then(|place| candidates.get(place));
    let current_up = current.filter(|candidate| candidate.health.is_up());

    match (current_up, best) {
        (None, None) if selected.is_none() => Decision::Keep,
        (None, None) => Decision::Switch {
            to: None,
            rule: Rule::NoWorkerUp,
        },
        (None, Some((best, _))) => Decision::Switch {
            to: Some(best),
            rule: match selected {
                None => Rule::FirstUp,
                Some(_) => Rule::Failover,
            },
        },
        (Some(current), Some((best, candidate)))
            if exceeds(candidate, current, threshold_bytes) =>
        {
            Decision::Switch {
                to: Some(best),
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

/// Returns the `auto` threshold and between whom it was seen, once two workers are heard.
pub fn learn_threshold(candidates: &[Candidate]) -> Option<(u64, [usize; 2])> {
    let mut heard = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.health.is_up())
        .filter_map(|(place, candidate)| Some((place, candidate.available_bytes?)));
    let ((one, one_bytes), (other, other_bytes)) = (heard.next()?, heard.next()?);
    let difference = one_bytes.abs_diff(other_bytes);
    Some((difference.max(MIN_AUTO_BYTES), [one, other]))
}

/// Returns the worker that is up and has the most memory; of equals the first configured.
fn best(candidates: &[Candidate]) -> Option<(usize, &Candidate)> {
    let mut best: Option<(usize, &Candidate)> = None;
    for (place, candidate) in candidates.iter().enumerate() {
        // An unknown amount is less than any known one.
        let better = best.is_none_or(|(_, best)| candidate.available_bytes > best.available_bytes);
        if better && candidate.health.is_up() {
            best = Some((place, candidate));
        }
    }
    best
}

fn exceeds(best: &Candidate, current: &Candidate, threshold_bytes: Option<u64>) -> bool {
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
