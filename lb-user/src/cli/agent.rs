//! `memlb agent`: a worker's heartbeats.

use std::{path::PathBuf, time::Duration};

use memlb::agent::{self, Settings};

use super::{Failure, Outcome, block_on};

/// Send this worker's available memory to the managers
#[derive(clap::Args)]
pub struct Args {
    /// A manager's address or name; may be repeated
    #[arg(long = "manager", value_name = "ADDR[:PORT]", required = true)]
    managers: Vec<String>,

    /// This worker's name, as the managers' configuration has it
    #[arg(long)]
    name: String,

    /// How often to send
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    interval: Duration,

    /// Read memory from this file instead of /proc/meminfo; it has that file's form
    #[arg(long, value_name = "FILE")]
    memory_file: Option<PathBuf>,

    /// Do not print each heartbeat
    #[arg(long)]
    quiet: bool,
}

pub fn run(args: Args) -> Outcome {
    let usage = |text: String| Err(Failure::Usage(anyhow::anyhow!(text)));
    if args.interval < Duration::from_millis(1) {
        return usage("--interval must be at least 1ms".to_owned());
    }
    if let Err(problem) = memlb::heartbeat::check_name(&args.name) {
        return usage(format!(
            "--name {:?} cannot name a worker: {problem}",
            args.name
        ));
    }
    Ok(block_on(agent::run(Settings {
        managers: args.managers,
        name: args.name,
        interval: args.interval,
        memory_file: args.memory_file,
        quiet: args.quiet,
    }))?)
}
