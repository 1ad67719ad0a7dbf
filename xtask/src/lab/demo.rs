//! The demo: changes of memory and failures, seen by a client that sends a request every 10 ms.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_core::DEFAULT_DOWN_AFTER;
use memlb_tests::{Cluster, Probe, Report, probe::Request, wait_for};

use crate::interrupt::Interrupt;

/// How long a client may go without a page when a worker's link is cut: `down_after`, and 100 ms for the change and
/// the next request.
const FAILOVER: Duration = DEFAULT_DOWN_AFTER.saturating_add(Duration::from_millis(100));

/// The same when nothing is lost; a busy machine may delay the client.
const JITTER: Duration = Duration::from_millis(250);

const EVERY: Duration = Duration::from_millis(10);

/// Less than the second after which TCP repeats a SYN: a lost packet counts as a failure.
const PATIENCE: Duration = Duration::from_millis(900);

const DEADLINE: Duration = Duration::from_secs(10);

/// How many answers in a row show that the service is stable.
const STEADY: usize = 30;

const MIB_IN_KB: u64 = 1024;

/// One step of the demo, and what a client must see of it.
struct Step {
    what: &'static str,
    act: fn(&mut Cluster) -> Result<()>,
    page: &'static str,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The client continues to get the same page.
    Stays,
    /// The client gets another page, and every request has its answer.
    Moves,
    /// As [`Outcome::Moves`], but connections open at that instant are reset,
    /// because their worker counts as dead.
    MovesWithReset,
    /// Requests are unanswered until the manager detects the failure.
    FailsOver,
}

macro_rules! steps {
    ($($what:literal, $act:expr, $page:literal, $outcome:ident;)+) => {
        &[$(Step { what: $what, act: $act, page: $page, outcome: Outcome::$outcome }),+]
    };
}

const STEPS: &[Step] = steps! {
    "worker1 has 450 MiB available, worker2 350 MiB", |_| Ok(()), "Worker1", Stays;
    "worker2 rises to 500 MiB, within the threshold",
        |cluster| set_memory(cluster, 1, 500).and_then(|()| wait_until_reported(cluster, 1, 500)), "Worker1", Stays;
    "worker1 falls to 200 MiB", |cluster| set_memory(cluster, 0, 200), "Worker2", Moves;
    "worker1 rises to 650 MiB", |cluster| set_memory(cluster, 0, 650), "Worker1", Moves;
    "the link of worker1 is cut", |cluster| cluster.topology.workers[0].cut_off(), "Worker2", FailsOver;
    "worker1 is back", |cluster| cluster.topology.workers[0].reconnect(), "Worker1", Moves;
    "worker1's agent is killed", |cluster| cluster.kill_agent(0), "Worker2", MovesWithReset;
    "worker1's agent is started again", |cluster| cluster.start_agent(0), "Worker1", Moves;
    "worker1 falls to 200 MiB", |cluster| set_memory(cluster, 0, 200), "Worker2", Moves;
    "the link of worker2 is cut", |cluster| cluster.topology.workers[1].cut_off(), "Worker1", FailsOver;
    "the link of worker1 is cut, too: the manager serves", |cluster| cluster.topology.workers[0].cut_off(), "Manager", FailsOver;
    "worker1 is back", |cluster| cluster.topology.workers[0].reconnect(), "Worker1", Moves;
    "worker2 is back, with more memory", |cluster| cluster.topology.workers[1].reconnect(), "Worker2", Moves;
};

/// Runs all steps on a new `cluster`, prints what the client sees, and
/// returns whether every step had the expected outcome.
pub fn play(mut cluster: Cluster, interrupt: &Interrupt) -> Result<bool> {
    let client = &cluster.topology.client;
    let probe = Probe::start(client, cluster.service(), EVERY, PATIENCE)?;
    println!(
        "A client requests http://{}/ every {EVERY:?}, each time on a new connection.",
        cluster.service().ip()
    );
    println!(
        "  {:<48}{:<9}{:>10}{:>13}{:>16}",
        "what happens", "page", "after", "longest gap", "without page"
    );
    play_steps(STEPS, interrupt, |step| {
        print!("  {:<48}", step.what);
        io::stdout().flush()?;
        step.play(&mut cluster, &probe)
    })
}

/// What clients saw of one step.
pub(super) struct Observation {
    pub columns: String,
    /// What was not as expected.
    pub difference: Option<String>,
}

/// Plays steps, prints what clients see, and returns whether every step had the expected outcome.
pub(super) fn play_steps<S>(
    steps: &[S],
    interrupt: &Interrupt,
    mut play: impl FnMut(&S) -> Result<Observation>,
) -> Result<bool> {
    let mut as_expected = true;
    for step in steps {
        interrupt.check()?;
        let seen = play(step)?;
        as_expected &= seen.difference.is_none();
        match seen.difference {
            None => println!("{}  ok", seen.columns),
            Some(difference) => println!("{}  WRONG: {difference}", seen.columns),
        }
    }
    match as_expected {
        true => println!("Every step had the expected outcome."),
        false => println!("Not every step had the expected outcome."),
    }
    Ok(as_expected)
}

impl Step {
    fn play(&self, cluster: &mut Cluster, probe: &Probe) -> Result<Observation> {
        let started_at = Instant::now();
        (self.act)(cluster)?;
        let since = match self.outcome {
            Outcome::Stays => Instant::now(),
            _ => started_at,
        };
        let first = probe
            .wait_for_page(self.page, since, DEADLINE)
            .with_context(|| format!("\"{}\"", self.what))?;
        let steady = wait_for(DEADLINE, "the client to go on", || {
            let report = probe.report().since(first.ended_at);
            (report.requests.len() >= STEADY).then(Instant::now)
        })?;
        // Requests without an answer yet count, too.
        probe.wait_for_answers(steady, DEADLINE)?;
        let report = probe.report().since(since);
        let after = match self.outcome {
            Outcome::Stays => "stays".to_owned(),
            _ => milliseconds(first.ended_at - started_at),
        };
        let outage = milliseconds(report.longest_outage());
        let failed = format!("{} of {}", report.failures().count(), report.requests.len());
        Ok(Observation {
            columns: format!("{:<9}{after:>10}{outage:>13}{failed:>16}", self.page),
            difference: self.difference(&report, first.ended_at),
        })
    }

    /// Returns what was not as expected. From the instant `moved_at` on, the client must get only the page of this step.
    fn difference(&self, report: &Report, moved_at: Instant) -> Option<String> {
        let afterwards = report.since(moved_at);
        let (outage, failures, reliable) = match self.outcome {
            Outcome::Stays | Outcome::Moves => (JITTER, 0, report),
            Outcome::MovesWithReset => (JITTER, 1, report),
            Outcome::FailsOver => (FAILOVER, 0, &afterwards),
        };
        if report.longest_outage() > outage {
            return Some(format!("longer without a page than {outage:?}"));
        }
        if let Some(failure) = reliable.failures().nth(failures) {
            return Some(format!("without a page: {:?}", failure.answer));
        }
        let mut pages = afterwards.requests.iter().filter_map(Request::page);
        let other = pages.find(|page| *page != self.page)?;
        Some(format!("then again {other}"))
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
    cluster.wait_for_status(DEADLINE, "the new figure to be reported", |status| {
        status["services"][0]["backends"][index]["memory_available_bytes"] == bytes
    })?;
    Ok(())
}
