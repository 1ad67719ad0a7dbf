//! Failed requests while the selection changes under load.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memlb_tests::{Cluster, Probe, Process, wait_until};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::{
    laboratory::Laboratory,
    wrk::{self, Figures, Load, Wrk},
};
use xtask::{interrupt::Interrupt, workspace::print_message};

const CHANGES: usize = 100;
const CONNECTIONS: usize = 32;
const ASK_INTERVAL: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(5);

/// Duration of the measurement of the system of 2018.
const WATCHED: Duration = Duration::from_secs(12);

/// Longer than any measurement, because SIGINT ends wrk.
const WITHOUT_END: Duration = Duration::from_secs(3600);

#[derive(Debug, Serialize)]
pub struct SelectionChanges {
    pub changes: usize,
    pub seconds: f64,
    pub kept_alive: Figures,
    pub one_each: Figures,
    /// Requests of a further client that checks every page.
    pub checked: usize,
    pub checked_wrong: Vec<String>,
}

impl SelectionChanges {
    pub fn requests(&self) -> u64 {
        self.kept_alive.requests + self.one_each.requests + self.checked as u64
    }

    pub fn failed(&self) -> u64 {
        self.kept_alive.errors.total()
            + self.one_each.errors.total()
            + self.checked_wrong.len() as u64
    }
}

/// Moves memlb's selection between the workers by their memory figures.
pub fn of_memlb(
    laboratory: &Laboratory,
    wrk: &Wrk,
    directory: &Path,
    interrupt: &Interrupt,
) -> Result<SelectionChanges> {
    print_message(format!(
        "moving the selection {CHANGES} times under load, memlb"
    ));
    let cluster = laboratory
        .cluster()
        .context("the laboratory has no memlb")?;
    under_load(laboratory, wrk, directory, || {
        for change in 0..CHANGES {
            interrupt.check()?;
            move_selection(cluster, change)?;
        }
        Ok(CHANGES)
    })
}

/// Reloads nginx every 3 s as the system of 2018 did, with the other worker each time.
pub fn of_2018(
    laboratory: &Laboratory,
    wrk: &Wrk,
    directory: &Path,
    interrupt: &Interrupt,
) -> Result<SelectionChanges> {
    print_message("moving the selection at each reload under load, nginx of 2018");
    let decide = |reloads: u32| laboratory.worker(usize::from(reloads.is_multiple_of(2)));
    under_load(laboratory, wrk, directory, || {
        let (waited, reloads) = laboratory.during(decide, || {
            let start = Instant::now();
            while start.elapsed() < WATCHED {
                interrupt.check()?;
                thread::sleep(Duration::from_millis(100));
            }
            anyhow::Ok(())
        })?;
        waited?;
        Ok(usize::try_from(reloads)?)
    })
}

fn move_selection(cluster: &Cluster, change: usize) -> Result<()> {
    // Beyond the threshold of 100 MiB, which is the difference at the start.
    const ABOVE_KB: u64 = 800 * 1024;
    const BELOW_KB: u64 = 100 * 1024;
    let before = selections(cluster)?;
    let available = if change.is_multiple_of(2) {
        ABOVE_KB
    } else {
        BELOW_KB
    };
    cluster.memory[1].set_available_kb(available)?;
    wait_until(DEADLINE, "the selection to change", || {
        selections(cluster).is_ok_and(|now| now > before)
    })?;
    Ok(())
}

/// Counts in the event log, because the status would make the manager read its flow table each time.
fn selections(cluster: &Cluster) -> Result<usize> {
    let log = fs::read_to_string(cluster.paths.event_log()).context("read the event log")?;
    Ok(log.matches("\"selection_changed\"").count())
}

fn under_load(
    laboratory: &Laboratory,
    wrk: &Wrk,
    directory: &Path,
    work: impl FnOnce() -> Result<usize>,
) -> Result<SelectionChanges> {
    let (client, target) = (laboratory.client(), laboratory.target());
    let load = |one_each| Load {
        connections: CONNECTIONS,
        duration: WITHOUT_END,
        one_each,
        path: "/",
    };
    let start = |one_each: bool| -> Result<Process> {
        let mut command: Command = wrk.command(client, target, load(one_each));
        let log = directory.join(format!("wrk-{one_each}.log"));
        Process::start("wrk", &mut command, &log)
    };
    let mut kept_alive = start(false)?;
    let mut one_each = start(true)?;
    let probe = Probe::start(client, target, ASK_INTERVAL, PATIENCE)?;
    let started = Instant::now();
    let changes = work()?;
    let seconds = started.elapsed().as_secs_f64();

    let report = probe.stop()?;
    Ok(SelectionChanges {
        changes,
        seconds,
        kept_alive: stop(&mut kept_alive)?,
        one_each: stop(&mut one_each)?,
        checked: report.requests.len(),
        checked_wrong: report
            .requests
            .iter()
            .filter_map(|request| match &request.answer {
                Ok(page) if page == "Worker1" || page == "Worker2" => None,
                Ok(page) => Some(format!("the page was {page:?}")),
                Err(error) => Some(error.clone()),
            })
            .collect(),
    })
}

fn stop(wrk: &mut Process) -> Result<Figures> {
    wrk.signal(Signal::SIGINT)?;
    wrk.wait(DEADLINE)?;
    wrk::figures(&wrk.log())
}
