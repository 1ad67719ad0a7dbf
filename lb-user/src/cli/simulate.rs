//! `memlb simulate`: compares the policies in virtual time.

use std::{
    fs::{self, File},
    io::{BufReader, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, anyhow};
use clap::Parser;
use lb_core::{MemorySettings, SpreadSettings};
use memlb::{
    config::{size, threshold},
    simulate::{Contender, Recording, Results, Scenario, WorkerModel, compare_with, plot},
};

use super::{
    error::{CliError, CliResult},
    output::{print, print_json},
    terminal::Output,
};

/// Compare the policies in virtual time, over simulated clients and workers
///
/// For each policy and report interval, prints how full the fullest worker was, how unevenly the workers
/// were filled, and how many connections found no memory. The manager's own code decides. The command
/// sends nothing and needs no privilege.
#[derive(Parser)]
pub struct Args {
    /// Memory sizes of the workers, comma-separated; 6x700MiB means six workers
    #[arg(long, value_name = "SIZES", default_value = "6x700MiB")]
    workers: String,

    /// Memory that each worker uses without connections
    #[arg(long, value_name = "SIZE", default_value = "100MiB")]
    background: String,

    /// Take the workers' own use of memory from this event log; replaces --workers, --background
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,

    /// New connections each second
    #[arg(long, value_name = "NUMBER", default_value_t = 450.0)]
    arrivals: f64,

    /// Average duration of a connection
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    stay: humantime::Duration,

    /// Average memory of a connection
    #[arg(long, value_name = "SIZE", default_value = "2MiB")]
    connection: String,

    /// Report intervals of the workers, comma-separated
    #[arg(long, value_name = "DURATIONS", value_delimiter = ',', default_values = ["100ms", "500ms", "1s", "2s", "5s"])]
    intervals: Vec<humantime::Duration>,

    /// Average delay of a report
    #[arg(long, value_name = "DURATION", default_value = "5ms")]
    delay: humantime::Duration,

    /// Lost reports, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    loss: f64,

    /// Simulated time; at most the length of --events
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    duration: humantime::Duration,

    /// Random seed: the same seed gives the same result
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// Policies to compare, comma-separated; also "random" [default: all]
    #[arg(long, value_name = "POLICIES", value_delimiter = ',')]
    policies: Vec<String>,

    /// Difference of memory that moves the selection of policy memory: auto, 64MiB or 10%
    #[arg(long, value_name = "THRESHOLD", default_value = "auto")]
    threshold: String,

    /// Least time that policy memory keeps a worker after a switch
    #[arg(long, value_name = "DURATION", default_value = "250ms")]
    hold: humantime::Duration,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Write a picture (SVG) to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub fn run(args: &Args) -> CliResult {
    let scenario = scenario(args).map_err(CliError::Usage)?;
    let contenders = contenders(&args.policies).map_err(CliError::Usage)?;
    let intervals: Vec<Duration> = args.intervals.iter().map(|it| **it).collect();
    if intervals.iter().any(|it| *it < Duration::from_millis(1)) {
        return Err(CliError::usage("--intervals: each must be at least 1ms"));
    }
    let results = run_simulations(&scenario, &contenders, &intervals);
    if let Some(file) = &args.svg {
        fs::write(file, plot(&results))
            .with_context(|| format!("write the picture {}", file.display()))?;
    }
    if args.json {
        return print_json(&results);
    }
    print(&Output::stdout().wrap_lines(&results.to_string()));
    Ok(())
}

/// Runs the simulations, and shows the progress on a terminal.
fn run_simulations(
    scenario: &Scenario,
    contenders: &[Contender],
    intervals: &[Duration],
) -> Results {
    let all = contenders.len() * intervals.len();
    let is_shown = std::io::stderr().is_terminal();
    // An error only hides the progress.
    let show = |line: &str| _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    let results = compare_with(
        scenario,
        contenders,
        intervals,
        |done, contender, interval| {
            if is_shown {
                let interval = humantime::format_duration(interval);
                let name = contender.name();
                show(&format!(
                    "{done} of {all} simulated; now {name}, reports every {interval}"
                ));
            }
        },
    );
    if is_shown {
        show("");
    }
    results
}

fn scenario(args: &Args) -> anyhow::Result<Scenario> {
    let within = |name: &str, given: f64, least: f64, most: f64| {
        anyhow::ensure!(
            (least..=most).contains(&given),
            "{name} {given}: expected a number from {least} to {most}"
        );
        Ok(given)
    };
    let (workers, duration) = match &args.events {
        None => (
            workers(&args.workers, bytes("--background", &args.background)?)?,
            *args.duration,
        ),
        Some(file) => {
            let log = File::open(file).with_context(|| format!("open {}", file.display()))?;
            let recording = Recording::read(BufReader::new(log))
                .with_context(|| format!("read {}", file.display()))?;
            (recording.workers, recording.duration.min(*args.duration))
        }
    };
    anyhow::ensure!(!args.stay.is_zero(), "--stay 0s: expected more than 0");
    Ok(Scenario {
        workers,
        arrivals_per_second: within("--arrivals", args.arrivals, 0.001, 1e6)?,
        stay: *args.stay,
        connection_bytes: bytes("--connection", &args.connection)?,
        delay: *args.delay,
        loss: within("--loss", args.loss, 0.0, 100.0)? / 100.0,
        duration,
        seed: args.seed,
        memory: MemorySettings {
            threshold: threshold(&args.threshold).with_context(|| {
                format!(
                    "--threshold {:?}: expected auto, a size such as 64MiB, or a percentage such as 10%",
                    args.threshold
                )
            })?,
            hold: *args.hold,
        },
        spread: SpreadSettings::default(),
    })
}

fn workers(sizes: &str, background: u64) -> anyhow::Result<Vec<WorkerModel>> {
    const MAX_WORKERS: usize = 1_000;
    let mut all = Vec::new();
    for part in sizes.split(',').map(str::trim) {
        let (count, size) = match part.split_once('x') {
            Some((count, size)) => (
                count.parse().with_context(|| {
                    format!("--workers {part:?}: expected a number of workers before the x")
                })?,
                size,
            ),
            None => (1, part),
        };
        anyhow::ensure!(
            (1..=MAX_WORKERS).contains(&count) && all.len() + count <= MAX_WORKERS,
            "--workers {sizes:?}: expected 1 to {MAX_WORKERS} workers"
        );
        let size = bytes("--workers", size)?;
        anyhow::ensure!(size > 0, "--workers {part:?}: expected a size above 0");
        all.extend(std::iter::repeat_n(size, count));
    }
    Ok(WorkerModel::of_sizes(&all, background))
}

fn contenders(names: &[String]) -> anyhow::Result<Vec<Contender>> {
    let all = Contender::all();
    if names.is_empty() {
        return Ok(all);
    }
    let known: Vec<&str> = all.iter().map(|it| it.name()).collect();
    let find = |name: &String| {
        let found = all.iter().find(|it| it.name() == name.trim());
        found
            .copied()
            .ok_or_else(|| anyhow!("--policies {name:?}: expected some of {}", known.join(", ")))
    };
    names.iter().map(find).collect()
}

fn bytes(option: &str, text: &str) -> anyhow::Result<u64> {
    size(text).with_context(|| format!("{option} {text:?}: expected a size such as 700MiB or 2GiB"))
}
