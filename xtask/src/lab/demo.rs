//! The demo: changes of memory and failures, and their effect on a client that sends a request every 10 ms.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_core::DEFAULT_DOWN_AFTER;
use memlb_tests::{Cluster, Probe, Report, probe::Request, wait_for};

use crate::interrupt::Interrupt;

/// Longest outage of a client when a worker's link is cut: `down_after`, and 100 ms for the change and the next
/// request.
const FAILOVER: Duration = DEFAULT_DOWN_AFTER.saturating_add(Duration::from_millis(100));

/// Longest outage when no packet is lost; a busy machine may delay the client.
const JITTER: Duration = Duration::from_millis(250);

const EVERY: Duration = Duration::from_millis(10);

/// Less than the second after which TCP repeats a SYN: a lost packet counts as a failure.
const PATIENCE: Duration = Duration::from_millis(900);

const DEADLINE: Duration = Duration::from_secs(10);

/// Number of answers in a row that show a stable service.
const STEADY: usize = 30;

const MIB_IN_KB: u64 = 1024;

/// One step of the demo, and its expected effect on a client.
struct LabStep {
    what: &'static str,
    act: fn(&mut Cluster) -> Result<()>,
    page: &'static str,
    expected: Expected,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The client gets the same page as before.
    Stays,
    /// The client gets another page, and every request is answered.
    Moves,
    /// As [`Expected::Moves`], but the manager resets the connections that are open then, because their worker is down.
    MovesWithReset,
    /// Requests have no answer until the manager detects the failure.
    FailsOver,
}

macro_rules! steps {
    ($($what:literal, $act:expr, $page:literal, $expected:ident;)+) => {
        &[$(LabStep { what: $what, act: $act, page: $page, expected: Expected::$expected }),+]
    };
}

const STEPS: &[LabStep] = steps! {
    "worker1 has 450 MiB available, worker2 350 MiB", |_| Ok(()), "Worker1", Stays;
    "worker2 rises to 500 MiB, within the threshold",
        |cluster| set_memory(cluster, 1, 500).and_then(|()| wait_until_reported(cluster, 1, 500)), "Worker1", Stays;
    "worker1 falls to 200 MiB", |cluster| set_memory(cluster, 0, 200), "Worker2", Moves;
    "worker1 rises to 650 MiB", |cluster| set_memory(cluster, 0, 650), "Worker1", Moves;
    "the link of worker1 is cut", |cluster| cluster.topology.workers[0].disconnect(), "Worker2", FailsOver;
    "worker1 is back", |cluster| cluster.topology.workers[0].reconnect(), "Worker1", Moves;
    "worker1's agent is killed", |cluster| cluster.kill_agent(0), "Worker2", MovesWithReset;
    "worker1's agent is started again", |cluster| cluster.start_agent(0), "Worker1", Moves;
    "worker1 falls to 200 MiB", |cluster| set_memory(cluster, 0, 200), "Worker2", Moves;
    "the link of worker2 is cut", |cluster| cluster.topology.workers[1].disconnect(), "Worker1", FailsOver;
    "the link of worker1 is cut, too: fallback on the manager", |cluster| cluster.topology.workers[0].disconnect(), "Manager", FailsOver;
    "worker1 is back", |cluster| cluster.topology.workers[0].reconnect(), "Worker1", Moves;
    "worker2 is back, with more memory", |cluster| cluster.topology.workers[1].reconnect(), "Worker2", Moves;
};

/// Runs all steps on a new `cluster` and prints their effects. Returns whether every step had the expected one.
pub fn run(mut cluster: Cluster, interrupt: &Interrupt) -> Result<bool> {
    let client = &cluster.topology.client;
    let probe = Probe::start(client, cluster.service(), EVERY, PATIENCE)?;
    println!(
        "A client requests http://{}/ every {EVERY:?}, on a new connection each time.",
        cluster.service().ip()
    );
    println!(
        "  {:<58}{:<9}{:>10}{:>13}{:>16}",
        "what happens", "page", "after", "longest gap", "without page"
    );
    run_steps(STEPS, interrupt, |step| {
        print!("  {:<58}", step.what);
        io::stdout().flush()?;
        step.run(&mut cluster, &probe)
    })
}

