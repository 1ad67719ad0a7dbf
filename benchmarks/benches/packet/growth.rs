//! The cost of a packet as the number of flows, services or workers grows, compared with a baseline that only
//! translates addresses of flows. Growth of both comes from the processor's caches.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    Case, Limit, NEW_FLOWS, Outcome, Ports,
    headers::{Headers, REQUEST, SYN},
    rig::{BASELINE, Costs, Edge, Rig, Size},
};

/// The highest accepted ratio to the cost at the smallest size, where the baseline grows less.
const AT_MOST: f64 = 1.3;

/// The highest accepted ratio to the growth of the baseline.
const OF_BASELINE_AT_MOST: f64 = 1.15;

/// Services that have flows, few enough for the processor's caches.
const FEW_FLOWS: u32 = 1 << 10;

/// A dimension that grows.
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
        outcome: Outcome::Begins(Ports::Free),
        steps: [with(NEW_FLOWS, 1, 2), with(NEW_FLOWS, 1_024, 2), None, None],
    },
];

/// The cost of a packet at one size.
pub struct Measured {
    label: &'static str,
    size: Size,
    costs: Costs,
    /// The costs at the smallest size.
    least: Costs,
}

/// Measures at TC in `rounds` rounds.
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
                peers: false,
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

/// Returns the table as text.
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
        let at_most = AT_MOST.max(OF_BASELINE_AT_MOST * baseline);
        let verdict = if memlb <= at_most {
            "reached"
        } else {
            "MISSED"
        };
        _ = writeln!(
            text,
            "  {:<24}{flows:>10}{services:>10}{backends:>10}{:>8.0}{memlb:>8.2}{baseline:>16.2}   {at_most:.2} ×  {verdict}",
            one.label, one.costs.memlb,
        );
    }
    text
}

/// Returns the table as JSON.
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
    /// The ratios of memlb and of the baseline.
    fn growth(&self) -> (f64, f64) {
        (
            self.costs.memlb / self.least.memlb,
            self.costs.translation / self.least.translation,
        )
    }
}
