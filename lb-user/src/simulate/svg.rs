//! Draws the fullest worker's peak memory and the refused connections of each policy over the interval between reports.

use std::fmt::Write;
use std::time::Duration;

use super::result::{Outcome, Results};

const WIDTH: f64 = 800.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 620.0;
/// The height of one panel.
const HEIGHT: f64 = 220.0;
/// The space between two panels, for the title of the lower one.
const BETWEEN: f64 = 44.0;
/// The height of a line of the caption.
const LINE: f64 = 16.0;
/// The minimum distance of two labels.
const LABEL: f64 = 14.0;
/// The maximum number of characters in a line of the caption.
const CAPTION: usize = 118;

/// Colours that people with any colour vision can tell apart (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#d55e00", "#0072b2", "#009e73", "#b8478f", "#b87700", "#3a8fc0", "#707070",
];

/// Dashes and markers distinguish the lines without colours.
const DASHES: [&str; 7] = ["", "8 3", "3 3", "10 3 3 3", "14 4", "1 4", "6 2 1 2 1 2"];

/// A figure of the outcomes, and its axis.
struct Panel {
    title: &'static str,
    axis: &'static str,
    top: f64,
    most: f64,
    figure: fn(&Outcome) -> f64,
}

impl Panel {
    fn y(&self, percent: f64) -> f64 {
        self.top + HEIGHT * (1.0 - (percent / self.most).clamp(0.0, 1.0))
    }
}

/// Draws the results as an SVG document.
pub fn plot(results: &Results) -> String {
    let mut intervals: Vec<u64> = results
        .outcomes
        .iter()
        .map(|it| it.report_interval_ms)
        .collect();
    intervals.sort_unstable();
    intervals.dedup();
    let caption = lines(&results.scenario);
    let top = 56.0 + LINE * caption.len() as f64 + BETWEEN / 2.0;
    let refused = |outcome: &Outcome| outcome.refused_percent();
    let most = results.outcomes.iter().map(refused).fold(0.0, f64::max);
    let panels = [
        Panel {
            title: "Memory of the fullest worker at its peak",
            axis: "memory in use, %",
            top,
            most: 100.0,
            figure: |outcome| outcome.peak_percent,
        },
        Panel {
            title: "Connections refused for lack of memory",
            axis: "refused, % of all",
            top: top + HEIGHT + BETWEEN,
            most: round_up(most),
            figure: Outcome::refused_percent,
        },
    ];
    let bottom = panels[1].top + HEIGHT;
    let mut svg = Svg::new(bottom + 60.0);
    svg.text(
        LEFT,
        28.0,
        "font-size=\"16\"",
        "Policies compared by memlb simulate",
    );
    for (number, line) in caption.iter().enumerate() {
        svg.text(
            LEFT,
            48.0 + LINE * number as f64,
            "fill=\"#555\" font-size=\"11\"",
            line,
        );
    }
    let x = |index: usize| match intervals.len() {
        1 => f64::midpoint(LEFT, RIGHT),
        count => LEFT + (RIGHT - LEFT) * index as f64 / (count - 1) as f64,
    };
    for panel in &panels {
        frame(&mut svg, panel);
        curves(&mut svg, panel, results, &intervals, x);
    }
    for (index, interval) in intervals.iter().enumerate() {
        let every = humantime::format_duration(Duration::from_millis(*interval)).to_string();
        svg.text(x(index), bottom + 20.0, "text-anchor=\"middle\"", &every);
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    let axis = "interval between a worker's reports";
    svg.text(middle, bottom + 42.0, "text-anchor=\"middle\"", axis);
    svg.finish()
}

/// The panel's title, axis and grid.
fn frame(svg: &mut Svg, panel: &Panel) {
    svg.text(LEFT, panel.top - 12.0, "font-weight=\"bold\"", panel.title);
    for step in 0..=4 {
        let percent = panel.most * f64::from(step) / 4.0;
        let y = panel.y(percent);
        svg.line((LEFT, y), (RIGHT, y), "#ddd");
        let decimals = usize::from(panel.most < 10.0) + usize::from(panel.most < 1.0);
        let label = format!("{percent:.decimals$}");
        svg.text(LEFT - 8.0, y + 4.0, "text-anchor=\"end\"", &label);
    }
    let middle = panel.top + HEIGHT / 2.0;
    let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 22 {middle:.1})\"");
    svg.text(22.0, middle, &turned, panel.axis);
}

