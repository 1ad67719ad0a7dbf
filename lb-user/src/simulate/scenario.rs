//! The simulated workers and clients, and the network between workers and manager.

use std::fmt;
use std::time::Duration;

use lb_core::{
    Bytes, DEFAULT_HOLD, MaxShare, MemorySettings, Policy, SpreadSettings, Threshold, counted,
};

/// A scenario without the policy and the interval between reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    pub workers: Vec<WorkerModel>,
    /// New connections each second, on average.
    pub arrivals_per_second: f64,
    /// Average duration of a connection.
    pub stay: Duration,
    /// Average memory of a connection.
    pub connection_bytes: u64,
    /// Average delay of a report.
    pub delay: Duration,
    /// Part of the reports that is lost, 0 to 1.
    pub loss: f64,
    pub duration: Duration,
    pub seed: u64,
    pub memory: MemorySettings,
    pub spread: SpreadSettings,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WorkerModel {
    pub name: String,
    pub total_bytes: u64,
    pub background: BackgroundLoad,
}

/// The memory that a worker uses without its connections.
#[derive(Debug, Clone, PartialEq)]
pub enum BackgroundLoad {
    Constant(u64),
    /// The number of bytes from each time on.
    Recorded(Vec<(Duration, u64)>),
}

impl BackgroundLoad {
    pub fn at(&self, time: Duration) -> u64 {
        match self {
            Self::Constant(bytes) => *bytes,
            Self::Recorded(steps) => {
                let next = steps.partition_point(|(from, _)| *from <= time);
                steps.get(next.saturating_sub(1)).map_or(0, |step| step.1)
            }
        }
    }
}

/// The choice of a worker for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    Policy(Policy),
    /// Each worker with the same probability: the baseline.
    Random,
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Policy(policy) => policy.name(),
            Self::Random => "random",
        }
    }

    /// Every policy and the baseline.
    pub fn all() -> Vec<Self> {
        let policies = Policy::ALL.iter().copied().map(Self::Policy);
        policies.chain([Self::Random]).collect()
    }
}

impl Default for Scenario {
    /// Six workers like those of the laboratory, with a bit more than half of their memory in use.
    fn default() -> Self {
        Self {
            workers: WorkerModel::of_sizes(&[700 << 20; 6], 100 << 20),
            arrivals_per_second: 450.0,
            stay: Duration::from_secs(2),
            connection_bytes: 2 << 20,
            delay: Duration::from_millis(5),
            loss: 0.0,
            duration: Duration::from_secs(120),
            seed: 1,
            memory: MemorySettings {
                threshold: Threshold::Auto,
                hold: DEFAULT_HOLD,
            },
            spread: SpreadSettings::default(),
        }
    }
}

impl WorkerModel {
    pub fn of_sizes(sizes: &[u64], background: u64) -> Vec<Self> {
        let worker = |(number, total_bytes): (usize, &u64)| Self {
            name: format!("worker{number}"),
            total_bytes: *total_bytes,
            background: BackgroundLoad::Constant(background.min(*total_bytes)),
        };
        (1..).zip(sizes).map(worker).collect()
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of ", counted(self.workers.len(), "worker"))?;
        let sizes: Vec<u64> = self.workers.iter().map(|it| it.total_bytes).collect();
        match sizes.first() {
            Some(first) if sizes.iter().all(|size| size == first) => {
                write!(f, "{}", Bytes(*first))?;
            }
            _ => {
                let sizes: Vec<String> = sizes.iter().map(|it| Bytes(*it).to_string()).collect();
                f.write_str(&sizes.join(", "))?;
            }
        }
        write!(
            f,
            "; {} connections/s of {} for {}; reports {} late, {}% lost; {} simulated, seed {}",
            self.arrivals_per_second,
            Bytes(self.connection_bytes),
            humantime::format_duration(self.stay),
            humantime::format_duration(self.delay),
            self.loss * 100.0,
            humantime::format_duration(self.duration),
            self.seed
        )?;
        if self.spread.max_share != MaxShare::Auto {
            write!(f, "; at most {} for each", self.spread.max_share)?;
        }
        Ok(())
    }
}