/// The measured effect of one step on clients.
pub(super) struct Observation {
    pub columns: String,
    /// The difference from the expected effect.
    pub difference: Option<String>,
}

/// Runs steps and prints their effects. Returns whether every step had the expected one.
pub(super) fn run_steps<S>(
    steps: &[S],
    interrupt: &Interrupt,
    mut run: impl FnMut(&S) -> Result<Observation>,
) -> Result<bool> {
    let mut as_expected = true;
    for step in steps {
        interrupt.check()?;
        let seen = run(step)?;
        as_expected &= seen.difference.is_none();
        match seen.difference {
            None => println!("{}  ok", seen.columns),
            Some(difference) => println!("{}  WRONG: {difference}", seen.columns),
        }
    }
    let steps = if as_expected { "Every" } else { "Not every" };
    println!("{steps} step had the expected outcome.");
    Ok(as_expected)
}

impl LabStep {
    fn run(&self, cluster: &mut Cluster, probe: &Probe) -> Result<Observation> {
        let started_at = Instant::now();
        (self.act)(cluster)?;
        let since = match self.expected {
            Expected::Stays => Instant::now(),
            _ => started_at,
        };
        let first = probe
            .wait_for_page(self.page, since, DEADLINE)
            .with_context(|| format!("\"{}\"", self.what))?;
        let steady = wait_for(DEADLINE, "further answers to the client", || {
            let report = probe.report().since(first.ended_at);
            (report.requests.len() >= STEADY).then(Instant::now)
        })?;
        // Requests that have no answer yet count, too.
        probe.wait_for_answers(steady, DEADLINE)?;
        let report = probe.report().since(since);
        let after = match self.expected {
            Expected::Stays => "stays".to_owned(),
            _ => milliseconds(first.ended_at - started_at),
        };
        let outage = milliseconds(report.longest_outage());
        let failed = format!("{} of {}", report.failures().count(), report.requests.len());
        Ok(Observation {
            columns: format!("{:<9}{after:>10}{outage:>13}{failed:>16}", self.page),
            difference: self.difference(&report, first.ended_at),
        })
    }

    /// Returns the difference from the expected effect. From `moved_at` on, the client must get only the page of this
    /// step.
    fn difference(&self, report: &Report, moved_at: Instant) -> Option<String> {
        let afterwards = report.since(moved_at);
        let (outage, failures, reliable) = match self.expected {
            Expected::Stays | Expected::Moves => (JITTER, 0, report),
            Expected::MovesWithReset => (JITTER, 1, report),
            Expected::FailsOver => (FAILOVER, 0, &afterwards),
        };
        if report.longest_outage() > outage {
            return Some(format!("the outage was longer than {outage:?}"));
        }
        if let Some(failure) = reliable.failures().nth(failures) {
            return Some(format!("a request failed: {:?}", failure.answer));
        }
        let mut pages = afterwards.requests.iter().filter_map(Request::page);
        let other = pages.find(|page| *page != self.page)?;
        Some(format!("a later page was {other}"))
    }
}

pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

fn set_memory(cluster: &Cluster, index: usize, available_mib: u64) -> Result<()> {
    cluster.memory[index].set_available_kb(available_mib * MIB_IN_KB)
}

fn wait_until_reported(cluster: &Cluster, index: usize, available_mib: u64) -> Result<()> {
    let bytes = available_mib * MIB_IN_KB * 1024;
    cluster.wait_for_status(DEADLINE, "the heartbeat with the new figure", |status| {
        status["services"][0]["backends"][index]["memory_available_bytes"] == bytes
    })?;
    Ok(())
}
