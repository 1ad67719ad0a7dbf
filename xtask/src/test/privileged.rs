//! The tests that need root. Cargo builds them as the user, so that the target folder stays the user's.
//!
//! Each test program has network and mount namespaces of its own, so that several can run at the same time.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Result, bail};
use memlb_tests::{cluster::BINARY, command, document::XTASK, privilege::REQUIRED};

use super::{
    python,
    test_program::{Durations, TestProgram},
};
use crate::{
    interrupt::Interrupt,
    privilege::this_program,
    test_binaries::build,
    workspace::{cargo, print_message},
};

/// Programs that run at the same time. They wait for most of their time.
const PARALLEL: usize = 3;

/// Programs that load both processors, or measure performance. They run alone.
const ALONE: &[&str] = &["chaos", "crowd", "drift", "flood", "herd"];

/// The longest programs, the longest first: they start first, so that none of them runs alone at the end.
const LONGEST: &[&str] = &[
    "pair",
    "third_party",
    "authentication",
    "lifecycle",
    "doctor",
    "http",
    "transfers",
    "networks",
    "packets",
    "robustness",
    "operations",
    "policies",
    "failover",
    "connection_lookup",
    "reload",
    "retry",
    "dsr",
    "agents",
];

/// Runs every test of the package `memlb-tests`, also after a failure.
pub fn run_all(memlb: &Path, interrupt: &Interrupt, durations: &Durations) -> Result<()> {
    let environment = environment(memlb)?;
    // The tests of documents start the benchmarks.
    command::run(cargo().args(["build", "--package=memlb-benchmarks"]))?;
    let mut programs: Vec<TestProgram> = build(&["--lib", "--tests"])?
        .into_iter()
        .map(|(name, file)| TestProgram::new(name, file, &environment))
        .collect();
    programs.sort_by_key(|program| {
        let rank = LONGEST.iter().position(|name| *name == program.name);
        rank.unwrap_or(LONGEST.len())
    });
    let (alone, together): (Vec<_>, Vec<_>) = programs
        .into_iter()
        .partition(|program| ALONE.contains(&program.name.as_str()));

    // A test that failed may have lacked processor time. It must pass alone.
    let mut second_run = run_together(&together, interrupt, durations);
    second_run.extend(alone.iter().map(|program| (program, Vec::new())));
    let mut failed = Vec::new();
    for (program, tests) in second_run {
        interrupt.check()?;
        if program.run(&tests, durations).is_err() {
            failed.push(program.name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Returns the programs that failed, each with the tests to run again.
fn run_together<'a>(
    programs: &'a [TestProgram],
    interrupt: &Interrupt,
    durations: &Durations,
) -> Vec<(&'a TestProgram, Vec<String>)> {
    let queue = Mutex::new(programs.iter());
    let failed = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || {
        while let Some(program) = next() {
            if interrupt.is_requested() {
                return;
            }
            if let Err(tests) = program.run(&[], durations) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.push((program, tests));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(worker);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the variables with the paths of programs for the tests, as arguments of `env`.
fn environment(memlb: &Path) -> Result<Vec<String>> {
    let mut environment = vec![
        format!("{REQUIRED}=1"),
        format!("{BINARY}={}", memlb.display()),
        format!("{XTASK}={}", this_program()?.display()),
    ];
    match python::provide() {
        Ok(programs) => {
            let schemathesis = programs.join("schemathesis");
            environment.push(format!("MEMLB_SCHEMATHESIS={}", schemathesis.display()));
        }
        // Only the test that needs it fails.
        Err(error) => print_message(format!("{error:#}")),
    }
    Ok(environment)
}
