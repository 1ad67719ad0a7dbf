//! The comparison as a picture: a panel for each row, a bar for each contender.

use std::fmt::Write;

use super::{
    report::{Median, Report, goal},
    rounds::Row,
    statistics::Spread,
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
    let panels: Vec<(Row, Vec<&Median>)> = Row::ALL
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
    let mut svg = Svg::new(height);
    svg.text(
        20.0,
        28.0,
        "title",
        "start",
        "Throughput with each balancer in the way, of no balancer at all",
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
        "The tick at memlb, TC is what is expected of it at the least.",
    );
    svg.finish()
}

fn panel(svg: &mut Svg, top: f64, row: Row, medians: &[&Median], scale: f64) -> f64 {
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
    svg.bar(LABELS, y, ratio.median * scale, class);
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

struct Svg(String);

impl Svg {
    fn new(height: f64) -> Self {
        Self(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">
<style>
.ground {{ fill: #ffffff }} .title {{ font-size: 16px; font-weight: bold }} .panel {{ font-weight: bold }}
.note {{ font-size: 11px; fill: #555555 }} .figure {{ font-size: 12px; fill: #333333 }}
.memlb {{ fill: #1f6fb2 }} .peer {{ fill: #b8bec6 }}
.grid {{ stroke: #888888; stroke-dasharray: 2 3 }} .spread {{ stroke: #222222; stroke-width: 1.5 }} .goal {{ stroke: #d1420b; stroke-width: 2.5 }}
</style>
<rect class="ground" width="100%" height="100%"/>
"#
        ))
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.put(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}" xml:space="preserve">{text}</text>"#
        ));
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, class: &str) {
        self.put(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}" class="{class}"/>"#
        ));
    }

    fn line(&mut self, x1: f64, y1: f64, x2: f64, y2: f64, class: &str) {
        self.put(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        _ = writeln!(self.0, "{element}");
    }

    fn finish(mut self) -> String {
        self.0 += "</svg>\n";
        self.0
    }
}
