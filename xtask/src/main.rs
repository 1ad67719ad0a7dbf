//! `cargo xtask`: the table of this project's tasks.

mod bench;
mod build;
mod build_ebpf;
mod ebpf_compiler;
mod packages;
mod privilege;
mod setup;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Sets up, builds, shows and tests memlb on this machine.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Installs what is missing here for every other task
    Setup,
    /// Builds the `memlb` binary, kernel programs included
    Build,
    /// Builds only the kernel programs, to target/ebpf/memlb.bpf.o
    BuildEbpf,
    /// Measures memlb beside its peers on this machine
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let task = Task::parse();
    run(task).unwrap_or_else(|error| {
        workspace::say(format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> Result<ExitCode> {
    privilege::refuse_to_run_under_sudo()?;
    match task {
        Task::Setup => setup::for_tests()?,
        Task::Build => build::memlb().map(drop)?,
        Task::BuildEbpf => build_ebpf::build_ebpf().map(drop)?,
        Task::Bench(options) => bench::bench(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}
