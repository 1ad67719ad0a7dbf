//! The results of each policy, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::scenario::Contender;

#[derive(Debug, Clone, Serialize)]
pub struct Results {
    pub scenario: String,
    pub outcomes: Vec<Outcome>,
}

/// One policy at one report interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    pub policy: &'static str,
    pub report_interval_ms: u64,
    /// The maximum use of any worker's memory, in percent.
    pub peak_percent: f64,
    /// Use of the fullest worker over average use, averaged over time: 1 is even.
    pub imbalance: f64,
    pub accepted: u64,
    /// Connections for which their worker had no memory.
    pub rejected: u64,
}

/// Collects figures.
#[derive(Debug, Default)]
pub struct Meter {
    pub accepted: u64,
    pub rejected: u64,
    peak: f64,
    ratios: f64,
    samples: f64,
}

impl Meter {
    /// Records the use of a worker's memory, 0 to 1.
    pub fn record_fill(&mut self, fill: f64) {
        self.peak = self.peak.max(fill);
    }

    /// Records the use of all workers' memory at one time, 0 to 1.
    pub fn sample(&mut self, fills: &[f64]) {
        let fullest = fills.iter().copied().fold(0.0, f64::max);
        let mean = fills.iter().sum::<f64>() / fills.len() as f64;
        self.record_fill(fullest);
        if mean > 0.0 {
            self.ratios += fullest / mean;
            self.samples += 1.0;
        }
    }

    pub fn outcome(&self, contender: Contender, interval: Duration) -> Outcome {
        Outcome {
            policy: contender.name(),
            report_interval_ms: lb_core::milliseconds(interval),
            peak_percent: self.peak * 100.0,
            imbalance: self.ratios / self.samples.max(1.0),
            accepted: self.accepted,
            rejected: self.rejected,
        }
    }
}

impl Outcome {
    /// Refused connections in percent of all.
    pub fn refused_percent(&self) -> f64 {
        let all = self.accepted + self.rejected;
        100.0 * self.rejected as f64 / all.max(1) as f64
    }
}

impl Results {
    pub fn of(&self, policy: &str, report_interval_ms: u64) -> Option<&Outcome> {
        let mut outcomes = self.outcomes.iter();
        outcomes.find(|it| it.policy == policy && it.report_interval_ms == report_interval_ms)
    }

    /// The policies, in the order of their first appearance.
    pub fn policies(&self) -> Vec<&'static str> {
        let mut policies = Vec::new();
        for outcome in &self.outcomes {
            if !policies.contains(&outcome.policy) {
                policies.push(outcome.policy);
            }
        }
        policies
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.scenario)?;
        let mut interval = None;
        for outcome in &self.outcomes {
            if interval.replace(outcome.report_interval_ms) != Some(outcome.report_interval_ms) {
                let every = Duration::from_millis(outcome.report_interval_ms);
                writeln!(f, "\nreports every {}", humantime::format_duration(every))?;
                writeln!(
                    f,
                    "  {:<18} {:>15} {:>10} {:>9} {:>9}",
                    "policy", "fullest, peak", "imbalance", "accepted", "rejected"
                )?;
            }
            writeln!(
                f,
                "  {:<18} {:>14.1}% {:>10.2} {:>9} {:>9}",
                outcome.policy,
                outcome.peak_percent,
                outcome.imbalance,
                outcome.accepted,
                outcome.rejected
            )?;
        }
        Ok(())
    }
}
