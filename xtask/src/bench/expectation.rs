//! What memlb, attached by TC, is expected to reach at the least.

use serde::Serialize;

use super::{
    contender::Contender,
    rounds::{Row, Samples},
    statistics::Spread,
};

const EXPECTED: [(Row, Contender, f64); 9] = [
    (Row::KeptAlive, Contender::Direct, 0.85),
    (Row::KeptAlive, Contender::Router, 0.97),
    (Row::KeptAlive, Contender::Nginx2018, 4.0),
    (Row::OneEach, Contender::Direct, 0.75),
    (Row::OneEach, Contender::Router, 1.0),
    (Row::OneEach, Contender::Nginx2018, 1.3),
    (Row::Bulk, Contender::Direct, 0.85),
    (Row::Bulk, Contender::Router, 0.95),
    (Row::Bulk, Contender::Nginx2018, 3.0),
];

/// A ratio of memlb to another, beside what is expected of it.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub row: Row,
    pub against: Contender,
    pub at_least: f64,
    pub measured: Spread,
    pub reached: bool,
}

/// Compares what was measured with what is expected.
pub fn compare(samples: &Samples) -> Vec<Comparison> {
    EXPECTED
        .into_iter()
        .filter_map(|(row, against, at_least)| {
            let measured = samples.ratios(row, Contender::MemlbTc, against)?;
            Some(Comparison {
                row,
                against,
                at_least,
                measured,
                reached: measured.median >= at_least,
            })
        })
        .collect()
}

/// Returns what is expected of memlb against `base`.
pub fn at_least(row: Row, base: Contender) -> Option<f64> {
    EXPECTED
        .into_iter()
        .find(|expected| (expected.0, expected.1) == (row, base))
        .map(|(_, _, at_least)| at_least)
}
