//! Moves a worker while clients use it, with memlb and with other balancers, and measures the effect on the clients.

mod clients;
mod criu;
mod grade;
mod guests;
mod machine;
mod picture;
mod qmp;
mod quantities;
mod scenario;
mod testbed;
mod text;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use memlb_tests::migration::Application;
use serde::Serialize;

use self::{
    clients::{Clients, PIECE},
    grade::Grades,
    guests::Guests,
    quantities::{ClientImpact, Phase, Times},
    scenario::{Between, Method, Scenario, Silence},
    testbed::{MoveStats, ProcessTestbed, Testbed, wait_until_served},
};
use crate::{machine::Machine, processor::Timing};
use xtask::{interrupt::Interrupt, packages::Tool, tools, workspace::print_message};

pub use self::{picture::draw, text::text};

pub const TOOLS: &[Tool] = tools! {
    "haproxy" "haproxy" "is one of the balancers";
    "nft" "nftables" "is one of the balancers";
    "sysctl" "procps" "makes the manager forward packets";
    "criu" "criu" "moves a process between virtual machines";
};

/// Time before the measurement, for connections to be established.
const WARM_UP: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(10);
/// Shortest measurement during a migration.
const DURING: Duration = Duration::from_secs(1);
/// Emulated machines are slow.
const BOOTING: Duration = Duration::from_secs(90);
/// After a loss of 3 s, TCP repeats a packet within 3 s or later.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct MigrationOptions {
    /// Move only these
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    what: Vec<Method>,
    /// Use only these balancers
    #[arg(long, value_name = "BALANCER", value_delimiter = ',')]
    between: Vec<Between>,
    /// Stop the worker only for these durations
    #[arg(long, value_name = "SILENCE", value_delimiter = ',')]
    silence: Vec<Silence>,
    /// Duration of the measurement before a migration, and of the one after it
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Write a picture of all measurements to this file (SVG)
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl MigrationOptions {
    fn scenarios(&self) -> Vec<Scenario> {
        Scenario::of(&self.what, &self.between, &self.silence)
    }

    /// Returns whether there are virtual machines.
    pub fn needs_machines(&self) -> bool {
        self.scenarios().iter().any(|it| it.what != Method::Process)
    }
}

/// Runs the worker's server in a virtual machine. Returns only on failure.
///
/// # Errors
/// The port is in use.
pub fn serve(port: u16) -> Result<()> {
    let _application = Application::start_here(port)?;
    loop {
        thread::park();
    }
}

#[derive(Debug, Serialize)]
pub struct MigrationReport {
    machine: Machine,
    migrations: Vec<Migration>,
}

/// One migration, measured.
#[derive(Debug, Serialize)]
pub struct Migration {
    scenario: Scenario,
    moved: MoveStats,
    /// From the beginning until every client was answered again, or a second.
    took_ms: f64,
    noticed: ClientImpact,
    /// Before, during and after.
    phases: [Phase; 3],
    grades: [Grades; 3],
}

/// Measures every selected migration.
///
/// # Errors
/// A migration failed. Lost connections are a result, not an error.
pub fn measure(
    options: &MigrationOptions,
    machine: Machine,
    interrupt: &Interrupt,
) -> Result<MigrationReport> {
    let timing = Timing::start()?;
    let scenarios = options.scenarios();
    let mut migrations = Vec::new();
    for (number, scenario) in (1..).zip(&scenarios) {
        interrupt.check()?;
        let label = scenario.label();
        print_message(format!("{number} of {}: {label}", scenarios.len()));
        let migration = migrate(*scenario, Duration::from_secs(options.seconds), &timing);
        migrations.push(migration.with_context(|| label)?);
    }
    Ok(MigrationReport {
        machine,
        migrations,
    })
}

fn migrate(scenario: Scenario, around: Duration, timing: &Timing) -> Result<Migration> {
    let mut testbed: Box<dyn Testbed> = match scenario.what {
        Method::Process => Box::new(ProcessTestbed::build(scenario.between)?),
        Method::Machine | Method::Criu => Box::new(Guests::build(scenario.what, scenario.between)?),
    };
    wait_until_served(&*testbed, BOOTING)?;
    let clients = Clients::start(testbed.client(), testbed.targets())?;
    thread::sleep(WARM_UP);
    clients.wait_for_answers(Instant::now(), PATIENCE)?;

    let mut used = vec![testbed.usage(timing)?];
    let measured_from = Instant::now();
    thread::sleep(around);
    used.push(testbed.usage(timing)?);
    let began = Instant::now();
    let moved = testbed.migrate(scenario.silence)?;
    if let Err(error) = clients.wait_for_answers(Instant::now(), ANSWERED_WITHIN) {
        print_message(format!("{error:#}"));
    }
    thread::sleep(DURING.saturating_sub(began.elapsed()));
    let ended = Instant::now();
    used.push(testbed.usage(timing)?);
    thread::sleep(around);
    used.push(testbed.usage(timing)?);
    let times = Times {
        measured_from,
        began,
        ended,
        measured_to: Instant::now(),
    };

    let log = clients.stop()?;
    let spans = [
        (times.measured_from, times.began),
        (times.began, times.ended),
        (times.ended, times.measured_to),
    ];
    let phase = |index: usize| {
        let used = [used[index], used[index + 1]];
        Phase::of(&log, PIECE, spans[index], used)
    };
    let phases = [0, 1, 2].map(phase);
    Ok(Migration {
        scenario,
        moved,
        took_ms: quantities::milliseconds(ended - began),
        noticed: ClientImpact::of(&log, &times),
        grades: [0, 1, 2].map(|index| Grades::of(&phases[index])),
        phases,
    })
}
