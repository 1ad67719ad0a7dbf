//! The command line: one file a family of verbs.

mod agent;
mod check;
mod keygen;
mod manager;
mod source;
mod status;
mod unload;

use std::{future::Future, io::IsTerminal, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use memlb::config::ConfigError;
use tracing_subscriber::EnvFilter;

/// A load balancer in the kernel, steered by the memory of its workers
#[derive(Parser)]
#[command(version, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_STATUS: &str = "Exit status: 0 success, 1 failure at run time, 2 wrong usage or \
configuration.\nMore or less of the log: RUST_LOG=debug, RUST_LOG=warn.";

#[derive(Subcommand)]
enum Verb {
    Manager(manager::Args),
    Agent(agent::Args),
    Status(status::Args),
    Unload(unload::Args),
    Check(check::Args),
    Keygen(keygen::Args),
}

/// Why a verb failed, which tells the exit status.
enum Failure {
    /// Wrong usage or configuration.
    Usage(anyhow::Error),
    RunTime(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::RunTime(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

type Outcome = Result<(), Failure>;

pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stdout().is_terminal())
        .init();
    let outcome = match cli.verb {
        Verb::Manager(args) => manager::run(args),
        Verb::Agent(args) => agent::run(args),
        Verb::Status(args) => status::run(&args),
        Verb::Unload(args) => unload::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Keygen(args) => keygen::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::RunTime(error)) => {
            eprintln!("memlb: {error:#}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(error)) => {
            eprintln!("memlb: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs a task to its end on this thread; blocking work has threads of its own.
fn block_on<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(task)
}
