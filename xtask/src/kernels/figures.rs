//! The verifier's instruction counts of each program, recorded in tests/packets/verifier.txt.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use memlb_tests::{command::line, kernel::Series, privilege::REQUIRED};

use crate::{
    privilege::as_root,
    workspace::{print_message, root},
};

/// The test that prints the counts.
pub const TEST: &[&str] = &["verifier::prints_the_figures", "--exact", "--ignored"];

const HEADING: &str = "# Written by `cargo xtask kernels --record`.\n";

/// Instruction counts by kernel series and program.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures(BTreeMap<Series, BTreeMap<String, u64>>);

impl Figures {
    /// Reads the recorded counts.
    pub fn read() -> Result<Self> {
        let file = file();
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let mut figures = Self::default();
        for figure in text.lines().filter_map(figure) {
            figures.add(figure);
        }
        Ok(figures)
    }

    /// Replaces the counts of each series that occurs in a report.
    pub fn replace_reported(&mut self, report: &str) {
        let prefixed = report
            .lines()
            .filter_map(|line| line.split_once("verified "));
        let reported: Vec<_> = prefixed.filter_map(|(_, line)| figure(line)).collect();
        for (series, ..) in &reported {
            self.0.remove(series);
        }
        for figure in reported {
            self.add(figure);
        }
    }

    /// Records the counts.
    pub fn write(&self) -> Result<()> {
        let file = file();
        fs::write(&file, self.text()).with_context(|| format!("write {}", file.display()))?;
        print_message(format!("wrote {}", file.display()));
        Ok(())
    }

    fn add(&mut self, (series, program, instructions): (Series, String, u64)) {
        let programs = self.0.entry(series).or_default();
        programs.insert(program, instructions);
    }

    fn text(&self) -> String {
        let mut text = HEADING.to_owned();
        for (series, programs) in &self.0 {
            for (program, instructions) in programs {
                writeln!(text, "{series} {program} {instructions}")
                    .expect("writing to a string does not fail");
            }
        }
        text
    }
}

/// Returns the output of the test on this machine's kernel.
pub fn of_this_machine(packets: &Path) -> Result<String> {
    let mut test = as_root("env");
    test.arg(format!("{REQUIRED}=1")).arg(packets).args(TEST);
    let output = test
        .output()
        .with_context(|| format!("start `{}`", line(&test)))?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    ensure!(output.status.success(), "`{}`: {printed}", line(&test));
    Ok(printed)
}

fn file() -> PathBuf {
    root().join("tests/packets/verifier.txt")
}

/// Parses a line such as `6.1 memlb_xdp 1000`.
fn figure(line: &str) -> Option<(Series, String, u64)> {
    let mut words = line.split_whitespace();
    let series = words.next()?.parse().ok()?;
    let program = words.next()?.to_owned();
    let instructions = words.next()?.parse().ok()?;
    words
        .next()
        .is_none()
        .then_some((series, program, instructions))
}

#[cfg(test)]
mod tests {
    use super::{Figures, HEADING, figure};

    #[test]
    fn records_the_figures_of_a_report() {
        let mut figures = Figures::default();
        for line in ["6.1 memlb_old 1", "6.1 memlb_tc 2", "6.12 memlb_tc 3"] {
            figures.add(figure(line).expect("a figure"));
        }
        figures.replace_reported(
            "test prints ... verified 6.1 memlb_tc 4\nverified 6.1 memlb_xdp 5\nok\n",
        );
        let expected = "6.1 memlb_tc 4\n6.1 memlb_xdp 5\n6.12 memlb_tc 3\n";
        assert_eq!(figures.text(), format!("{HEADING}{expected}"));
    }

    #[test]
    fn ignores_other_lines() {
        for line in [HEADING.trim_end(), "", "6.1 memlb_tc", "6.1 memlb_tc 1 2"] {
            assert_eq!(figure(line), None, "{line}");
        }
    }
}
