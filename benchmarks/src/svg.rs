//! Drawing of SVG pictures.

use std::fmt::Write;

/// A picture under construction.
#[derive(Debug)]
pub struct Svg(String);

impl Svg {
    pub fn new(width: f64, height: f64) -> Self {
        Self(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="13">
<style>
.ground {{ fill: #ffffff }} .title {{ font-size: 16px; font-weight: bold }} .panel {{ font-weight: bold }}
.note {{ font-size: 11px; fill: #555555 }} .figure {{ font-size: 12px; fill: #333333 }}
.memlb {{ fill: #1f6fb2 }} .still {{ fill: #f3e3d3 }} .bad {{ font-weight: bold; fill: #d1420b }} .peer {{ fill: #b8bec6 }}
.grid {{ stroke: #888888; stroke-dasharray: 2 3 }} .spread {{ stroke: #222222; stroke-width: 1.5 }} .goal {{ stroke: #d1420b; stroke-width: 2.5 }}
</style>
<rect class="ground" width="100%" height="100%"/>
"#
        ))
    }

    pub fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.put(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}" xml:space="preserve">{text}</text>"#
        ));
    }

    pub fn bar(&mut self, x: f64, y: f64, (width, height): (f64, f64), class: &str) {
        self.put(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}"/>"#
        ));
    }

    pub fn line(&mut self, x1: f64, y1: f64, x2: f64, y2: f64, class: &str) {
        self.put(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        _ = writeln!(self.0, "{element}");
    }

    pub fn finish(mut self) -> String {
        self.0 += "</svg>\n";
        self.0
    }
}
