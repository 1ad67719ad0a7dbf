//! Why a service has its selection, in figures and in a sentence.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::memory::Bytes;
use crate::names::{ALL_WORKERS, NO_BACKEND};

/// Why a worker, or the fallback, is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// No heartbeat was received yet.
    NoHeartbeat,
    /// Found in the pinned maps.
    Adopted,
    /// The first worker that came up while none was up.
    FirstUp,
    /// More memory than the worker that reported first. Threshold `auto` gets its value from the two.
    FirstComparison,
    /// More memory than the selected worker, by more than the threshold.
    MoreMemory,
    /// More memory by more than the threshold, and the selected worker has no headroom. The hold is ignored.
    SelectedHot,
    /// The selected worker is no longer up; the best of the others.
    Failover,
    /// The selected worker is no longer up, and no other worker is.
    NoWorkerUp,
    /// A backup was selected, and a primary worker is up again.
    PrimaryUp,
    /// The policy spreads connections over the workers that are up.
    Spread,
    /// A reload changed the policy to one that selects one worker.
    PolicyChanged,
}

/// The figures of a decision. Displays as a sentence: in the present tense, or with `{:#}` in the past tense for a
/// display long after the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectionReason {
    pub rule: Rule,
    pub to: BackendSummary,
    /// The former selection; `None` at the start.
    pub from: Option<BackendSummary>,
    /// The threshold in force.
    pub threshold_bytes: Option<u64>,
}

/// A worker, or one of [`crate::names`], at the time of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSummary {
    pub name: String,
    pub state: Health,
    pub available_bytes: Option<u64>,
}

impl fmt::Display for SelectionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = &self.to.name;
        let (is, has) = match f.alternate() {
            false => ("is", "has"),
            true => ("was", "had"),
        };
        match (self.rule, &self.from) {
            (Rule::NoHeartbeat, _) => {
                write!(
                    f,
                    "no worker has sent a heartbeat yet, so {}",
                    fallback_outcome(to)
                )
            }
            (Rule::Spread, _) => {
                f.write_str("new connections are spread over the workers that are up")
            }
            (Rule::Adopted, _) if *to == ALL_WORKERS => {
                f.write_str("new connections were spread before the restart, and still are")
            }
            (Rule::PolicyChanged, _) => write!(
                f,
                "the policy was switched; {to} {is} up with {}",
                self.to.available()
            ),
            (Rule::Adopted, _) => {
                write!(f, "{to} was selected before the restart, and still is")
            }
            (Rule::MoreMemory | Rule::SelectedHot, Some(from)) => {
                self.more_memory(from, has, f)?;
                if let Some(threshold) = self.threshold_bytes {
                    write!(f, ", above the threshold of {}", Bytes(threshold))?;
                }
                match self.rule {
                    Rule::SelectedHot => write!(f, "; {} {has} none to spare", from.name),
                    _ => Ok(()),
                }
            }
            (Rule::FirstComparison, Some(from)) => {
                self.more_memory(from, has, f)?;
                f.write_str(", which was selected because its heartbeat came first")
            }
            (Rule::Failover, Some(from)) => write!(
                f,
                "{} {is} {}; of the workers up {to} {has} the most memory ({})",
                from.name,
                from.state,
                self.to.available()
            ),
            (Rule::PrimaryUp, Some(from)) => write!(
                f,
                "{} {is} a backup, and {to} {is} up with {}",
                from.name,
                self.to.available()
            ),
            (Rule::NoWorkerUp, Some(from)) if from.name == ALL_WORKERS => {
                write!(f, "no worker is up any more, so {}", fallback_outcome(to))
            }
            (Rule::NoWorkerUp, Some(from)) => write!(
                f,
                "{} {is} {} and no other worker {is} up, so {}",
                from.name,
                from.state,
                fallback_outcome(to)
            ),
            (_, None) | (Rule::FirstUp, Some(_)) => {
                write!(
                    f,
                    "{to} {is} {} with {}",
                    self.to.state,
                    self.to.available()
                )
            }
        }
    }
}

/// Returns what happens to new connections while no worker is up, as a clause.
pub fn fallback_outcome(fallback: &str) -> String {
    match fallback {
        NO_BACKEND => "new connections are refused".to_owned(),
        manager => format!("the fallback on the {manager} serves"),
    }
}

impl SelectionReason {
    fn more_memory(
        &self,
        from: &BackendSummary,
        has: &str,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        let lead = self
            .to
            .available_bytes
            .unwrap_or(0)
            .saturating_sub(from.available_bytes.unwrap_or(0));
        write!(
            f,
            "{} {has} {}, {} more than {} ({})",
            self.to.name,
            self.to.available(),
            Bytes(lead),
            from.name,
            from.available()
        )
    }
}

impl BackendSummary {
    /// The fallback, or all workers.
    pub fn without_memory(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: Health::Up,
            available_bytes: None,
        }
    }

    fn available(&self) -> String {
        match self.available_bytes {
            Some(bytes) => format!("{} available", Bytes(bytes)),
            None => "memory not known yet".to_owned(),
        }
    }
}
