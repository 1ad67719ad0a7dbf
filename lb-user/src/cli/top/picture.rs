//! The screen as a picture for the documents.

use std::fmt::Write;

use ratatui::{
    buffer::{Buffer, Cell},
    style::{Color, Modifier},
};

const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 18.0;
const MARGIN: f64 = 10.0;
const TEXT: &str = "#c9d1d9";
const BACKGROUND: &str = "#161b22";

/// Draws the screen as an SVG document. Each run of cells has the width of its cells in any font.
pub fn svg(buffer: &Buffer) -> String {
    let columns = usize::from(buffer.area.width);
    let width = 2.0 * MARGIN + WIDTH * columns as f64;
    let height = 2.0 * MARGIN + HEIGHT * f64::from(buffer.area.height);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"SFMono-Regular, Consolas, Liberation Mono, Menlo, monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"4.5\" fill=\"{BACKGROUND}\"/>\n"
    );
    for (number, row) in buffer.content.chunks(columns).enumerate() {
        let mut first = 0;
        for run in row.chunk_by(|one, other| style_of(one) == style_of(other)) {
            draw(&mut svg, run, first, number);
            first += run.len();
        }
    }
    svg + "</svg>\n"
}

/// What makes cells look alike; a blank may have any colour of text.
fn style_of(cell: &Cell) -> (Color, Color, Modifier) {
    (cell.fg, cell.bg, cell.modifier)
}

fn draw(svg: &mut String, run: &[Cell], first: usize, row: usize) {
    let (x, y) = (MARGIN + WIDTH * first as f64, MARGIN + HEIGHT * row as f64);
    let text: String = run.iter().map(Cell::symbol).collect();
    let is_reversed = run[0].modifier.contains(Modifier::REVERSED);
    let color = if is_reversed {
        BACKGROUND
    } else {
        hex(run[0].fg)
    };
    let mut add = |element: String| {
        // Writing to a string cannot fail.
        _ = writeln!(svg, "{element}");
    };
    if is_reversed {
        let width = WIDTH * run.len() as f64;
        add(format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" fill=\"{TEXT}\"/>"
        ));
    }
    let shown = text.trim();
    if shown.is_empty() {
        return;
    }
    let blanks = text.chars().take_while(|it| *it == ' ').count();
    let x = x + WIDTH * blanks as f64;
    let length = WIDTH * shown.chars().count() as f64;
    let mut style = String::new();
    if run[0].modifier.contains(Modifier::BOLD) {
        style += " font-weight=\"bold\"";
    }
    if run[0].modifier.contains(Modifier::DIM) {
        style += " opacity=\"0.65\"";
    }
    let escaped = shown.replace('&', "&amp;").replace('<', "&lt;");
    add(format!(
        "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{length:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
         xml:space=\"preserve\" fill=\"{color}\"{style}>{escaped}</text>",
        y + 0.75 * HEIGHT
    ));
}

fn hex(color: Color) -> &'static str {
    match color {
        Color::Red => "#ff7b72",
        Color::Green => "#3fb950",
        Color::Yellow => "#d29922",
        Color::Cyan => "#61d6d6",
        Color::DarkGray => "#8b949e",
        _ => TEXT,
    }
}
