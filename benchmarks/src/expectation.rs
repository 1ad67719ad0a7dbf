//! The ratios that memlb must reach.

use serde::Serialize;

use super::{
    contender::Contender::{self, Direct, MemlbDsr, MemlbTc, Nginx2018, Router},
    rounds::{Samples, Workload},
    statistics::Spread,
};

const EXPECTED: [(Contender, Workload, Contender, f64); 12] = [
    (MemlbTc, Workload::KeptAlive, Direct, 0.85),
    (MemlbTc, Workload::KeptAlive, Router, 1.05),
    (MemlbTc, Workload::KeptAlive, Nginx2018, 4.0),
    (MemlbTc, Workload::OneEach, Direct, 0.75),
    (MemlbTc, Workload::OneEach, Router, 1.1),
    (MemlbTc, Workload::OneEach, Nginx2018, 1.3),
    (MemlbTc, Workload::Bulk, Direct, 0.85),
    (MemlbTc, Workload::Bulk, Router, 1.0),
    (MemlbTc, Workload::Bulk, Nginx2018, 3.0),
    (MemlbDsr, Workload::KeptAlive, Direct, 0.95),
    (MemlbDsr, Workload::OneEach, Direct, 0.9),
    (MemlbDsr, Workload::Bulk, Direct, 0.95),
];

/// A measured ratio of memlb to another contender, and its minimum.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub row: Workload,
    pub of: Contender,
    pub against: Contender,
    pub at_least: f64,
    pub measured: Spread,
    pub reached: bool,
}

/// Compares the measured ratios with the minima.
pub fn compare(samples: &Samples) -> Vec<Comparison> {
    EXPECTED
        .into_iter()
        .filter_map(|(of, row, against, at_least)| {
            let measured = samples.ratios(row, of, against)?;
            Some(Comparison {
                row,
                of,
                against,
                at_least,
                measured,
                reached: measured.median >= at_least,
            })
        })
        .collect()
}

/// Returns the minimum of a contender's ratio to `base`.
pub fn at_least(of: Contender, row: Workload, base: Contender) -> Option<f64> {
    EXPECTED
        .into_iter()
        .find(|expected| (expected.0, expected.1, expected.2) == (of, row, base))
        .map(|(.., at_least)| at_least)
}
