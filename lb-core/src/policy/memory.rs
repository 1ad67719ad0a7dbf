//! Policy `memory`: all new connections go to the worker with the most available memory, until another worker has more
//! by the threshold.

use std::cmp::Reverse;
use std::fmt;
use std::time::{Duration, Instant};

use super::SlotKind;
use crate::memory::Bytes;
use crate::reason::Rule;

/// The default of [`MemorySettings::hold`]: two or three reports at the default interval. docs/policies.md
/// shows the effect of longer holds.
pub const DEFAULT_HOLD: Duration = Duration::from_millis(250);

/// The smallest `auto` threshold.
const MIN_AUTO_BYTES: u64 = 1 << 20;

/// The `auto` threshold is at least one part of this many of the smaller worker's total memory: equal workers differ by
/// less at any moment.
const MIN_AUTO_PART: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySettings {
    pub threshold: Threshold,
    /// The least time between two switches by preference.
    pub hold: Duration,
}

/// How much more memory another worker must have before the selection moves to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// The difference between the first two workers that report, but at least 1 MiB and a hundredth of
    /// the smaller worker's memory.
    Auto,
    Bytes(u64),
    /// Of the selected worker's available memory.
    Percent(u32),
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => Bytes(*bytes).fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// One backend as the policy compares it. Of equal backends the first configured one wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Candidate {
    pub is_up: bool,
    /// After the manual weight; `None` before the first heartbeat.
    pub available_bytes: Option<u64>,
    pub has_no_headroom: bool,
}

/// The policy's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Keep,
    /// `to` is a candidate; `None` is the fallback.
    Switch {
        to: Option<usize>,
        rule: Rule,
    },
}

/// The policy's state in one service.
#[derive(Debug)]
pub struct MemoryPolicy {
    settings: MemorySettings,
    learned_threshold_bytes: Option<u64>,
    /// The selected worker was the first to report, and the second one has just reported. The next comparison ignores
    /// the threshold.
    is_first_comparison: bool,
    /// When the selection last moved between workers, or was adopted.
    last_switch: Option<Instant>,
    /// A candidate with more memory, and when the hold that it waits for ends.
    waiting: Option<(usize, Instant)>,
    /// The candidates that are up in the order of preference, as last written.
    ranking: Vec<usize>,
}

impl MemoryPolicy {
    /// How the kernel uses the slots that [`Self::rank`] fills.
    pub const SLOT_KIND: SlotKind = SlotKind::Ranked;

    pub fn new(settings: MemorySettings) -> Self {
        Self {
            settings,
            learned_threshold_bytes: None,
            is_first_comparison: false,
            last_switch: None,
            waiting: None,
            ranking: Vec::new(),
        }
    }

    /// Takes over the state from before a reload.
    pub fn inherit(&mut self, old: &Self) {
        self.last_switch = old.last_switch;
        if self.settings.threshold == old.settings.threshold {
            self.learned_threshold_bytes = old.learned_threshold_bytes;
        }
    }

    /// Begins a hold.
    pub fn record_switch(&mut self, now: Instant) {
        self.last_switch = Some(now);
    }

    /// Returns the candidate that waits for the end of the hold, and when that is.
    pub fn waiting(&self) -> Option<(usize, Instant)> {
        self.waiting
    }

    /// Decides where new connections go; `selected` is `None` while they go to the fallback.
    pub fn choose(
        &mut self,
        selected: Option<usize>,
        candidates: &[Candidate],
        now: Instant,
    ) -> Choice {
        self.waiting = None;
        let is_first = std::mem::take(&mut self.is_first_comparison);
        let selected_bytes = selected.and_then(|it| candidates[it].available_bytes);
        let threshold_bytes = match is_first {
            true => Some(0),
            false => self.threshold_bytes(selected_bytes),
        };
        let (to, mut rule) = match choose(selected, candidates, threshold_bytes) {
            Choice::Keep => return Choice::Keep,
            Choice::Switch { to, rule } => (to, rule),
        };
        if let (Rule::MoreMemory, Some(backend), Some(until)) = (rule, to, self.hold_end(now)) {
            let has_none = |it: Option<usize>| it.is_some_and(|it| candidates[it].has_no_headroom);
            if !has_none(selected) || has_none(to) {
                self.waiting = Some((backend, until));
                self.is_first_comparison = is_first;
                return Choice::Keep;
            }
            rule = Rule::SelectedHot;
        } else if is_first && rule == Rule::MoreMemory {
            rule = Rule::FirstComparison;
        }
        Choice::Switch { to, rule }
    }

