//! What memlb is expected to reach at the least.

use serde::Serialize;

use super::{
    contender::Contender::{self, Direct, MemlbDsr, MemlbTc, Nginx2018, Router},
    rounds::{Row, Samples},
    statistics::Spread,
};

const EXPECTED: [(Contender, Row, Contender, f64); 12] = [
    (MemlbTc, Row::KeptAlive, Direct, 0.85),
    (MemlbTc, Row::KeptAlive, Router, 1.05),
    (MemlbTc, Row::KeptAlive, Nginx2018, 4.0),
    (MemlbTc, Row::OneEach, Direct, 0.75),
    (MemlbTc, Row::OneEach, Router, 1.1),
    (MemlbTc, Row::OneEach, Nginx2018, 1.3),
    (MemlbTc, Row::Bulk, Direct, 0.85),
    (MemlbTc, Row::Bulk, Router, 1.0),
    (MemlbTc, Row::Bulk, Nginx2018, 3.0),
    (MemlbDsr, Row::KeptAlive, Direct, 0.95),
    (MemlbDsr, Row::OneEach, Direct, 0.9),
    (MemlbDsr, Row::Bulk, Direct, 0.95),
];

/// A ratio of memlb to another, beside what is expected of it.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub row: Row,
    pub of: Contender,
    pub against: Contender,
    pub at_least: f64,
    pub measured: Spread,
    pub reached: bool,
}

/// Compares what was measured with what is expected.
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

/// Returns what is expected of a contender against `base`.
pub fn at_least(of: Contender, row: Row, base: Contender) -> Option<f64> {
    EXPECTED
        .into_iter()
        .find(|expected| (expected.0, expected.1, expected.2) == (of, row, base))
        .map(|(.., at_least)| at_least)
}
