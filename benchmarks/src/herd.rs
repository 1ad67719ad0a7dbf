//! Peak memory of workers whose connections use memory, by policy and by report interval.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context, Result};
use memlb_tests::herd::{Herd, SIZES_MIB};
use serde::Serialize;

use super::table::Table;
use xtask::{interrupt::Interrupt, workspace::print_message};

const POLICIES: [&str; 3] = ["memory", "balanced", "round_robin"];

/// Report intervals, each with the duration of its measurement.
const INTERVALS: [(Duration, Duration); 2] = [
    (Duration::from_millis(500), Duration::from_secs(8)),
    (Duration::from_secs(5), Duration::from_secs(20)),
];

/// Highest accepted ratio of the fullest worker's peak under `balanced` to that under `memory`.
const MOST_OF_MEMORY: f64 = 0.7;

#[derive(Debug, Serialize)]
pub struct HerdRow {
    report_interval_ms: u128,
    policy: &'static str,
    fullest_percent: f64,
    peaks_percent: Vec<f64>,
    connections: usize,
    failures: Vec<String>,
}

pub fn measure(interrupt: &Interrupt) -> Result<Vec<HerdRow>> {
    let mut rows = Vec::new();
    for (report_interval, duration) in INTERVALS {
        for policy in POLICIES {
            interrupt.check()?;
            print_message(format!("reports every {report_interval:?}, {policy}"));
            let herd = Herd {
                policy,
                report_interval,
                duration,
                seed: 1,
            };
            let outcome = herd.run().with_context(|| format!("measure {policy}"))?;
            rows.push(HerdRow {
                report_interval_ms: report_interval.as_millis(),
                policy,
                fullest_percent: outcome.fullest_percent(),
                peaks_percent: outcome.peaks_percent,
                connections: outcome.connections,
                failures: outcome.failures,
            });
        }
    }
    Ok(rows)
}

/// Returns the table, and the number of missed figures.
pub fn text(rows: &[HerdRow]) -> (String, usize) {
    let mut titles = vec!["policy".to_owned(), "reports every".to_owned()];
    titles.extend(SIZES_MIB.map(|mib| format!("{mib} MiB")));
    titles.extend(["fullest", "failed"].map(str::to_owned));
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    let mut table = Table::new(&titles);
    for row in rows {
        let peaks = row.peaks_percent.iter().map(|peak| format!("{peak:.0} %"));
        let failed = format!("{} of {}", row.failures.len(), row.connections);
        table.row(
            [row.policy.into(), format!("{} ms", row.report_interval_ms)]
                .into_iter()
                .chain(peaks)
                .chain([format!("{:.0} %", row.fullest_percent), failed]),
        );
    }
    let mut text = format!("peak memory of each worker's connections, of its size\n\n{table}\n");
    let mut missed = 0;
    for (report_interval, _) in INTERVALS {
        let fullest = |policy| {
            let mut of = rows.iter().filter(|row| row.policy == policy);
            of.find(|row| row.report_interval_ms == report_interval.as_millis())
                .map_or(f64::NAN, |row| row.fullest_percent)
        };
        let [memory, balanced, round_robin] = POLICIES.map(fullest);
        for (of, at_most, name) in [
            (memory, MOST_OF_MEMORY, "memory"),
            (round_robin, 1.0, "round_robin"),
        ] {
            let ratio = balanced / of;
            let reached = ratio <= at_most;
            missed += usize::from(!reached);
            let verdict = if reached { "reached" } else { "MISSED" };
            // Writing to a string does not fail.
            _ = writeln!(
                text,
                "  reports every {report_interval:?}: balanced {ratio:.2} of {name}, at most \
                 {at_most:.2}  {verdict}"
            );
        }
    }
    (text, missed)
}
