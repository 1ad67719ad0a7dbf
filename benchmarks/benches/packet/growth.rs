//! How the cost of a packet grows with what there is to look it up in. Beside it stands the growth of the
//! baseline that translates addresses, which knows nothing but flows: what both grow by is the processor's
//! caches, in which more flows do not fit.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    Case, Limit, NEW_FLOWS, Outcome,
    headers::{Headers, REQUEST, SYN},
    rig::{BASELINE, Costs, Edge, Rig, Size},
};

/// What a packet may cost at the most, of what it costs where there is least.
const AT_MOST: f64 = 1.3;

/// Services that each have flows, with some to spare for the processor's caches.
const FEW_FLOWS: u32 = 1 << 10;

/// One thing that grows.
struct Series {
    label: &'static str,
    packet: Headers,
    outcome: Outcome,
    steps: [Option<Size>; 4],
}

const fn with(flows: u32, services: u32, backends: u32) -> Option<Size> {
    Some(Size {
        flows,
        services,
        backends,
    })
}

const SYNS: Headers = Headers {
    flags: SYN,
    ..REQUEST
};

const SERIES: [Series; 4] = [
    Series {
        label: "established, flows",
        packet: REQUEST,
        outcome: Outcome::ToBackend,
        steps: [
            with(1, 1, 2),
            with(FEW_FLOWS, 1, 2),
            with(1 << 16, 1, 2),
            with(1 << 20, 1, 2),
        ],
    },
    Series {
        label: "established, backends",
        packet: REQUEST,
        outcome: Outcome::ToBackend,
        steps: [with(FEW_FLOWS, 1, 2), with(FEW_FLOWS, 1, 1_000), None, None],
    },
    Series {
        label: "established, services",
        packet: REQUEST,
        outcome: Outcome::ToBackend,
        steps: [with(FEW_FLOWS, 1, 2), with(FEW_FLOWS, 1_024, 2), None, None],
    },
    Series {
        label: "new flow, services",
        packet: SYNS,
        outcome: Outcome::Begins,
        steps: [with(NEW_FLOWS, 1, 2), with(NEW_FLOWS, 1_024, 2), None, None],
    },
];

/// What a packet costs where there is so much.
pub struct Measured {
    label: &'static str,
    size: Size,
    costs: Costs,
    /// What it costs where there is least.
    least: Costs,
}

/// Measures in so many `rounds`, at TC.
pub fn measure(rounds: usize) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for series in SERIES {
        let mut least = None;
        for size in series.steps.into_iter().flatten() {
            let case = Case {
                label: series.label,
                packet: series.packet,
                outcome: series.outcome,
                size,
                at_most: Limit::Times(AT_MOST),
            };
            // A run of a million packets takes as long as fifty others.
            let rounds = if size.flows > 1 << 16 {
                rounds.min(5)
            } else {
                rounds
            };
            let costs = Rig::load(BASELINE, Edge::Tc, size)?
                .measure(&case, rounds)
                .with_context(|| format!("{}: {size:?}", series.label))?;
            measured.push(Measured {
                label: series.label,
                size,
                costs,
                least: *least.get_or_insert(costs),
            });
        }
    }
    Ok(measured)
}

/// Returns the table for people.
pub fn table(measured: &[Measured]) -> String {
    let mut text = format!(
        "  {:<24}{:>10}{:>10}{:>10}{:>8}{:>8}{:>16}\n",
        "ns per packet, TC", "flows", "services", "backends", "memlb", "growth", "baseline"
    );
    for one in measured {
        let Size {
            flows,
            services,
            backends,
        } = one.size;
        let (memlb, baseline) = one.growth();
        let verdict = if memlb <= AT_MOST {
            "reached"
        } else {
            "MISSED"
        };
        _ = writeln!(
            text,
            "  {:<24}{flows:>10}{services:>10}{backends:>10}{:>8.0}{memlb:>8.2}{baseline:>16.2}   {AT_MOST} ×  {verdict}",
            one.label, one.costs.memlb,
        );
    }
    text
}

/// Returns the same for programs.
pub fn as_json(measured: &[Measured]) -> Value {
    let rows = measured.iter().map(|one| {
        let (memlb, baseline) = one.growth();
        json!({
            "way": one.label,
            "flows": one.size.flows,
            "services": one.size.services,
            "backends": one.size.backends,
            "memlb": one.costs.memlb,
            "translation": one.costs.translation,
            "memlb_growth": memlb,
            "translation_growth": baseline,
        })
    });
    rows.collect()
}

impl Measured {
    /// memlb's and the baseline's.
    fn growth(&self) -> (f64, f64) {
        (
            self.costs.memlb / self.least.memlb,
            self.costs.translation / self.least.translation,
        )
    }
}
