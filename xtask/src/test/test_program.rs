//! One test program, run as root in namespaces of its own.

use std::{
    cmp::Reverse,
    fs::File,
    io::{Read, Seek, Write},
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memlb_tests::mounts::PRIVATE_MOUNTS;

use crate::{
    privilege::as_root,
    workspace::{print_message, root},
};

/// Duration of each run of a program.
#[derive(Default)]
pub struct Durations(Mutex<Vec<(String, Duration)>>);

impl Durations {
    fn add(&self, program: &str, took: Duration) {
        let mut durations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        durations.push((program.to_owned(), took));
    }

    /// Prints all, the longest first.
    pub fn print(&self) {
        let mut durations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        durations.sort_by_key(|(_, took)| Reverse(*took));
        let durations: Vec<String> = durations
            .iter()
            .map(|(program, took)| format!("{program} {}", took.as_secs()))
            .collect();
        if !durations.is_empty() {
            println!("\nseconds of test programs: {}", durations.join(", "));
        }
    }
}

pub struct TestProgram {
    pub name: String,
    file: PathBuf,
    environment: Vec<String>,
}

impl TestProgram {
    /// The `environment` consists of arguments of env(1).
    pub fn new(name: String, file: PathBuf, environment: &[String]) -> Self {
        Self {
            name,
            file,
            environment: environment.into(),
        }
    }

    /// Runs the named tests, or all, prints their output at the end, and adds their duration.
    ///
    /// # Errors
    /// The names of the failed tests; empty if the program did not report them.
    pub fn run(&self, tests: &[String], durations: &Durations) -> Result<(), Vec<String>> {
        print_message(format!("running {} as root {}", self.name, tests.join(" ")));
        let started = Instant::now();
        let (passed, output) = self
            .run_to_end(tests)
            .unwrap_or_else(|error| (false, format!("{error:#}\n")));
        let took = started.elapsed();
        durations.add(&self.name, took);
        let seconds = took.as_secs_f64();
        let verdict = if passed { "passed" } else { "FAILED" };
        let mut stdout = std::io::stdout().lock();
        let heading = format!("--- {}: {verdict} after {seconds:.1} s ---", self.name);
        // If printing fails, the exit status still reports the outcome.
        write!(stdout, "\n{heading}{output}").ok();
        if passed {
            return Ok(());
        }
        Err(failed_tests(&output))
    }

    fn run_to_end(&self, tests: &[String]) -> Result<(bool, String)> {
        let mut file = tempfile::tempfile().context("make a file for the output")?;
        let status = self
            .command(tests)
            .stdout(clone_file(&file)?)
            .stderr(clone_file(&file)?)
            .status()
            .with_context(|| format!("start {}", self.name))?;
        let mut output = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut output))
            .with_context(|| format!("read the output of {}", self.name))?;
        let output = String::from_utf8_lossy(&output).into_owned();
        Ok((status.success(), output))
    }

    fn command(&self, tests: &[String]) -> Command {
        let script = format!("{PRIVATE_MOUNTS}ip link set lo up\nexec env \"$@\"");
        let mut command = as_root("unshare");
        command
            .current_dir(root().join("tests"))
            .args(["--net", "--mount", "sh", "-ec", &script, "sh"])
            .args(&self.environment)
            .arg(&self.file)
            // The tests measure time.
            .args(["--test-threads=1", "--exact"])
            .args(tests);
        command
    }
}

fn clone_file(file: &File) -> Result<File> {
    file.try_clone().context("share the file for the output")
}

/// Returns the failed tests that a test program lists at its end.
fn failed_tests(output: &str) -> Vec<String> {
    let Some((_, list)) = output.rsplit_once("\nfailures:\n") else {
        return Vec::new();
    };
    let lines = list.lines().map_while(|line| line.strip_prefix("    "));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::failed_tests;

    #[test]
    fn finds_the_tests_that_failed() {
        let output = "\
test a ... ok
test part::b ... FAILED
test c ... FAILED

failures:

---- part::b stdout ----
    panicked
---- c stdout ----
failures:

failures:
    part::b
    c

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
";
        assert_eq!(failed_tests(output), ["part::b", "c"]);
        assert!(failed_tests("Segmentation fault").is_empty());
    }
}
