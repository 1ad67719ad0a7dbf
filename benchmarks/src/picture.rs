//! The comparison as a picture: a panel for each row, a bar for each contender.

use super::{
    report::{Median, Report, goal},
    rounds::Workload,
    statistics::Spread,
    svg::Svg,
};

const WIDTH: f64 = 860.0;
const LABELS: f64 = 150.0;
const FIGURES: f64 = 190.0;
const BAR: f64 = 16.0;
const PITCH: f64 = 24.0;
const HEADING: f64 = 64.0;
const PANEL_HEADING: f64 = 34.0;
const FOOTING: f64 = 46.0;

/// Returns the picture as SVG.
pub fn draw(report: &Report) -> String {
    let panels: Vec<(Workload, Vec<&Median>)> = Workload::ALL
        .into_iter()
        .filter(|row| report.samples.has(*row))
        .map(|row| {
            let medians = report.medians.iter();
            (row, medians.filter(|median| median.row == row).collect())
        })
        .collect();
    let height = HEADING
        + FOOTING
        + panels
            .iter()
            .map(|(_, medians)| PANEL_HEADING + PITCH * medians.len() as f64)
            .sum::<f64>();
    let scale = scale(report);
    let mut svg = Svg::new(WIDTH, height);
    svg.text(
        20.0,
        28.0,
        "title",
        "start",
        "Throughput with each balancer, relative to no balancer",
    );
    svg.text(
        20.0,
        48.0,
        "note",
        "start",
        &format!(
            "Linux {}, {} processors, wrk with 64 connections; medians of {} interleaved rounds, lines from the least to the most",
            report.machine.kernel, report.machine.processors, report.rounds
        ),
    );
    let mut top = HEADING;
    for (row, medians) in &panels {
        top = panel(&mut svg, top, *row, medians, scale);
    }
    svg.text(
        20.0,
        top + 30.0,
        "note",
        "start",
        "The tick at memlb, TC is its expected minimum.",
    );
    svg.finish()
}

fn panel(svg: &mut Svg, top: f64, row: Workload, medians: &[&Median], scale: f64) -> f64 {
    svg.text(20.0, top + 22.0, "panel", "start", row.label());
    let first = top + PANEL_HEADING;
    let bottom = first + PITCH * medians.len() as f64;
    let one = LABELS + scale;
    svg.line(one, first - 4.0, one, bottom - 4.0, "grid");
    for (index, median) in medians.iter().enumerate() {
        let y = first + PITCH * index as f64;
        let label = median.contender.label();
        svg.text(LABELS - 10.0, y + 12.0, "label", "end", label);
        let class = if median.contender.is_memlb() {
            "memlb"
        } else {
            "peer"
        };
        if let Some(ratio) = median.to_direct {
            bar(svg, y, class, ratio, scale);
        }
        if let Some(goal) = goal(median) {
            let x = LABELS + goal * scale;
            svg.line(x, y - 3.0, x, y + BAR + 3.0, "goal");
        }
        let ratio = median.to_direct.map(|ratio| format!("{:.2}", ratio.median));
        let value = median
            .value
            .map(|value| format!("{:.0} {}", value.median, median.unit));
        let columns = [(WIDTH - 135.0, ratio), (WIDTH - 20.0, value)];
        for (x, figure) in columns {
            svg.text(x, y + 12.0, "figure", "end", &figure.unwrap_or_default());
        }
    }
    bottom
}

fn bar(svg: &mut Svg, y: f64, class: &str, ratio: Spread, scale: f64) {
    svg.bar(LABELS, y, (ratio.median * scale, BAR), class);
    let middle = y + BAR / 2.0;
    let (least, most) = (LABELS + ratio.least * scale, LABELS + ratio.most * scale);
    svg.line(least, middle, most, middle, "spread");
}

/// Returns how many pixels 1.00 is wide, with room for the widest spread.
fn scale(report: &Report) -> f64 {
    let most = report
        .medians
        .iter()
        .filter_map(|median| median.to_direct)
        .map(|ratio| ratio.most)
        .fold(1.0, f64::max);
    (WIDTH - LABELS - FIGURES) / most
}
