//! The picture: the fullest worker's peak memory over the interval between reports.

use std::fmt::Write;
use std::time::Duration;

use super::result::Results;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 560.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 360.0;

/// Colours that people with any colour vision can tell apart (Okabe and Ito).
const COLOURS: [&str; 6] = [
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#999999",
];

/// Draws the results as an SVG document.
pub fn plot(results: &Results) -> String {
    let intervals: Vec<u64> = {
        let mut all: Vec<u64> = results
            .outcomes
            .iter()
            .map(|it| it.report_interval_ms)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let x = |index: usize| {
        let steps = intervals.len().saturating_sub(1).max(1) as f64;
        LEFT + (RIGHT - LEFT) * index as f64 / steps
    };
    let y = |percent: f64| BOTTOM - (BOTTOM - TOP) * percent.clamp(0.0, 100.0) / 100.0;
    let mut svg = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        _ = svg.write_fmt(text);
        svg.push('\n');
    };
    line(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">Memory of the fullest worker at its peak</text>"
    ));
    for percent in [0, 25, 50, 75, 100] {
        let at = y(f64::from(percent));
        line(format_args!(
            "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent}%</text>",
            LEFT - 8.0,
            at + 4.0
        ));
    }
    for (index, interval) in intervals.iter().enumerate() {
        let every = humantime::format_duration(Duration::from_millis(*interval)).to_string();
        line(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{every}</text>",
            x(index),
            BOTTOM + 20.0
        ));
    }
    line(format_args!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">interval between a worker's reports</text>",
        f64::midpoint(LEFT, RIGHT),
        BOTTOM + 42.0
    ));
    for (number, policy) in results.policies().into_iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points: Vec<(f64, f64)> = intervals
            .iter()
            .enumerate()
            .filter_map(|(index, interval)| {
                let outcome = results.of(policy, *interval)?;
                Some((x(index), y(outcome.peak_percent)))
            })
            .collect();
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        line(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        ));
        for (x, y) in &points {
            line(format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            ));
        }
        let legend = TOP + 8.0 + 22.0 * number as f64;
        line(format_args!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{policy}</text>",
            RIGHT + 16.0,
            legend - 6.0,
            RIGHT + 36.0,
            legend
        ));
    }
    svg.push_str("</svg>\n");
    svg
}
