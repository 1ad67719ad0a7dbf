//! Tests on other kernels: boots Debian's kernels under emulation, without KVM and without root.

mod figures;
mod guest;
mod initramfs;
mod machine;
mod package;
mod report;

pub use guest::{Guest, Load, pack};
pub use package::Kernel;

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use memlb_tests::{command::output, kernel::Series};

use self::{figures::Figures, report::GuestSuite};
use crate::{
    build,
    interrupt::Interrupt,
    setup, test_binaries,
    workspace::{print_message, target},
};

/// Series of Debian's kernels for the tests, in addition to this machine's kernel: one without tcx, and one with it.
const SERIES: [Series; 2] = [
    Series { major: 6, minor: 1 },
    Series {
        major: 6,
        minor: 12,
    },
];

/// Prefix of the names of tests that need IPVS, with their modules and programs. They run only if `--only` names them.
const IPVS: &str = "ipvs";
const IPVS_MODULES: &[&str] = &["ip_vs", "ip_vs_rr"];
const IPVS_PROGRAMS: &[&str] = &["keepalived", "sysctl"];

/// Far more than a guest takes, also at idle priority.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

/// The kernels to boot, and the tests to run.
#[derive(Debug, Args)]
pub struct Options {
    /// Test only these series of kernels, such as 6.12
    series: Vec<Series>,
    /// Record the verifier's instruction counts, on this kernel and on those, instead of running the tests
    #[arg(long)]
    record: bool,
    /// Run only the tests whose names contain this, such as `ipvs`, which is skipped otherwise
    #[arg(long, value_name = "NAME", conflicts_with = "record")]
    only: Option<String>,
}

impl Options {
    /// The tests whose names contain `name`, on all kernels.
    pub fn only(name: &str) -> Self {
        Self {
            series: Vec::new(),
            record: false,
            only: Some(name.to_owned()),
        }
    }
}

/// Runs the tests, or records the verifier's counts.
///
/// # Errors
/// A test failed on one of the kernels, or could not run there.
pub fn run(options: &Options) -> Result<()> {
    setup::for_kernels()?;
    let memlb = build::memlb()?;
    let series = match &options.series[..] {
        [] => &SERIES[..],
        series => series,
    };
    let tests = Tests::build()?;
    if options.record {
        return record(&memlb, &tests, series);
    }
    let interrupt = Interrupt::catch()?;
    let suites = match &options.only {
        Some(name) => tests.named(name)?,
        None => tests.all()?,
    };
    test_on(&memlb, &tests, &suites, series, &interrupt).map(drop)
}

/// A run of all tests on all kernels, in the background.
#[derive(Debug)]
pub struct Background(JoinHandle<Result<()>>);

impl Background {
    /// Builds the tests, then starts the run, which removes the kernels at its end.
    ///
    /// # Errors
    /// The build of the tests failed.
    pub fn start(memlb: &Path, interrupt: &Interrupt) -> Result<Self> {
        let tests = Tests::build()?;
        let (memlb, interrupt) = (memlb.to_owned(), interrupt.clone());
        Ok(Self(thread::spawn(move || {
            let outcome = test_on(&memlb, &tests, &tests.all()?, &SERIES, &interrupt);
            let removed = Kernel::remove_all(&cache());
            outcome?;
            removed
        })))
    }

    /// Waits for the end of the run.
    ///
    /// # Errors
    /// A test failed on one of the kernels, or could not run there.
    pub fn join(self) -> Result<()> {
        self.0.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
    }
}

/// The directory of kernels and of the guests' output.
pub fn cache() -> PathBuf {
    target().join("kernels")
}

fn record(memlb: &Path, tests: &Tests, series: &[Series]) -> Result<()> {
    let interrupt = Interrupt::catch()?;
    let suite = tests.suite("packets", figures::TEST)?;
    let mut figures = Figures::read()?;
    figures.replace_reported(&figures::of_this_machine(tests.file("packets")?)?);
    for report in test_on(memlb, tests, &[suite], series, &interrupt)? {
        figures.replace_reported(&report);
    }
    figures.write()
}