/// A line for each policy, with its name at the end.
fn curves(
    svg: &mut Svg,
    panel: &Panel,
    results: &Results,
    intervals: &[u64],
    x: impl Fn(usize) -> f64,
) {
    let mut labels = Vec::new();
    for (number, policy) in results.policies().into_iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points = intervals
            .iter()
            .enumerate()
            .filter_map(|(index, interval)| {
                let outcome = results.of(policy, *interval)?;
                Some((x(index), panel.y((panel.figure)(outcome))))
            });
        let points: Vec<(f64, f64)> = points.collect();
        svg.curve(&points, colour, DASHES[number % DASHES.len()]);
        for point in &points {
            svg.marker(*point, number, colour);
        }
        if let Some(end) = points.last() {
            labels.push((*end, policy, number, colour));
        }
    }
    labels.sort_by(|one, other| one.0.1.total_cmp(&other.0.1));
    let count = labels.len() as f64;
    let mut free = f64::NEG_INFINITY;
    for (place, ((end_x, end_y), policy, number, colour)) in labels.into_iter().enumerate() {
        // Later labels need their room above the bottom.
        let lowest = panel.top + HEIGHT - LABEL * (count - 1.0 - place as f64);
        let y = end_y.max(free).min(lowest.max(free));
        free = y + LABEL;
        let x = RIGHT + 26.0;
        svg.line((end_x + 5.0, end_y), (x - 10.0, y), "#ccc");
        svg.marker((x - 4.0, y), number, colour);
        let fill = format!("fill=\"{colour}\"");
        svg.text(x + 6.0, y + 4.0, &fill, policy);
    }
}

/// The least round number that is not below `number`, and 1 at least.
fn round_up(number: f64) -> f64 {
    let scale = 10_f64.powf(number.max(1.0).log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    let steps = steps.iter().map(|it| it * scale);
    steps.fold(f64::INFINITY, |least, step| match step >= number {
        true => least.min(step),
        false => least,
    })
}

/// Breaks a text at spaces.
fn lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + 1 + word.len() > CAPTION {
            lines.push(word.to_owned());
        } else {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last] += word;
        }
    }
    lines
}

/// The elements of the document.
struct Svg(String);

impl Svg {
    fn new(height: f64) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"white\"/>\n"
        ))
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        _ = writeln!(self.0, "{element}");
    }

    fn text(&mut self, x: f64, y: f64, attributes: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>"
        ));
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        ));
    }

    fn curve(&mut self, points: &[(f64, f64)], colour: &str, dashes: &str) {
        let points = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
        let points: Vec<String> = points.collect();
        self.add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-dasharray=\"{dashes}\"/>",
            points.join(" ")
        ));
    }

    /// A circle, square, triangle or diamond, filled or not.
    fn marker(&mut self, (x, y): (f64, f64), number: usize, colour: &str) {
        let fill = match number / 4 % 2 {
            0 => colour,
            _ => "white",
        };
        let look = format!("fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.5\"");
        let corners: &[(f64, f64)] = match number % 4 {
            0 => {
                return self.add(format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" {look}/>"
                ));
            }
            1 => &[(-3.0, -3.0), (3.0, -3.0), (3.0, 3.0), (-3.0, 3.0)],
            2 => &[(0.0, -4.0), (4.0, 3.0), (-4.0, 3.0)],
            _ => &[(0.0, -4.5), (4.5, 0.0), (0.0, 4.5), (-4.5, 0.0)],
        };
        let corners = corners
            .iter()
            .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy));
        let corners: Vec<String> = corners.collect();
        self.add(format_args!(
            "<polygon points=\"{}\" {look}/>",
            corners.join(" ")
        ));
    }

    fn finish(self) -> String {
        self.0 + "</svg>\n"
    }
}
