//! The demo of a pair: which manager has the address after each step, and the effect on clients.

use std::{
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use memlb_tests::{
    Probe,
    command::output,
    pair::{Idle, Pair, StreamCounts, Streams, StreamsReport, Turnover, TurnoverReport, WEB_PORT},
};

use crate::{
    interrupt::Interrupt,
    lab::demo::{Observation, milliseconds, run_steps},
};

/// Connections that are idle except for a check after each step.
const IDLE: usize = 500;
/// Connections a second, each of which lives for some seconds.
const TURNOVER: u32 = 200;
const STREAMS: StreamCounts = StreamCounts {
    downloads: 10,
    uploads: 5,
    dialogues: 5,
};

const EVERY: Duration = Duration::from_millis(10);
/// Less than the second after which TCP repeats a SYN.
const PATIENCE: Duration = Duration::from_millis(900);
const DEADLINE: Duration = Duration::from_secs(20);
/// Duration of the measurement before and after the change.
const BEFORE: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_secs(2);

/// Longest outage of a planned change: the time between keepalived's messages; a busy machine may delay the client.
const PLANNED: Duration = Duration::from_millis(300);
/// Longest outage of a crash: three missed messages of keepalived, and the same delay.
const SUDDEN: Duration = Duration::from_millis(800);

/// Age from which on a connection has reached the peer.
const REPLICATED: Duration = Duration::from_secs(1);
const SPLIT: Duration = Duration::from_secs(4);

/// One step of the demo.
struct PairStep {
    what: &'static str,
    act: fn(&mut Pair) -> Result<()>,
    /// Index of the manager that has the address afterwards.
    active: usize,
    /// Longest outage that clients may see.
    outage: Duration,
    survives: Survival,
}

/// Which connections must survive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Survival {
    All,
    /// Those that have been open for [`REPLICATED`].
    Older,
}

macro_rules! steps {
    ($($what:literal, $act:expr, $active:literal, $outage:ident, $survives:ident;)+) => {
        &[$(PairStep {
            what: $what,
            act: $act,
            active: $active,
            outage: $outage,
            survives: Survival::$survives,
        }),+]
    };
}

const STEPS: &[PairStep] = steps! {
    "manager1 has the address, manager2 is the backup", |_| Ok(()), 0, PLANNED, All;
    "on manager1: memlb handover", |pair| hand_over(pair, 0), 1, PLANNED, All;
    "on manager2: memlb handover", |pair| hand_over(pair, 1), 0, PLANNED, All;
    "manager1 is cut off", |pair| pair.network.disconnect(0), 1, SUDDEN, Older;
    "manager1 boots and gets all connections", boot, 1, PLANNED, All;
    "on manager2: memlb handover", |pair| hand_over(pair, 1), 0, PLANNED, All;
    // Among equal priorities, keepalived prefers the higher address.
    "both have the address for 4 s (split brain)", split, 1, SUDDEN, All;
};

/// Runs all steps on a new `pair` and prints their effects. Returns whether every step had the expected one.
pub fn run(mut pair: Pair, interrupt: &Interrupt) -> Result<bool> {
    complete(&pair)?;
    let mut idle = Idle::open(&pair.network.client, IDLE)?;
    println!(
        "{IDLE} idle connections, {TURNOVER} new ones a second, {} transfers, and a page every {EVERY:?}.",
        STREAMS.downloads + STREAMS.uploads + STREAMS.dialogues
    );
    println!(
        "  {:<50}{:<10}{:>9}{:>13}{:>12}{:>13}",
        "what happens", "active", "after", "longest gap", "idle lost", "others lost"
    );
    run_steps(STEPS, interrupt, |step| {
        print!("  {:<50}", step.what);
        io::stdout().flush()?;
        step.run(&mut pair, &mut idle)
    })
}

