//! The migrations as a picture: a row each, with the answers to clients over time and the seven quantities.

use super::{
    Migration, MigrationReport,
    clients::{HELD, PACE},
    quantities::{Phase, SPAN},
    scenario::Method,
};
use crate::svg::Svg;

const LABELS: f64 = 210.0;
const TIMELINE: f64 = 300.0;
const GAP: f64 = 24.0;
const COLUMN: f64 = 116.0;
const WIDTH: f64 = LABELS + TIMELINE + GAP + COLUMN * 7.0 + 16.0;
const HEADING: f64 = 92.0;
const ROW: f64 = 46.0;
const BARS: f64 = 34.0;
const FOOTING: f64 = 40.0;
/// Range of the timeline, relative to the beginning of a migration.
const FROM_MS: f64 = -2_000.0;
const TO_MS: f64 = 10_000.0;

/// A quantity before, during and after; the same figure three times is drawn once.
type Quantity = (&'static str, fn(&Migration) -> [Option<f64>; 3], usize);

const QUANTITIES: [Quantity; 7] = [
    (
        "throughput MiB/s",
        |it| phases(it, |phase| Some(phase.throughput_mib_s)),
        1,
    ),
    ("delay ms", |it| phases(it, |phase| phase.delay_ms), 1),
    (
        "peak jitter ms",
        |it| phases(it, |phase| phase.peak_jitter_ms),
        0,
    ),
    ("loss %", |it| phases(it, |phase| phase.lost_percent), 0),
    (
        "downtime ms",
        |it| [None, Some(it.noticed.downtime_ms), None],
        0,
    ),
    ("CPU %", |it| phases(it, |phase| Some(cpu(phase))), 0),
    ("memory MiB", |it| phases(it, memory), 0),
];

fn phases(migration: &Migration, figure: fn(&Phase) -> Option<f64>) -> [Option<f64>; 3] {
    let [before, during, after] = &migration.phases;
    [before, during, after].map(figure)
}

fn cpu(phase: &Phase) -> f64 {
    phase.worker_cpu_percent + phase.balancer_cpu_percent.unwrap_or_default()
}

fn memory(phase: &Phase) -> Option<f64> {
    let parts = [phase.worker_mib, phase.balancer_mib];
    parts
        .iter()
        .flatten()
        .copied()
        .reduce(|some, more| some + more)
}

/// Returns the picture as SVG.
pub fn draw(report: &MigrationReport) -> String {
    let migrations = &report.migrations;
    let mut svg = Svg::new(WIDTH, HEADING + ROW * migrations.len() as f64 + FOOTING);
    svg.text(
        20.0,
        28.0,
        "title",
        "start",
        "A worker moves to another host while clients use it",
    );
    let note = format!(
        "Linux {}, {} processors. Left: answers to {HELD} clients that keep their connection and ask every 50 ms. \
         Right: before, during and after the migration, balancer and worker together; the number is the one during it.",
        report.machine.kernel, report.machine.processors
    );
    svg.text(20.0, 48.0, "note", "start", &note);
    headings(&mut svg, HEADING + ROW * migrations.len() as f64);
    let most: Vec<f64> = QUANTITIES
        .iter()
        .map(|(_, of, _)| {
            let values = migrations
                .iter()
                .flat_map(|it| of(it).into_iter().flatten());
            values.fold(f64::MIN_POSITIVE, f64::max)
        })
        .collect();
    for (index, migration) in migrations.iter().enumerate() {
        row(&mut svg, HEADING + ROW * index as f64, migration, &most);
    }
    svg.finish()
}

fn headings(svg: &mut Svg, bottom: f64) {
    for second in (-2..=10).step_by(2) {
        let x = place(f64::from(second) * 1e3);
        svg.line(x, HEADING - 6.0, x, bottom, "grid");
        svg.text(x, bottom + 16.0, "note", "middle", &format!("{second} s"));
    }
    for (index, (label, ..)) in QUANTITIES.iter().enumerate() {
        svg.text(column(index), HEADING - 12.0, "figure", "start", label);
    }
}

fn row(svg: &mut Svg, top: f64, migration: &Migration, most: &[f64]) {
    let base = top + BARS + 6.0;
    let noticed = &migration.noticed;
    let label = match migration.scenario.what {
        Method::Process => migration.scenario.label(),
        Method::Machine => format!("VM, {}", migration.scenario.label()),
        Method::Criu => format!("CRIU, {}", migration.scenario.label()),
    };
    svg.text(LABELS - 12.0, top + 20.0, "label", "end", &label);
    let (class, lost) = match noticed.held_lost {
        0 => ("note", "no connection lost".to_owned()),
        some => ("bad", format!("{some} of {} lost", noticed.held)),
    };
    svg.text(LABELS - 12.0, top + 35.0, class, "end", &lost);
    let still = migration.moved.still_ms / 1e3 * scale();
    svg.bar(place(0.0), base - BARS, (still, BARS), "still");
    let class = match migration.scenario.between.memlb() {
        Some(_) => "memlb",
        None => "peer",
    };
    let usual = HELD as f64 * SPAN.as_secs_f64() / PACE.as_secs_f64();
    let span = SPAN.as_secs_f64() * 1e3;
    for (index, answers) in noticed.answers.iter().enumerate() {
        let at = noticed.timeline_from_ms + span * index as f64;
        if *answers > 0 && (FROM_MS..TO_MS).contains(&at) {
            let height = BARS * (*answers as f64 / usual).min(1.0);
            svg.bar(
                place(at),
                base - height,
                (span / 1e3 * scale() - 0.4, height),
                class,
            );
        }
    }
    for (index, ((_, of, decimals), most)) in QUANTITIES.iter().zip(most).enumerate() {
        quantity(
            svg,
            (column(index), base),
            of(migration),
            *most,
            (class, *decimals),
        );
    }
}

fn quantity(
    svg: &mut Svg,
    (x, base): (f64, f64),
    values: [Option<f64>; 3],
    most: f64,
    (class, decimals): (&str, usize),
) {
    for (value, left) in values.iter().zip([0.0, 14.0, 28.0]) {
        if let Some(value) = value {
            let height = (BARS * value / most).max(0.6);
            svg.bar(x + left, base - height, (12.0, height), class);
        }
    }
    let figure = values[1].map_or("–".into(), |value| format!("{value:.decimals$}"));
    svg.text(x + 46.0, base - 2.0, "figure", "start", &figure);
}

fn place(milliseconds: f64) -> f64 {
    LABELS + (milliseconds - FROM_MS) / 1e3 * scale()
}

/// Pixels of a second.
fn scale() -> f64 {
    TIMELINE / (TO_MS - FROM_MS) * 1e3
}

fn column(index: usize) -> f64 {
    LABELS + TIMELINE + GAP + COLUMN * index as f64
}
