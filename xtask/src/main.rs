//! `cargo xtask`: the tasks of this project.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use xtask::{
    build, build_ebpf, image, kernels, lab, machines, package, privilege, run, setup, test,
    workspace,
};

/// Builds, demonstrates and tests memlb on this machine.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Installs the tools that the other tasks need
    Setup,
    /// Builds the `memlb` binary, kernel programs included
    Build,
    /// Builds only the kernel programs, to target/ebpf/memlb.bpf.o
    BuildEbpf,
    /// Builds memlb and starts a manager on this machine, as root
    Run {
        /// Arguments of `memlb manager`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Shows the three-node lab in network namespaces, live, until Ctrl-C
    Lab(lab::LabCommand),
    /// Runs the lab of scripts/vagrant on three Debian machines under QEMU, with systemd and Docker Swarm
    #[command(subcommand)]
    Machines(machines::Machines),
    /// Makes the Debian package, to target/debian/
    Package {
        /// Also test it on clean machines, as `test` does
        #[arg(long)]
        check: bool,
    },
    /// Makes the agent's image for containers, to target/image/memlb-agent.tar
    Image,
    /// Runs all tests of all levels
    Test {
        /// Run only the parts with one of these texts in their names, such as "network namespaces"
        parts: Vec<String>,
        /// Also run the parts that take an hour with emulated machines
        #[arg(long)]
        all: bool,
    },
    /// Tests memlb on Debian's Linux 6.1 and 6.12 under emulation
    Kernels(kernels::Options),
    /// The part of the package's test that needs root
    #[command(hide = true)]
    TryPackage(test::TryPackage),
    /// Compares memlb with other balancers on this machine
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of the benchmarks
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let task = Task::parse();
    start(task).unwrap_or_else(|error| {
        workspace::print_message(format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn start(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::for_tests().map(drop)?,
        Task::Build => build::memlb().map(drop)?,
        Task::BuildEbpf => build_ebpf::build_ebpf().map(drop)?,
        Task::Run { arguments } => run::manager(&arguments)?,
        Task::Lab(lab) => return lab.run(),
        Task::Machines(task) => task.run()?,
        Task::Package { check } => {
            let package = package::make()?;
            if check {
                test::check_package(&package)?;
            }
        }
        Task::Image => image::make().map(drop)?,
        Task::Test { parts, all } => return test::all(parts, all),
        Task::Kernels(options) => kernels::run(&options)?,
        Task::TryPackage(task) => test::try_package(&task)?,
        Task::Bench { arguments } => return Err(bench(&arguments)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Replaces this process by the benchmarks. Returns only on failure.
fn bench(arguments: &[OsString]) -> anyhow::Error {
    let mut cargo = workspace::cargo();
    cargo
        .args(["run", "--quiet", "--package=memlb-benchmarks", "--"])
        .args(arguments);
    privilege::replace_process(cargo)
}