impl PairStep {
    fn run(&self, pair: &mut Pair, idle: &mut Idle) -> Result<Observation> {
        let client = &pair.network.client;
        let probe = Probe::start(client, Pair::service(WEB_PORT), EVERY, PATIENCE)?;
        let turnover = Turnover::start(client, TURNOVER)?;
        let streams = Streams::start(client, STREAMS)?;
        thread::sleep(BEFORE);

        let event = Instant::now();
        (self.act)(pair).with_context(|| format!("\"{}\"", self.what))?;
        pair.wait_until_active(self.active, DEADLINE)?;
        let after = event.elapsed();
        thread::sleep(AFTER);

        probe.wait_for_answers(Instant::now(), DEADLINE)?;
        let outage = probe.stop()?.since(event).longest_outage();
        let seen = ObservedEffect {
            outage,
            idle: idle.check(),
            turnover: turnover.finish()?,
            streams: streams.finish()?,
            event,
        };
        let active = format!("manager{}", self.active + 1);
        let (after, outage) = (milliseconds(after), milliseconds(outage));
        let others = seen.turnover.failures().len() + seen.streams.broken.len();
        Ok(Observation {
            columns: format!(
                "{active:<10}{after:>9}{outage:>13}{:>12}{others:>13}",
                seen.idle
            ),
            difference: self.difference(&seen),
        })
    }

    /// Returns the difference from the expected effect.
    fn difference(&self, seen: &ObservedEffect) -> Option<String> {
        if seen.outage > self.outage {
            return Some(format!("the outage was longer than {:?}", self.outage));
        }
        if seen.idle > 0 {
            return Some("an idle connection was lost".into());
        }
        if let Some(broken) = seen.streams.broken.first() {
            return Some(broken.clone());
        }
        let ages = seen.turnover.ages_of_lost(seen.event);
        let lost = match self.survives {
            Survival::All => seen.turnover.failures().len(),
            Survival::Older => ages.iter().filter(|age| **age > REPLICATED).count(),
        };
        (lost > 0).then(|| format!("{lost} connections were lost, of the ages {ages:?}"))
    }
}

/// The measured effect of a step on clients.
struct ObservedEffect {
    event: Instant,
    outage: Duration,
    idle: usize,
    turnover: TurnoverReport,
    streams: StreamsReport,
}

/// Hands over to the other manager, then restores this one's priority, which moves nothing.
fn hand_over(pair: &mut Pair, index: usize) -> Result<()> {
    output(&mut pair.managers[index].memlb("handover"))?;
    pair.wait_until_active(1 - index, DEADLINE)?;
    output(pair.managers[index].memlb("handover").arg("--undo")).map(drop)
}

/// Reboots the first manager: its kernel has no maps of memlb, and all processes start again.
fn boot(pair: &mut Pair) -> Result<()> {
    let manager = &mut pair.managers[0];
    manager.kill_keepalived()?;
    manager.kill_controller()?;
    output(&mut manager.memlb("unload"))?;
    pair.network.managers[0].reconnect()?;
    let manager = &mut pair.managers[0];
    manager.start_controller()?;
    manager.start_keepalived()?;
    complete(pair)
}

/// Drops keepalived's messages at both managers for [`SPLIT`].
fn split(pair: &mut Pair) -> Result<()> {
    const BLOCK: &str = "table inet split {
        chain input { type filter hook input priority 0; meta l4proto vrrp drop; }
    }";
    for manager in &pair.network.managers {
        manager.run("nft", &[BLOCK])?;
    }
    thread::sleep(SPLIT);
    let active = pair.active();
    for manager in &pair.network.managers {
        manager.run("nft", &["delete table inet split"])?;
    }
    ensure!(
        active.len() == 2,
        "active while they were split: {active:?}"
    );
    Ok(())
}

fn complete(pair: &Pair) -> Result<()> {
    for manager in &pair.managers {
        manager.wait_until_complete(DEADLINE)?;
    }
    Ok(())
}