/// Boots all kernels at the same time, one processor each. Returns their reports.
fn test_on(
    memlb: &Path,
    tests: &Tests,
    suites: &[GuestSuite],
    series: &[Series],
    interrupt: &Interrupt,
) -> Result<Vec<String>> {
    let cache = cache();
    let mut guests = Vec::new();
    for series in series {
        let kernel = Kernel::provide(*series, &cache)?;
        let directory = cache.join(series.to_string());
        guests.push(Guest::prepare(
            kernel,
            directory,
            &tests.load(memlb, suites)?,
        )?);
    }
    let outcomes = thread::scope(|scope| {
        let start = |guest| scope.spawn(move || test_in(guest, suites, interrupt));
        let guests: Vec<_> = guests.iter().map(start).collect();
        let join = |guest: thread::ScopedJoinHandle<'_, _>| {
            guest.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
        };
        guests
            .into_iter()
            .map(join)
            .collect::<Vec<Result<String>>>()
    });
    let mut reports = Vec::new();
    let mut failed = Vec::new();
    for (guest, outcome) in guests.iter().zip(outcomes) {
        match outcome {
            Ok(report) => reports.push(report),
            Err(error) => {
                guest.show_logs();
                failed.push(format!("Linux {}: {error:#}", guest.kernel.release));
            }
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(reports)
}

/// Runs the suites in a guest. All must pass. Returns its report.
fn test_in(guest: &Guest, suites: &[GuestSuite], interrupt: &Interrupt) -> Result<String> {
    let release = &guest.kernel.release;
    let (report, took) = guest.run(DEADLINE, interrupt)?;
    let passed = report::passed(&report, release, suites)?;
    print_message(format!(
        "Linux {release}: {passed} tests passed in {} s (by the guest's clock: {})",
        took.as_secs(),
        report::durations(&report)
    ));
    Ok(report)
}

/// The test programs that run in the guests.
struct Tests {
    programs: Vec<(String, PathBuf)>,
}

impl Tests {
    fn build() -> Result<Self> {
        // Optimized, because every instruction is emulated.
        let programs = test_binaries::build(&["--release", "--test=packets", "--test=kernels"])?;
        Ok(Self { programs })
    }

    fn file(&self, name: &str) -> Result<&Path> {
        let mut programs = self.programs.iter();
        let found = programs.find(|(program, _)| program == name);
        let (_, file) = found.with_context(|| format!("there are no tests {name}"))?;
        Ok(file)
    }

    /// The load of a guest for these suites.
    fn load<'a>(&'a self, memlb: &'a Path, suites: &'a [GuestSuite]) -> Result<Load<'a>> {
        let tasks = suites.iter().map(|GuestSuite { name, .. }| {
            let program = self.file(name)?;
            Ok((name.as_str(), program))
        });
        let mut arguments = suites.iter().flat_map(|suite| &suite.arguments);
        let (modules, programs) = match arguments.any(|it| it.starts_with(IPVS)) {
            true => (IPVS_MODULES, IPVS_PROGRAMS),
            false => (&[][..], &[][..]),
        };
        Ok(Load {
            memlb,
            modules,
            programs,
            files: Vec::new(),
            tasks: tasks.collect::<Result<_>>()?,
            script: report::script(suites),
        })
    }

    fn all(&self) -> Result<Vec<GuestSuite>> {
        self.selected(&["--include-ignored", "--skip=ipvs"])
    }

    /// The tests of all programs that `arguments` select.
    fn selected(&self, arguments: &[&str]) -> Result<Vec<GuestSuite>> {
        let names = self.programs.iter().map(|(name, _)| name);
        names.map(|name| self.suite(name, arguments)).collect()
    }

    /// The tests whose names contain `part`; at least one.
    fn named(&self, part: &str) -> Result<Vec<GuestSuite>> {
        let mut suites = self.selected(&["--include-ignored", part])?;
        suites.retain(|suite| suite.tests > 0);
        ensure!(!suites.is_empty(), "no test has `{part}` in its name");
        Ok(suites)
    }

    /// The tests of a program that `arguments` select.
    fn suite(&self, name: &str, arguments: &[&str]) -> Result<GuestSuite> {
        let list = output(
            Command::new(self.file(name)?)
                .args(arguments)
                .args(["--list", "--format=terse"]),
        )?;
        Ok(GuestSuite {
            name: name.to_owned(),
            arguments: arguments.iter().map(|it| (*it).to_owned()).collect(),
            tests: list.lines().filter(|line| line.ends_with(": test")).count(),
        })
    }
}
