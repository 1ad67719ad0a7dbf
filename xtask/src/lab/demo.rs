//! A story of memory and failures, seen by a client that asks every 10 ms.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memlb_tests::{Cluster, Probe, Report, probe::Request, wait_for};

use crate::interrupt::Interrupt;

/// The story's own times, whatever the example configuration says.
pub const MANAGER_ARGUMENTS: &[&str] = &["--down-after", "1500ms", "--threshold", "auto"];

/// How long a client may go without a page when a worker is cut off: the
/// manager's `down_after`, and 100 ms to act and be asked again.
const FAILOVER: Duration = Duration::from_millis(1600);

/// The same when nothing is lost; a busy machine may keep the client waiting.
const HICCUP: Duration = Duration::from_millis(250);

const EVERY: Duration = Duration::from_millis(10);

/// Less than the second after which TCP asks again by itself: what a client
/// would notice is a failure here.
const PATIENCE: Duration = Duration::from_millis(900);

const DEADLINE: Duration = Duration::from_secs(10);

/// How many answers in a row show that the service has come to rest.
const STEADY: usize = 30;

const MIB_IN_KB: u64 = 1024;

/// One turn of the story, and what a client must see of it.
struct Step {
    what: &'static str,
    act: fn(&mut Cluster) -> Result<()>,
    page: &'static str,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The client gets the same page on.
    Stays,
    /// The client gets another page, and every request has its answer.
    Moves,
    /// As [`Outcome::Moves`], but connections open at that instant are reset,
    /// because their worker counts as dead.
    MovesWithReset,
    /// Requests go unanswered until the manager knows.
    FailsOver,
}

const STORY: &[Step] = &[
    Step {
        what: "worker1 has 450 MiB available, worker2 350 MiB",
        act: |_| Ok(()),
        page: "Worker1",
        outcome: Outcome::Stays,
    },
    Step {
        what: "worker2 rises to 500 MiB, within the threshold",
        act: |cluster| {
            set_memory(cluster, 1, 500)?;
            wait_until_heard(cluster, 1, 500)
        },
        page: "Worker1",
        outcome: Outcome::Stays,
    },
    Step {
        what: "worker1 falls to 200 MiB",
        act: |cluster| set_memory(cluster, 0, 200),
        page: "Worker2",
        outcome: Outcome::Moves,
    },
    Step {
        what: "worker1 rises to 650 MiB",
        act: |cluster| set_memory(cluster, 0, 650),
        page: "Worker1",
        outcome: Outcome::Moves,
    },
    Step {
        what: "worker1 is cut off without a word",
        act: |cluster| cluster.topology.workers[0].cut_off(),
        page: "Worker2",
        outcome: Outcome::FailsOver,
    },
    Step {
        what: "worker1 is back",
        act: |cluster| cluster.topology.workers[0].reconnect(),
        page: "Worker1",
        outcome: Outcome::Moves,
    },
    Step {
        what: "worker1's agent is killed",
        act: |cluster| cluster.kill_agent(0),
        page: "Worker2",
        outcome: Outcome::MovesWithReset,
    },
    Step {
        what: "worker1's agent is started again",
        act: |cluster| cluster.start_agent(0),
        page: "Worker1",
        outcome: Outcome::Moves,
    },
    Step {
        what: "worker1 falls to 200 MiB",
        act: |cluster| set_memory(cluster, 0, 200),
        page: "Worker2",
        outcome: Outcome::Moves,
    },
    Step {
        what: "worker2 is cut off without a word",
        act: |cluster| cluster.topology.workers[1].cut_off(),
        page: "Worker1",
        outcome: Outcome::FailsOver,
    },
    Step {
        what: "worker1 is cut off, too: the manager serves",
        act: |cluster| cluster.topology.workers[0].cut_off(),
        page: "Manager",
        outcome: Outcome::FailsOver,
    },
    Step {
        what: "worker1 is back",
        act: |cluster| cluster.topology.workers[0].reconnect(),
        page: "Worker1",
        outcome: Outcome::Moves,
    },
    Step {
        what: "worker2 is back, with more memory",
        act: |cluster| cluster.topology.workers[1].reconnect(),
        page: "Worker2",
        outcome: Outcome::Moves,
    },
];

/// Plays the story on a fresh `cluster`, prints what the client sees, and
/// returns whether all of it was as it should be.
pub fn play(mut cluster: Cluster, interrupt: &Interrupt) -> Result<bool> {
    let client = &cluster.topology.client;
    let probe = Probe::start(client, cluster.service(), EVERY, PATIENCE)?;
    println!(
        "A client asks http://{}/ every {EVERY:?}, each time on a new connection.",
        cluster.service().ip()
    );
    println!(
        "  {:<48}{:<9}{:>10}{:>13}{:>16}",
        "what happens", "page", "after", "longest gap", "without page"
    );
    let mut as_it_should_be = true;
    for step in STORY {
        interrupt.check()?;
        print!("  {:<48}", step.what);
        io::stdout().flush()?;
        let seen = step.play(&mut cluster, &probe)?;
        println!("{seen}");
        as_it_should_be &= seen.complaint.is_none();
    }
    println!(
        "{}",
        if as_it_should_be {
            "All was as it should be."
        } else {
            "Not all was as it should be."
        }
    );
    Ok(as_it_should_be)
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
        // What was asked while nobody answered counts as well.
        probe.wait_for_answers(steady, DEADLINE)?;
        let report = probe.report().since(since);
        Ok(Observation {
            page: self.page,
            after: (self.outcome != Outcome::Stays).then(|| first.ended_at - started_at),
            outage: report.longest_outage(),
            asked: report.requests.len(),
            failed: report.failures().count(),
            complaint: self.complain(&report, first.ended_at),
        })
    }

    /// Returns what was not as it should be. From the instant `moved_at` on the
    /// client must get the page of this turn alone.
    fn complain(&self, report: &Report, moved_at: Instant) -> Option<String> {
        let afterwards = report.since(moved_at);
        let (outage, failures, reliable) = match self.outcome {
            Outcome::Stays | Outcome::Moves => (HICCUP, 0, report),
            Outcome::MovesWithReset => (HICCUP, 1, report),
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

/// What the client saw of one turn.
struct Observation {
    page: &'static str,
    after: Option<Duration>,
    outage: Duration,
    asked: usize,
    failed: usize,
    complaint: Option<String>,
}

impl std::fmt::Display for Observation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let after = self.after.map_or("stays".into(), milliseconds);
        let outage = milliseconds(self.outage);
        let failed = format!("{} of {}", self.failed, self.asked);
        write!(f, "{:<9}{after:>10}{outage:>13}{failed:>16}", self.page)?;
        match &self.complaint {
            None => write!(f, "  ok"),
            Some(complaint) => write!(f, "  WRONG: {complaint}"),
        }
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

fn set_memory(cluster: &Cluster, index: usize, available_mib: u64) -> Result<()> {
    cluster.memory[index].set_available_kb(available_mib * MIB_IN_KB)
}

fn wait_until_heard(cluster: &Cluster, index: usize, available_mib: u64) -> Result<()> {
    let bytes = available_mib * MIB_IN_KB * 1024;
    cluster.wait_for_status(DEADLINE, "the new figure to be heard", |status| {
        status["services"][0]["backends"][index]["memory_available_bytes"] == bytes
    })?;
    Ok(())
}