    fn hold_end(&self, now: Instant) -> Option<Instant> {
        let end = self.last_switch?.checked_add(self.settings.hold)?;
        (end > now).then_some(end)
    }

    /// Returns the threshold in force; `None` while `auto` has not seen two workers.
    pub fn threshold_bytes(&self, selected_available_bytes: Option<u64>) -> Option<u64> {
        match self.settings.threshold {
            Threshold::Auto => self.learned_threshold_bytes,
            Threshold::Bytes(bytes) => Some(bytes),
            Threshold::Percent(percent) => {
                let share = u128::from(selected_available_bytes?) * u128::from(percent) / 100;
                Some(u64::try_from(share).unwrap_or(u64::MAX))
            }
        }
    }

    /// Fixes the `auto` threshold when two workers have reported. Returns it and the two candidates.
    /// `is_first` says that the selected worker was chosen because none was up before.
    pub fn learn_threshold(
        &mut self,
        candidates: &[Candidate],
        total_bytes: impl Fn(usize) -> Option<u64>,
        is_first: bool,
    ) -> Option<(u64, [usize; 2])> {
        if self.settings.threshold != Threshold::Auto || self.learned_threshold_bytes.is_some() {
            return None;
        }
        let up = candidates.iter().enumerate().filter(|(_, it)| it.is_up);
        let mut known = up.filter_map(|(index, it)| Some((index, it.available_bytes?)));
        let ((one, one_bytes), (other, other_bytes)) = (known.next()?, known.next()?);
        let pair = [one, other];
        let smaller_total = pair.into_iter().filter_map(total_bytes).min();
        let bytes = one_bytes
            .abs_diff(other_bytes)
            .max(MIN_AUTO_BYTES)
            .max(smaller_total.unwrap_or(0) / MIN_AUTO_PART);
        self.learned_threshold_bytes = Some(bytes);
        self.is_first_comparison = is_first;
        Some((bytes, pair))
    }

    /// Ranks the candidates that are up, the selected one first, for clients whose SYN the selected
    /// worker does not answer. Returns the ranking if it differs from the last one.
    pub fn rank(&mut self, selected: Option<usize>, candidates: &[Candidate]) -> Option<&[usize]> {
        let mut ranking: Vec<usize> = (0..candidates.len())
            .filter(|index| candidates[*index].is_up)
            .collect();
        ranking.sort_by_key(|index| {
            let is_selected = selected == Some(*index);
            (
                Reverse(is_selected),
                Reverse(candidates[*index].available_bytes),
            )
        });
        if ranking.is_empty() || ranking == self.ranking {
            return None;
        }
        self.ranking = ranking;
        Some(&self.ranking)
    }
}

fn choose(
    selected: Option<usize>,
    candidates: &[Candidate],
    threshold_bytes: Option<u64>,
) -> Choice {
    let best = best(candidates);
    let current = selected.and_then(|index| candidates.get(index));
    match (current.filter(|it| it.is_up), best) {
        (None, None) if selected.is_none() => Choice::Keep,
        (None, None) => Choice::Switch {
            to: None,
            rule: Rule::NoWorkerUp,
        },
        (None, Some(best)) => Choice::Switch {
            to: Some(best),
            rule: match selected {
                None => Rule::FirstUp,
                Some(_) => Rule::Failover,
            },
        },
        (Some(current), Some(best)) if exceeds(&candidates[best], current, threshold_bytes) => {
            Choice::Switch {
                to: Some(best),
                rule: Rule::MoreMemory,
            }
        }
        (Some(_), _) => Choice::Keep,
    }
}

/// Returns the candidate that is up and has the most memory.
fn best(candidates: &[Candidate]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (index, candidate) in candidates.iter().enumerate().filter(|(_, it)| it.is_up) {
        // An unknown amount is less than any known one.
        let is_better =
            best.is_none_or(|best| candidate.available_bytes > candidates[best].available_bytes);
        if is_better {
            best = Some(index);
        }
    }
    best
}

/// Whether the best candidate has more memory by the threshold. An adopted worker that has sent no heartbeat yet stays
/// selected.
fn exceeds(best: &Candidate, current: &Candidate, threshold_bytes: Option<u64>) -> bool {
    let (Some(best), Some(current), Some(threshold)) = (
        best.available_bytes,
        current.available_bytes,
        threshold_bytes,
    ) else {
        return false;
    };
    best > current && best - current > threshold
}
