//! Repeats the experiment of 2018 and prints it beside its published figures.

mod machines;

pub use machines::measure as measure_machines;

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memlb_tests::{Probe, Report};
use serde::Serialize;

use super::{
    contender::Contender,
    laboratory::Laboratory,
    processor,
    table::Table,
    wrk::{Load, Wrk},
};
use xtask::{interrupt::Interrupt, workspace::print_message};

const CONTENDERS: [Contender; 2] = [Contender::Nginx2018, Contender::MemlbTc];
const ASK_INTERVAL: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(2);

/// The thesis's figures for one number of clients; pairs are of the two workers.
struct Published {
    clients: usize,
    cpu_percent: [f64; 2],
    memory_mb: [f64; 2],
    megabits_per_second: f64,
}

const PUBLISHED: [Published; 3] = [
    Published {
        clients: 50,
        cpu_percent: [3.8, 2.4],
        memory_mb: [214.0, 185.0],
        megabits_per_second: 48.1,
    },
    Published {
        clients: 250,
        cpu_percent: [4.6, 3.0],
        memory_mb: [214.0, 187.0],
        megabits_per_second: 49.1,
    },
    Published {
        clients: 500,
        cpu_percent: [8.6, 4.0],
        memory_mb: [214.0, 187.0],
        megabits_per_second: 43.5,
    },
];

/// How the published and the new figures differ.
pub const NOTE: &str = "  published: of whole virtual machines with 700 MB each; here: of the workers' nginx \
processes alone, CPU in % of one processor\n";

/// The same of the machines of `cargo xtask machines`.
pub const NOTE_OF_MACHINES: &str = "  published and here: of whole virtual machines with 700 MB each. \
Emulated ones (QEMU without KVM) are much slower\n";

/// The figures that were measured here.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub contender: Contender,
    pub clients: usize,
    pub cpu_percent: [f64; 2],
    pub memory_mb: [f64; 2],
    pub megabits_per_second: f64,
    pub requests_per_second: f64,
    pub failed_requests: u64,
    /// The pages that were served, each with the number of times in a row.
    pub pages: Vec<(String, usize)>,
}

/// Repeats the experiment with the system of 2018 and with memlb.
pub fn measure(
    directory: &Path,
    duration: Duration,
    interrupt: &Interrupt,
) -> Result<Vec<Measured>> {
    let wrk = Wrk::prepare(directory)?;
    let mut measured = Vec::new();
    let laboratories = CONTENDERS
        .into_iter()
        .map(Laboratory::build)
        .collect::<Result<Vec<_>>>()?;
    for published in PUBLISHED {
        for laboratory in &laboratories {
            interrupt.check()?;
            let clients = published.clients;
            print_message(format!(
                "{clients} clients without pause, {}",
                laboratory.contender.label()
            ));
            measured.push(measure_one(laboratory, &wrk, clients, duration)?);
        }
    }
    interrupt.check()?;
    Ok(measured)
}

/// Returns the table of what was published and what was measured.
pub fn table(measured: &[Measured]) -> Table {
    let mut table = Table::new(&[
        "clients",
        "system",
        "CPU %",
        "memory MB",
        "Mb/s",
        "requests/s",
        "failed",
        "pages served",
    ]);
    for published in PUBLISHED {
        table.row([
            published.clients.to_string(),
            "2018, as published".into(),
            pair(published.cpu_percent, 1),
            pair(published.memory_mb, 0),
            format!("{:.1}", published.megabits_per_second),
            "–".into(),
            "–".into(),
            "–".into(),
        ]);
        for measured in measured
            .iter()
            .filter(|one| one.clients == published.clients)
        {
            table.row([
                measured.clients.to_string(),
                format!("{}, here", measured.contender.label()),
                pair(measured.cpu_percent, 1),
                pair(measured.memory_mb, 0),
                format!("{:.1}", measured.megabits_per_second),
                format!("{:.0}", measured.requests_per_second),
                measured.failed_requests.to_string(),
                pages(&measured.pages),
            ]);
        }
    }
    table
}

fn measure_one(
    laboratory: &Laboratory,
    wrk: &Wrk,
    clients: usize,
    duration: Duration,
) -> Result<Measured> {
    let (client, target) = (laboratory.client(), laboratory.target());
    let load = Load {
        connections: clients,
        duration,
        one_each: false,
        path: "/",
    };
    let probe = Probe::start(client, target, ASK_INTERVAL, PATIENCE)?;
    let before = processor_times(laboratory)?;
    let started = Instant::now();
    let (loaded, _) = laboratory.during(
        |_| laboratory.worker(0),
        || {
            thread::scope(|scope| {
                let wrk = scope.spawn(|| wrk.measure(client, target, load));
                thread::sleep(duration / 2);
                let memory_mb = resident_mb(laboratory);
                let figures = wrk
                    .join()
                    .map_err(|_| anyhow::anyhow!("wrk's thread panicked"))?;
                anyhow::Ok((figures?, memory_mb?))
            })
        },
    )?;
    let (figures, memory_mb) = loaded?;
    let elapsed = started.elapsed();
    let after = processor_times(laboratory)?;
    let report = probe.stop()?;
    let cpu_percent = [0, 1].map(|worker| {
        let used = after[worker].saturating_sub(before[worker]);
        used.as_secs_f64() / elapsed.as_secs_f64() * 100.0
    });
    Ok(Measured {
        contender: laboratory.contender,
        clients,
        cpu_percent,
        memory_mb,
        megabits_per_second: figures.bytes_per_second() * 8.0 / 1e6,
        requests_per_second: figures.requests_per_second(),
        failed_requests: figures.errors.total(),
        pages: runs(&report),
    })
}

/// Returns how long the workers' web servers have run on a processor.
fn processor_times(laboratory: &Laboratory) -> Result<[Duration; 2]> {
    of_both(laboratory, processor::of_process)
}

fn resident_mb(laboratory: &Laboratory) -> Result<[f64; 2]> {
    of_both(laboratory, |pid| Ok(processor::resident(pid)? as f64 / 1e6))
}

fn of_both<T>(laboratory: &Laboratory, read: impl Fn(u32) -> Result<T>) -> Result<[T; 2]> {
    let read_worker = |index: usize| {
        let server = laboratory.servers().get(index).context("two workers")?;
        read(server.process.pid()).context("read /proc of a worker's nginx")
    };
    Ok([read_worker(0)?, read_worker(1)?])
}

fn runs(report: &Report) -> Vec<(String, usize)> {
    let runs = report.runs().into_iter();
    runs.map(|(page, times)| (page.to_owned(), times)).collect()
}

fn pages(runs: &[(String, usize)]) -> String {
    let runs = runs.iter().map(|(page, times)| format!("{page} × {times}"));
    runs.collect::<Vec<_>>().join(", then ")
}

fn pair(values: [f64; 2], decimals: usize) -> String {
    let [first, second] = values;
    format!("{first:.decimals$}/{second:.decimals$}")
}
