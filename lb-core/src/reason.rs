//! Why a selection is as it is: who, how much, against whom, by which rule.

use std::fmt;

use super::health::Health;
use super::memory::Bytes;
use super::selection::Rule;
use super::settings::{EVERYBODY, NOBODY};

/// A selection's reason, as figures and, displayed, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub rule: Rule,
    pub to: Figure,
    /// Who was selected before; nothing at the start.
    pub from: Option<Figure>,
    /// The threshold that was in force.
    pub threshold_bytes: Option<u64>,
}

/// A worker, or the manager, at the moment of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    pub name: String,
    pub state: Health,
    pub available_bytes: Option<u64>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = &self.to.name;
        match (self.rule, &self.from) {
            (Rule::NothingHeard, _) => {
                write!(f, "no worker was heard yet, so {}", helped(to))
            }
            (Rule::Spread, _) => {
                f.write_str("new connections are spread over the workers that are up")
            }
            (Rule::Adopted, _) if *to == EVERYBODY => {
                f.write_str("new connections were spread before the restart, and still are")
            }
            (Rule::PolicyChanged, _) => write!(
                f,
                "the policy was switched; {to} is up with {}",
                self.to.available()
            ),
            (Rule::Adopted, _) => write!(f, "{to} was selected before the restart and is kept"),
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
            (Rule::NoWorkerUp, Some(from)) if from.name == EVERYBODY => {
                write!(f, "no worker is up any more, so {}", helped(to))
            }
            (Rule::NoWorkerUp, Some(from)) => write!(
                f,
                "{} is {} and no other worker is up, so {}",
                from.name,
                from.state,
                helped(to)
            ),
            (_, None) | (Rule::FirstUp, Some(_)) => {
                write!(f, "{to} is {} with {}", self.to.state, self.to.available())
            }
        }
    }
}

/// Returns what becomes of new connections while no worker is up.
pub fn helped(fallback: &str) -> String {
    match fallback {
        NOBODY => "new connections are refused".to_owned(),
        manager => format!("the {manager} serves by itself"),
    }
}

impl Reason {
    fn more_memory(&self, from: &Figure, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

impl Figure {
    fn available(&self) -> String {
        match self.available_bytes {
            Some(bytes) => format!("{} available", Bytes(bytes)),
            None => "memory not known yet".to_owned(),
        }
    }
}
