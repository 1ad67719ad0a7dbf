//! Checks the guest's report of its tests.
//!
//! Missing output is a failure: every suite must have ended with success and with the expected number of passed tests,
//! and the guest's script must have ended.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

/// A test program that a guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSuite {
    pub name: String,
    pub arguments: Vec<String>,
    /// Number of tests that the arguments select.
    pub tests: usize,
}

/// The last line of the guest's script.
const END: &str = "memlb: the end";

/// The input of the guest's script: one line for each suite.
pub fn script(suites: &[GuestSuite]) -> String {
    suites.iter().fold(String::new(), |mut script, suite| {
        let arguments = suite.arguments.join(" ");
        writeln!(script, "{} {arguments}", suite.name).expect("writing to a string does not fail");
        script
    })
}

/// Returns the number of passed tests.
///
/// # Errors
/// The report is not of the kernel `release`, or not all tests of all suites have passed.
pub fn passed(report: &str, release: &str, suites: &[GuestSuite]) -> Result<usize> {
    let kernel = format!("memlb: Linux {release}");
    ensure!(
        report.lines().any(|line| line == kernel),
        "the guest's report has no line \"{kernel}\""
    );
    for suite in suites {
        check(report, suite)?;
    }
    ensure!(
        report.lines().any(|line| line == END),
        "the guest's report has no line \"{END}\""
    );
    Ok(suites.iter().map(|suite| suite.tests).sum())
}

/// Returns the durations of the suites by the guest's clock, as `packets 120 s, kernels 30 s`.
pub fn durations(report: &str) -> String {
    let mut durations: Vec<String> = Vec::new();
    let mut suite = "";
    for line in report.lines() {
        suite = line.strip_prefix("memlb: running ").unwrap_or(suite);
        if let Some((_, seconds)) = line.split_once("; finished in ") {
            durations.push(format!("{suite} {seconds}"));
        }
    }
    durations.join(", ")
}

fn check(report: &str, suite: &GuestSuite) -> Result<()> {
    let GuestSuite { name, tests, .. } = suite;
    let begins = format!("memlb: running {name}");
    let ends = format!("memlb: {name} ended with ");
    let mut lines = report.lines().skip_while(|line| *line != begins);
    ensure!(lines.next().is_some(), "{name} did not start");
    let mut result = None;
    let status = lines.find_map(|line| {
        if line.starts_with("test result: ") {
            result = Some(line);
        }
        line.strip_prefix(&ends)
    });
    ensure!(status.is_some(), "{name} did not end");
    ensure!(
        status == Some("0"),
        "{name} failed: {}",
        result.unwrap_or("no test result")
    );
    let expected = format!("test result: ok. {tests} passed; 0 failed; 0 ignored;");
    ensure!(
        *tests > 0 && result.is_some_and(|result| result.starts_with(&expected)),
        "the result of {name} is {result:?}, not \"{expected}\""
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{GuestSuite, durations, passed, script};

    const RELEASE: &str = "6.1.0-56-cloud-amd64";

    const GOOD: &str = "memlb: Linux 6.1.0-56-cloud-amd64
memlb: running packets

running 2 tests
test one ... ok
test other ... ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s

memlb: packets ended with 0
memlb: running kernels
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
memlb: kernels ended with 0
memlb: the end
";

    fn suites() -> [GuestSuite; 2] {
        [("packets", 2), ("kernels", 1)].map(|(name, tests)| GuestSuite {
            name: name.into(),
            arguments: vec!["--include-ignored".into()],
            tests,
        })
    }

    #[test]
    fn accepts_a_complete_report() {
        assert_eq!(passed(GOOD, RELEASE, &suites()).ok(), Some(3));
    }

    #[test]
    fn reads_the_durations_of_suites() {
        assert_eq!(durations(GOOD), "packets 1.00s, kernels 1.00s");
    }

    #[test]
    fn refuses_incomplete_reports() {
        for (what, was, is) in [
            ("another kernel", "Linux 6.1.0", "Linux 6.12.0"),
            (
                "a failure",
                "packets ended with 0",
                "packets ended with 101",
            ),
            (
                "a failed test",
                "ok. 2 passed; 0 failed",
                "FAILED. 1 passed; 1 failed",
            ),
            ("a test less", "ok. 2 passed", "ok. 1 passed"),
            (
                "an ignored test",
                "ok. 1 passed; 0 failed; 0 ignored",
                "ok. 0 passed; 0 failed; 1 ignored",
            ),
            ("a suite that did not run", "running kernels", "running"),
            ("a suite without a result", "test result: ok. 1", "test"),
            ("a suite without an end", "kernels ended with 0\n", ""),
            ("no end", "memlb: the end\n", ""),
            ("an end cut short", "the end\n", "the e"),
        ] {
            let report = GOOD.replacen(was, is, 1);
            assert_ne!(report, GOOD, "{what}");
            assert!(passed(&report, RELEASE, &suites()).is_err(), "{what}");
        }
        let [mut packets, _] = suites();
        packets.tests = 0;
        assert!(
            passed(GOOD, RELEASE, &[packets]).is_err(),
            "no tests at all"
        );
    }

    #[test]
    fn lists_what_the_guest_runs() {
        let expected = "packets --include-ignored\nkernels --include-ignored\n";
        assert_eq!(script(&suites()), expected);
    }
}
