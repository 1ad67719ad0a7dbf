//! The comparison: every round measures every contender, and only ratios within a round are compared, so that
//! disturbances of the machine affect all contenders alike.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::{
    contender::Contender,
    laboratory::Laboratory,
    statistics::Spread,
    wrk::{BULK_PATH, Figures, Load, Wrk},
};
use xtask::{interrupt::Interrupt, workspace::print_message};

/// Connections of wrk.
pub const CONNECTIONS: usize = 64;

/// A load of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Small pages over connections that are kept alive
    KeptAlive,
    /// Small pages over one connection each
    OneEach,
    /// Bodies of 1 MiB
    Bulk,
}

impl Workload {
    pub const ALL: [Self; 3] = [Self::KeptAlive, Self::OneEach, Self::Bulk];

    pub fn label(self) -> &'static str {
        match self {
            Self::KeptAlive => "kept alive",
            Self::OneEach => "one connection each",
            Self::Bulk => "bulk, 1 MiB bodies",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::KeptAlive | Self::OneEach => "requests/s",
            Self::Bulk => "MB/s",
        }
    }

    fn load(self, duration: Duration) -> Load {
        Load {
            connections: CONNECTIONS,
            duration,
            one_each: self == Self::OneEach,
            path: match self {
                Self::KeptAlive | Self::OneEach => "/",
                Self::Bulk => BULK_PATH,
            },
        }
    }

    fn value(self, figures: &Figures) -> f64 {
        match self {
            Self::KeptAlive | Self::OneEach => figures.requests_per_second(),
            Self::Bulk => figures.bytes_per_second() / 1e6,
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    pub row: Workload,
    pub contender: Contender,
    pub round: usize,
    /// In the workload's unit.
    pub value: f64,
    #[serde(flatten)]
    pub figures: Figures,
}

/// All measurements.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Samples(Vec<Sample>);

impl Samples {
    /// Measures every workload in every laboratory once in each of the `rounds`.
    pub fn measure(
        laboratories: &[Laboratory],
        rows: &[Workload],
        rounds: usize,
        duration: Duration,
        wrk: &Wrk,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let mut samples = Self::default();
        if rows.is_empty() {
            return Ok(samples);
        }
        for round in 0..rounds {
            print_message(format!("round {} of {rounds}", round + 1));
            for row in rows {
                // Alternating order, so that a drift of the machine favours no contender.
                let mut turn: Vec<&Laboratory> = laboratories.iter().collect();
                if round % 2 == 1 {
                    turn.reverse();
                }
                for laboratory in turn {
                    interrupt.check()?;
                    let figures = measure(laboratory, *row, duration, wrk)?;
                    samples.0.push(Sample {
                        row: *row,
                        contender: laboratory.contender,
                        round,
                        value: row.value(&figures),
                        figures,
                    });
                }
            }
        }
        interrupt.check()?;
        Ok(samples)
    }

    pub fn of(&self, row: Workload, contender: Contender) -> impl Iterator<Item = &Sample> {
        self.0
            .iter()
            .filter(move |sample| (sample.row, sample.contender) == (row, contender))
    }

    pub fn has(&self, row: Workload) -> bool {
        self.0.iter().any(|sample| sample.row == row)
    }

    pub fn values(&self, row: Workload, contender: Contender) -> Option<Spread> {
        Spread::of(self.of(row, contender).map(|sample| sample.value))
    }

    pub fn p99_ms(&self, row: Workload, contender: Contender) -> Option<Spread> {
        Spread::of(
            self.of(row, contender)
                .map(|sample| sample.figures.p99_us as f64 / 1e3),
        )
    }

    pub fn errors(&self, row: Workload, contender: Contender) -> u64 {
        self.of(row, contender)
            .map(|sample| sample.figures.errors.total())
            .sum()
    }

    /// Returns how `contender` compares with `base`, round by round.
    pub fn ratios(&self, row: Workload, contender: Contender, base: Contender) -> Option<Spread> {
        let ratios = self.of(row, contender).filter_map(|sample| {
            let base = self
                .of(row, base)
                .find(|other| other.round == sample.round)?;
            Some(sample.value / base.value)
        });
        Spread::of(ratios)
    }
}

/// Measures one contender once.
pub fn measure(
    laboratory: &Laboratory,
    row: Workload,
    duration: Duration,
    wrk: &Wrk,
) -> Result<Figures> {
    let (figures, _) = laboratory.during(
        |_| laboratory.worker(0),
        || wrk.measure(laboratory.client(), laboratory.target(), row.load(duration)),
    )?;
    figures
}
