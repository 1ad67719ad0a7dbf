//! The story of a pair: who has the address after each step, and what clients saw of it.

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
    lab::demo::{Observation, milliseconds, play_steps},
};

/// Connections that say nothing but for a check after each step.
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
/// How long clients work before and after the change.
const BEFORE: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_secs(2);

/// A planned change takes the time between keepalived's messages, and a busy machine may delay the client.
const PLANNED: Duration = Duration::from_millis(300);
/// keepalived's three missed messages, and the same.
const SUDDEN: Duration = Duration::from_millis(800);

/// Connections of that age have reached the peer.
const REPLICATED: Duration = Duration::from_secs(1);
const SPLIT: Duration = Duration::from_secs(4);

/// One step of the story.
struct Step {
    what: &'static str,
    act: fn(&mut Pair) -> Result<()>,
    /// Which manager has the address afterwards.
    active: usize,
    /// How long clients may go without a page.
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
        &[$(Step {
            what: $what,
            act: $act,
            active: $active,
            outage: $outage,
            survives: Survival::$survives,
        }),+]
    };
}

const STEPS: &[Step] = steps! {
    "manager1 has the address, manager2 waits", |_| Ok(()), 0, PLANNED, All;
    "on manager1: memlb handover", |pair| hand_over(pair, 0), 1, PLANNED, All;
    "on manager2: memlb handover", |pair| hand_over(pair, 1), 0, PLANNED, All;
    "manager1 is cut off", |pair| pair.network.cut_off(0), 1, SUDDEN, Older;
    "manager1 boots, learns, and takes nothing away", boot, 1, PLANNED, All;
    "on manager2: memlb handover", |pair| hand_over(pair, 1), 0, PLANNED, All;
    // Of equals, keepalived prefers the one with the higher address.
    "both have the address for 4 s (split brain)", split, 1, SUDDEN, All;
};

/// Plays all steps on a new `pair`, prints what clients see, and returns whether every step had the expected outcome.
pub fn play(mut pair: Pair, interrupt: &Interrupt) -> Result<bool> {
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
    play_steps(STEPS, interrupt, |step| {
        print!("  {:<50}", step.what);
        io::stdout().flush()?;
        step.play(&mut pair, &mut idle)
    })
}

impl Step {
    fn play(&self, pair: &mut Pair, idle: &mut Idle) -> Result<Observation> {
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
        let seen = Seen {
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

    /// Returns what was not as expected.
    fn difference(&self, seen: &Seen) -> Option<String> {
        if seen.outage > self.outage {
            return Some(format!("longer without a page than {:?}", self.outage));
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

/// What clients saw of a step.
struct Seen {
    event: Instant,
    outage: Duration,
    idle: usize,
    turnover: TurnoverReport,
    streams: StreamsReport,
}

/// Lets the other manager take over, and makes this one equal to it again, which moves nothing.
fn hand_over(pair: &mut Pair, index: usize) -> Result<()> {
    output(&mut pair.managers[index].memlb("handover"))?;
    pair.wait_until_active(1 - index, DEADLINE)?;
    output(pair.managers[index].memlb("handover").arg("--undo")).map(drop)
}

/// Starts the first manager's machine again: the kernel has nothing of memlb's, and everything starts.
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

/// Keeps keepalived's messages from both for a while.
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
