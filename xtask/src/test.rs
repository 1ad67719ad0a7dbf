//! All tests of all levels.

mod container;
mod containers;
mod debian;
mod guide;
mod package;
mod privileged;
mod python;
mod scripts;
mod sources;
mod test_program;
mod try_package;

pub use package::check as check_package;
pub use try_package::{TryPackage, try_package};

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use memlb_tests::{cluster::BINARY, command::run};

use self::test_program::Durations;
use crate::{
    build,
    build_ebpf::FOR_THE_KERNEL,
    interrupt::Interrupt,
    kernels::{self, Background},
    package::package_of,
    privilege::this_program_as_root,
    setup,
    workspace::{cargo, print_message},
};

const OTHER_KERNELS: &str = "other kernels";
/// Runs only if it is named, or at night: with emulated machines it takes longer than all other parts together.
const MACHINES: &str = "machines under QEMU";
/// Runs only if it is named, or at night.
const IPVS: &str = "keepalived with IPVS";
const PACKAGE: &str = "package";

/// Runs the `parts`, or all parts, also after a failure. Returns success only if no part failed. Without `parts`, the
/// machines under QEMU and keepalived with IPVS run only `at_night`.
///
/// # Errors
/// The setup or the build failed.
pub fn all(parts: Vec<String>, at_night: bool) -> Result<ExitCode> {
    let compiler = setup::for_tests()?;
    let memlb = build::memlb()?;
    let package = package_of(&memlb)?;

    let interrupt = Interrupt::catch()?;
    let durations = Durations::default();
    let mut suite = Suite {
        parts,
        interrupt: interrupt.clone(),
        outcomes: Vec::new(),
    };
    // The emulation runs at idle priority beside the other parts.
    let other_kernels = suite
        .has(OTHER_KERNELS)
        .then(|| Background::start(&memlb, &interrupt));
    suite.check("formatting", || {
        run(cargo().args(["fmt", "--all", "--check"]))
    });
    suite.check("spelling and retired words", sources::spelling);
    suite.check("TOML files", sources::toml);
    suite.check("clippy", || {
        run(cargo()
            .args("clippy --workspace --exclude=lb-ebpf --all-targets".split(' '))
            .args(["--", "--deny=warnings"]))
    });
    if compiler.has_clippy() {
        suite.check("clippy of the kernel programs", || {
            let mut cargo = compiler.cargo();
            run(cargo
                .arg("clippy")
                .args(FOR_THE_KERNEL)
                .args(["--", "--deny=warnings"]))
        });
    } else {
        print_message("clippy skips the kernel programs, because their compiler has none");
    }
    // After clippy: cargo has then fetched all crates.
    suite.check("dependencies", sources::dependencies);
    suite.check("documentation", || {
        run(cargo()
            .args("doc --workspace --exclude=lb-ebpf --no-deps --quiet".split(' '))
            .env("RUSTDOCFLAGS", "--deny=warnings"))
    });
    suite.check("tests without privileges", || {
        let others = ["lb-ebpf", "memlb-tests", "memlb-test-macros"];
        let others = others.map(|name| format!("--exclude={name}"));
        run(cargo().args(["test", "--workspace"]).args(others))
    });
    // Beside the tests: both wait for most of their time.
    let packaged = suite.has(PACKAGE).then(|| {
        let package = package.clone();
        thread::spawn(move || package::check(&package))
    });
    suite.check("tests in network namespaces", || {
        privileged::run_all(&memlb, &interrupt, &durations)
    });
    suite.check("demo of the lab", || {
        run(this_program_as_root(BINARY, &memlb)?.args(["lab", "demo"]))
    });
    if let Some(packaged) = packaged {
        suite.check(PACKAGE, || {
            let outcome = packaged.join();
            outcome.unwrap_or_else(|_| Err(anyhow!("panicked")))
        });
    }
    suite.check("alert rules", scripts::alert_rules);
    suite.check("shell scripts", scripts::shellcheck);
    suite.check("Vagrantfile", scripts::vagrant);
    suite.check("systemd services", scripts::units);
    suite.check("provisioning", || scripts::provisioning(&package));
    suite.check("smoke test", || scripts::smoke(&memlb));
    if at_night || !suite.parts.is_empty() {
        suite.check(IPVS, || kernels::run(&kernels::Options::only("ipvs")));
        suite.check(MACHINES, || crate::machines::test(&package));
    }
    if let Some(background) = other_kernels {
        suite.check(OTHER_KERNELS, || background?.join());
    }
    durations.print();
    Ok(suite.conclude())
}

/// The parts to run, and the outcomes of those that have run.
struct Suite {
    /// The parts to run have one of these texts in their names; empty: all parts.
    parts: Vec<String>,
    interrupt: Interrupt,
    outcomes: Vec<PartOutcome>,
}

struct PartOutcome {
    what: &'static str,
    took: Duration,
    failure: Option<anyhow::Error>,
}

impl Suite {
    fn check(&mut self, what: &'static str, check: impl FnOnce() -> Result<()>) {
        if !self.has(what) {
            return;
        }
        print_message(format!("testing: {what}"));
        let started_at = Instant::now();
        let failure = self.interrupt.check().and_then(|()| check()).err();
        if let Some(failure) = &failure {
            print_message(format!("{what}: {failure:#}"));
        }
        self.outcomes.push(PartOutcome {
            what,
            took: started_at.elapsed(),
            failure,
        });
    }

    fn has(&self, what: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|part| what.contains(part))
    }

    fn conclude(self) -> ExitCode {
        println!();
        for outcome in &self.outcomes {
            let verdict = match outcome.failure {
                Some(_) => "FAILED",
                None => "passed",
            };
            let took = outcome.took.as_secs_f64();
            println!("{verdict}  {:<40}{took:>7.1} s", outcome.what);
        }
        let outcomes = self.outcomes.iter();
        match outcomes.filter(|it| it.failure.is_some()).count() {
            0 => {
                println!("all passed");
                ExitCode::SUCCESS
            }
            count => {
                println!("{count} of {} failed", self.outcomes.len());
                ExitCode::FAILURE
            }
        }
    }
}
