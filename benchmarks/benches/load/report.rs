//! The results, as text and as JSON.

use std::time::Duration;

use memlb_tests::load::{Tally, percentile};
use serde_json::{Value, json};

use crate::{
    measure::Measured,
    scenario::{Kind, ROUND_TRIP, Scenario},
};

/// Connections that take longer are slow.
const SLOW: Duration = Duration::from_millis(5);
/// Connections that take longer have repeated a SYN.
const VERY_SLOW: Duration = Duration::from_millis(500);

const RATE_TITLES: [&str; 11] = [
    "",
    "connections",
    "failed",
    "refused",
    "≥ 5 ms",
    "> 0.5 s",
    "SYNs again",
    "p50 ms",
    "p99 ms",
    "answer p99",
    "no port",
];

const AT_ONCE_TITLES: [&str; 10] = [
    "",
    "held",
    "failed",
    "refused",
    "lost",
    "again: held",
    "failed",
    "refused",
    "lost",
    "no port",
];

const FLOOD_TITLES: [&str; 10] = [
    "",
    "clients",
    "in time",
    "failed",
    "refused",
    "p50 ms",
    "p99 ms",
    "answer p99",
    "SYNs/s",
    "no port",
];

/// From the first SYN until the answer: if that SYN or its answer is lost, the next one follows after a
/// second.
const IN_TIME: Duration = Duration::from_millis(1_200).saturating_add(ROUND_TRIP);

/// Returns the results of a scenario.
pub fn table(scenario: &Scenario, rows: &[Measured]) -> String {
    let titles: &[&str] = match scenario.kind {
        Kind::Rate { .. } => &RATE_TITLES,
        Kind::AtOnce { .. } => &AT_ONCE_TITLES,
        Kind::Flood { .. } => &FLOOD_TITLES,
    };
    let mut lines = vec![titles.iter().map(|title| (*title).to_owned()).collect()];
    lines.extend(rows.iter().map(|row| {
        let ports = row.ports_exhausted.map_or("–".into(), |it| it.to_string());
        let label = [row.balancer.label().to_owned()].into_iter();
        let figures = match scenario.kind {
            Kind::Rate { .. } => rate_figures(row),
            Kind::Flood { .. } => flood_figures(row),
            Kind::AtOnce { .. } => [Some(&row.first), row.again.as_ref()]
                .into_iter()
                .flatten()
                .flat_map(at_once_figures)
                .collect(),
        };
        label.chain(figures).chain([ports]).collect()
    }));
    format!(
        "{}: {}\n{}",
        scenario.name,
        scenario.describe(),
        aligned(&lines)
    )
}

fn flood_figures(row: &Measured) -> Vec<String> {
    let tally = &row.first;
    vec![
        tally.attempts.to_string(),
        format!("{:.1} %", tally.answered_percent(IN_TIME)),
        tally.failed().to_string(),
        tally.refused().to_string(),
        milliseconds(&tally.connect_us, 0.5),
        milliseconds(&tally.connect_us, 0.99),
        milliseconds(&tally.answer_us, 0.99),
        format!("{:.0}", row.flood_per_second.unwrap_or_default()),
    ]
}

fn milliseconds(values: &[u32], share: f64) -> String {
    percentile(values, share).map_or("–".into(), |us| format!("{:.2}", f64::from(us) / 1e3))
}

fn rate_figures(row: &Measured) -> Vec<String> {
    let tally = &row.first;
    let mut connections = tally.attempts.to_string();
    if tally.skipped * 100 > tally.attempts {
        // The generator or the machine did not reach the rate.
        connections += &format!(" ({:.0}/s)", per_second(row));
    }
    vec![
        connections,
        tally.failed().to_string(),
        tally.refused().to_string(),
        format!("{:.2} %", tally.slower_percent(SLOW)),
        tally.slower(VERY_SLOW).to_string(),
        row.repeated_syns.to_string(),
        milliseconds(&tally.connect_us, 0.5),
        milliseconds(&tally.connect_us, 0.99),
        milliseconds(&tally.answer_us, 0.99),
    ]
}

fn per_second(row: &Measured) -> f64 {
    row.first.attempts as f64 / row.opening.as_secs_f64()
}

fn at_once_figures(tally: &Tally) -> Vec<String> {
    let held = (tally.answer_us.len() as u64).saturating_sub(tally.lost);
    [
        held,
        tally.failed() + tally.skipped,
        tally.refused(),
        tally.lost,
    ]
    .map(|count| count.to_string())
    .into()
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("  {cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        text += "\n";
    }
    text
}

/// Returns all results.
pub fn json(measured: &[Measured]) -> Value {
    let rows = measured.iter().map(|row| {
        json!({
            "scenario": row.scenario.name,
            "load": row.scenario.kind,
            "description": row.scenario.describe(),
            "balancer": row.balancer,
            "first": counts(&row.first),
            "again": row.again.as_ref().map(counts),
            "repeated_syns": row.repeated_syns,
            "flood_syns_per_second": row.flood_per_second,
            "ports_exhausted": row.ports_exhausted,
        })
    });
    rows.collect()
}

fn counts(tally: &Tally) -> Value {
    let milliseconds = |values: &[u32], share| Some(f64::from(percentile(values, share)?) / 1e3);
    json!({
        "attempts": tally.attempts,
        "skipped": tally.skipped,
        "answered": tally.answer_us.len(),
        "failed": tally.failed(),
        "failures": tally.failures,
        "lost": tally.lost,
        "at_least_5_ms_percent": tally.slower_percent(SLOW),
        "answered_in_time_percent": tally.answered_percent(IN_TIME),
        "at_least_500_ms": tally.slower(VERY_SLOW),
        "connect_p50_ms": milliseconds(&tally.connect_us, 0.5),
        "connect_p99_ms": milliseconds(&tally.connect_us, 0.99),
        "answer_p50_ms": milliseconds(&tally.answer_us, 0.5),
        "answer_p99_ms": milliseconds(&tally.answer_us, 0.99),
    })
}
