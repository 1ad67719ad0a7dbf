//! Why a selection is as it is: who, how much, against whom, by which rule.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::health::Health;
use super::memory::Bytes;
use super::settings::{ALL_WORKERS, NO_BACKEND};

/// Why a worker, or the fallback, is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// No worker was heard yet.
    NothingHeard,
    /// Found in the pinned maps at a restart.
    Adopted,
    /// The first worker up when none was.
    FirstUp,
    /// More memory than the worker that happened to be heard first, which teaches `auto` its value.
    FirstComparison,
    /// More memory than the selected worker, by more than the threshold.
    MoreMemory,
    /// The same, and the selected worker has none to spare: it is left before the hold ends.
    SelectedHot,
    /// The selected worker is no longer up; the best of the rest, whatever the threshold.
    Failover,
    /// The selected worker is no longer up, and no other is.
    NoWorkerUp,
    /// The policy spreads connections over the workers that are up.
    Spread,
    /// Another policy was switched to, which selects one worker.
    PolicyChanged,
}

/// A selection's reason, as figures and, displayed, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub rule: Rule,
    pub to: BackendSummary,
    /// Who was selected before; nothing at the start.
    pub from: Option<BackendSummary>,
    /// The threshold that was in force.
    pub threshold_bytes: Option<u64>,
}

/// A worker, or the manager, at the moment of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSummary {
    pub name: String,
    pub state: Health,
    pub available_bytes: Option<u64>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = &self.to.name;
        match (self.rule, &self.from) {
            (Rule::NothingHeard, _) => {
                write!(f, "no worker was heard yet, so {}", fallback_outcome(to))
            }
            (Rule::Spread, _) => {
                f.write_str("new connections are spread over the workers that are up")
            }
            (Rule::Adopted, _) if *to == ALL_WORKERS => {
                f.write_str("new connections were spread before the restart, and still are")
            }
            (Rule::PolicyChanged, _) => write!(
                f,
                "the policy was switched; {to} is up with {}",
                self.to.available()
            ),
            (Rule::Adopted, _) => {
                write!(f, "{to} was selected before the restart and is kept")
            }
            (Rule::MoreMemory | Rule::SelectedHot, Some(from)) => {
                self.more_memory(from, f)?;
                if let Some(threshold) = self.threshold_bytes {
                    write!(f, ", above the threshold of {}", Bytes(threshold))?;
                }
                match self.rule {
                    Rule::SelectedHot => write!(f, "; {} has none to spare", from.name),
                    _ => Ok(()),
                }
            }
            (Rule::FirstComparison, Some(from)) => {
                self.more_memory(from, f)?;
                f.write_str(", which was merely heard first")
            }
            (Rule::Failover, Some(from)) => write!(
                f,
                "{} is {}; of the workers up {to} has the most memory ({})",
                from.name,
                from.state,
                self.to.available()
            ),
            (Rule::NoWorkerUp, Some(from)) if from.name == ALL_WORKERS => {
                write!(f, "no worker is up any more, so {}", fallback_outcome(to))
            }
            (Rule::NoWorkerUp, Some(from)) => write!(
                f,
                "{} is {} and no other worker is up, so {}",
                from.name,
                from.state,
                fallback_outcome(to)
            ),
            (_, None) | (Rule::FirstUp, Some(_)) => {
                write!(f, "{to} is {} with {}", self.to.state, self.to.available())
            }
        }
    }
}

/// Returns what becomes of new connections while no worker is up.
pub fn fallback_outcome(fallback: &str) -> String {
    match fallback {
        NO_BACKEND => "new connections are refused".to_owned(),
        manager => format!("the {manager} serves by itself"),
    }
}

impl Reason {
    fn more_memory(&self, from: &BackendSummary, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lead = self
            .to
            .available_bytes
            .unwrap_or(0)
            .saturating_sub(from.available_bytes.unwrap_or(0));
        write!(
            f,
            "{} has {}, {} more than {} ({})",
            self.to.name,
            self.to.available(),
            Bytes(lead),
            from.name,
            from.available()
        )
    }
}

impl BackendSummary {
    fn available(&self) -> String {
        match self.available_bytes {
            Some(bytes) => format!("{} available", Bytes(bytes)),
            None => "memory not known yet".to_owned(),
        }
    }
}
