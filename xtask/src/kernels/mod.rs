//! Other kernels: boots Debian's under emulation and tries memlb inside, without KVM and without root.

mod figures;
mod initramfs;
mod machine;
mod package;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use memlb_tests::{command::output, kernel::Series};

use self::{
    figures::Figures, initramfs::Initramfs, machine::Machine, package::Kernel, report::Suite,
};
use crate::{
    build,
    interrupt::Interrupt,
    setup, test_binaries,
    workspace::{find_program, say, target},
};

/// Debian's kernels that memlb is tried on, beside the one of the machine at hand: without tcx, and
/// with it.
const SERIES: [Series; 2] = [
    Series { major: 6, minor: 1 },
    Series {
        major: 6,
        minor: 12,
    },
];

/// What the guest's kernel needs for the tests, beside what is built into it.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
];

/// What the tests start, beside memlb.
const PROGRAMS: &[&str] = &["busybox", "ip", "tc", "ethtool", "nsenter", "nginx"];

/// Far more than a guest takes.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

const SHOWN_LINES: usize = 100;

/// Which kernels to boot, and what for.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these series of kernels, such as 6.12
    series: Vec<Series>,
    /// Puts on record how many instructions the verifier goes through, here and there, instead of
    /// running the tests
    #[arg(long)]
    record: bool,
}

/// Carries out the task.
///
/// # Errors
/// When a test fails on one of the kernels, or cannot be run there.
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
    try_on(&memlb, &tests, &tests.all()?, series).map(drop)
}

fn record(memlb: &Path, tests: &Tests, series: &[Series]) -> Result<()> {
    let suite = tests.suite("packets", figures::TEST)?;
    let mut figures = Figures::read()?;
    figures.take_from(&figures::of_this_machine(tests.file("packets")?)?);
    for report in try_on(memlb, tests, &[suite], series)? {
        figures.take_from(&report);
    }
    figures.write()
}

/// Boots all kernels at once, since each has one processor. Returns their reports.
fn try_on(memlb: &Path, tests: &Tests, suites: &[Suite], series: &[Series]) -> Result<Vec<String>> {
    let interrupt = Interrupt::catch()?;
    let cache = target().join("kernels");
    let mut guests = Vec::new();
    for series in series {
        let kernel = Kernel::provide(*series, &cache)?;
        let directory = cache.join(series.to_string());
        guests.push(Guest::prepare(kernel, directory, memlb, tests, suites)?);
    }
    let outcomes = thread::scope(|scope| {
        let interrupt = &interrupt;
        let start = |guest| scope.spawn(move || Guest::run(guest, suites, interrupt));
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

/// A machine that is ready to be switched on.
struct Guest {
    kernel: Kernel,
    machine: Machine,
}

impl Guest {
    fn prepare(
        kernel: Kernel,
        directory: PathBuf,
        memlb: &Path,
        tests: &Tests,
        suites: &[Suite],
    ) -> Result<Self> {
        // What an earlier machine has said must not be taken for this one's words.
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let files = Initramfs::new(&directory)?;
        files.add_text(include_str!("guest.sh"), "/init")?;
        files.add_text("root:x:0:0:root:/tmp:/bin/false\n", "/etc/passwd")?;
        files.add_text("root:x:0:\n", "/etc/group")?;
        for (number, module) in (100..).zip(kernel.modules(MODULES)?) {
            files.add_module(&module, &format!("/modules/{number}.ko"))?;
        }
        for name in PROGRAMS {
            let program = find_program(name).with_context(|| format!("there is no {name}"))?;
            files.add_program(&program, &format!("/bin/{name}"))?;
        }
        files.add_program(memlb, "/bin/memlb")?;
        for suite in suites {
            let program = tests.file(&suite.name)?;
            files.add_program(program, &format!("/tests/{}", suite.name))?;
        }
        files.add_text(&report::script(suites), "/tests/list")?;
        let machine = Machine {
            kernel: kernel.image(),
            initramfs: directory.join("initramfs.cpio"),
            directory,
        };
        files.pack(&machine.initramfs)?;
        Ok(Self { kernel, machine })
    }

    fn run(&self, suites: &[Suite], interrupt: &Interrupt) -> Result<String> {
        let release = &self.kernel.release;
        say(format!("booting Linux {release}"));
        let took = self.machine.run(DEADLINE, interrupt)?;
        let report = self.machine.report()?;
        let passed = report::passed(&report, release, suites)?;
        say(format!(
            "Linux {release}: {passed} tests passed in {} s",
            took.as_secs()
        ));
        Ok(report)
    }

    /// Shows the ends of what the tests and the kernel have said.
    fn show_logs(&self) {
        let release = &self.kernel.release;
        for (of, text) in [
            ("kernel", self.machine.console()),
            ("tests", self.machine.report()),
        ] {
            let text = text.unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            say(format!(
                "--- the end of what the {of} said on Linux {release} ---\n{last}"
            ));
        }
        say(format!(
            "all of it is in {}",
            self.machine.directory.display()
        ));
    }
}

/// The test programs that run in the guests.
struct Tests {
    programs: Vec<(String, PathBuf)>,
}

impl Tests {
    fn build() -> Result<Self> {
        let programs = test_binaries::build(&["--test=packets", "--test=kernels"])?;
        Ok(Self { programs })
    }

    fn file(&self, name: &str) -> Result<&Path> {
        let mut programs = self.programs.iter();
        let found = programs.find(|(program, _)| program == name);
        let (_, file) = found.with_context(|| format!("there are no tests {name}"))?;
        Ok(file)
    }

    fn all(&self) -> Result<Vec<Suite>> {
        let names = self.programs.iter().map(|(name, _)| name);
        names
            .map(|name| self.suite(name, &["--include-ignored"]))
            .collect()
    }

    /// The tests of a program that `arguments` choose.
    fn suite(&self, name: &str, arguments: &[&str]) -> Result<Suite> {
        let list = output(
            Command::new(self.file(name)?)
                .args(arguments)
                .args(["--list", "--format=terse"]),
        )?;
        Ok(Suite {
            name: name.to_owned(),
            arguments: arguments.iter().map(|it| (*it).to_owned()).collect(),
            tests: list.lines().filter(|line| line.ends_with(": test")).count(),
        })
    }
}
