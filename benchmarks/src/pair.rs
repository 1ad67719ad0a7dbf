//! Cost and lag of the replication between two managers, and the connections that a crash loses.

use std::{
    fmt,
    net::SocketAddrV4,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memlb_tests::{
    load::{Ending, Load, Sources, open_at_rate, raise_open_files},
    pair::{LOAD_PORT, Pair, PairNetwork, PairOptions, SERVICE_ADDRESS, Turnover},
};
use serde::Serialize;

use super::{machine::ProcessorTime, processor, table::Table};
use xtask::{interrupt::Interrupt, packages::Tool, tools, workspace::print_message};

pub const TOOLS: &[Tool] = tools! {
    "keepalived" "keepalived" "moves the addresses when a manager dies; its service is not started";
    "busybox" "busybox-static" "announces the laboratory's router by ARP";
    "sysctl" "procps" "gives the client more ports";
};

/// Connections a second.
const RATES: [u32; 2] = [5_000, 20_000];
/// Highest accepted cost of peers for sender and receiver, of one core, at the higher rate.
const SENDER_AT_MOST: f64 = 0.02;
const RECEIVER_AT_MOST: f64 = 0.04;
/// Highest accepted lag of acknowledgements at the lower rate: median and 99th percentile.
const LAG_AT_MOST: [Duration; 2] = [Duration::from_millis(3), Duration::from_millis(10)];

/// Connections a second at the crash. Each lives for three seconds.
const TURNOVER: u32 = 1_000;
const BEFORE_CRASH: Duration = Duration::from_secs(6);
const AFTER_CRASH: Duration = Duration::from_secs(2);
/// Age from which on a connection must survive.
const OLD: Duration = Duration::from_secs(1);
const SURVIVES_AT_LEAST: f64 = 0.999;

const PATIENCE: Duration = Duration::from_secs(20);

/// The measured figures.
#[derive(Debug, Serialize)]
pub struct PairFigures {
    costs: Vec<ReplicationCost>,
    crashes: Vec<Crash>,
}

/// One measurement at a rate. Shares are of one core, of the manager process with its system calls.
#[derive(Debug, Serialize)]
struct ReplicationCost {
    rate: u32,
    peers: bool,
    active_share: f64,
    waiting_share: f64,
    connections: u64,
    failed: u64,
    skipped: u64,
    records_sent: u64,
    lag: Option<Lag>,
    /// The hypervisor's share of the time.
    stolen_percent: f64,
}

/// The fate of connections when the active manager's machine was cut off.
#[derive(Debug, Serialize)]
pub struct Crash {
    peers: bool,
    open: usize,
    lost: usize,
    old: usize,
    old_lost: usize,
    oldest_lost_ms: f64,
    new_connection_ms: f64,
    /// Before the crash, if anything replicates.
    lag: Option<Lag>,
}

/// The time until the other manager knows a connection: the median and the 99th percentile.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Lag {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Measures everything with and without peers.
///
/// # Errors
/// The setup of a laboratory or a client failed.
pub fn measure(duration: Duration, interrupt: &Interrupt) -> Result<PairFigures> {
    raise_open_files()?;
    let (mut costs, mut crashes) = (Vec::new(), Vec::new());
    for peers in [false, true] {
        let pair = start(peers)?;
        for rate in RATES {
            interrupt.check()?;
            print_message(format!("{rate} connections a second, {}", with(peers)));
            costs.push(cost(&pair, rate, duration)?);
        }
        print_message(format!("crash, {}", with(peers)));
        crashes.push(crash(pair)?);
    }
    Ok(PairFigures { costs, crashes })
}

fn start(peers: bool) -> Result<Pair> {
    let pair = Pair::start(&PairOptions {
        peers,
        ..PairOptions::default()
    })?;
    pair.wait_until_active(0, PATIENCE)?;
    if peers {
        for manager in &pair.managers {
            manager.wait_until_complete(PATIENCE)?;
        }
    }
    let ports = "net.ipv4.ip_local_port_range=1024 65535";
    let client = &pair.network.client;
    client.run("sysctl", &["--quiet", "--write", ports])?;
    Ok(pair)
}

fn cost(pair: &Pair, rate: u32, duration: Duration) -> Result<ReplicationCost> {
    let target = [SocketAddrV4::new(SERVICE_ADDRESS, LOAD_PORT)];
    let stop = AtomicBool::new(false);
    let load = Load {
        targets: &target,
        sources: Sources::One,
        // Leaves no port in TIME_WAIT.
        ending: Ending::ClientReset,
        stop: &stop,
    };
    let used = || -> Result<[Duration; 2]> { Ok([used(pair, 0)?, used(pair, 1)?]) };
    let machine = ProcessorTime::now();
    let (began, before) = (Instant::now(), used()?);
    let tally = open_at_rate(&pair.network.client, load, rate, duration)?;
    let after = used()?;
    let seconds = began.elapsed().as_secs_f64();
    let share = |index: usize| (after[index] - before[index]).as_secs_f64() / seconds;
    let peers = pair.options().peers;
    Ok(ReplicationCost {
        rate,
        peers,
        active_share: share(0),
        waiting_share: share(1),
        connections: tally.attempts,
        failed: tally.failed(),
        skipped: tally.skipped,
        records_sent: match peers {
            true => figure(pair, "records_sent")?,
            false => 0,
        },
        lag: Lag::of(pair)?,
        stolen_percent: machine.stolen_percent_since(),
    })
}

fn figure(pair: &Pair, name: &str) -> Result<u64> {
    let figure = pair.managers[0].peer(name)?;
    Ok(figure.as_u64().unwrap_or_default())
}

impl Lag {
    /// Returns what the first manager has measured, until the acknowledgement; `None` without peers.
    ///
    /// # Errors
    /// The manager does not answer.
    pub fn of(pair: &Pair) -> Result<Option<Self>> {
        if !pair.options().peers {
            return Ok(None);
        }
        Ok(Some(Self {
            p50_ms: figure(pair, "lag_p50_us")? as f64 / 1e3,
            p99_ms: figure(pair, "lag_p99_us")? as f64 / 1e3,
        }))
    }

    fn columns(lag: Option<Self>) -> [String; 2] {
        let text =
            |of: fn(Self) -> f64| lag.map_or("–".to_owned(), |it| format!("{:.1} ms", of(it)));
        [text(|it| it.p50_ms), text(|it| it.p99_ms)]
    }
}

fn used(pair: &Pair, index: usize) -> Result<Duration> {
    let controller = pair.managers[index].controller.as_ref();
    processor::of_group(controller.context("the controller runs")?.pid())
}

fn crash(pair: Pair) -> Result<Crash> {
    let peers = pair.options().peers;
    let lag = || Lag::of(&pair);
    Crash::of(&pair.network, TURNOVER, peers, lag, || Ok(()))
}

impl Crash {
    pub const COLUMNS: [&str; 9] = [
        "crash",
        "open",
        "lost",
        "older than 1 s",
        "lost",
        "oldest lost",
        "lag p50",
        "lag p99",
        "new after",
    ];

    /// Cuts the first manager off while clients open `per_second` connections, and moves the addresses by `moves`.
    /// `lag` measures the lag before.
    ///
    /// # Errors
    /// `lag`, `moves` or the client failed.
    pub fn of(
        network: &PairNetwork,
        per_second: u32,
        peers: bool,
        lag: impl FnOnce() -> Result<Option<Lag>>,
        moves: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let turnover = Turnover::start(&network.client, per_second)?;
        thread::sleep(BEFORE_CRASH);
        let lag = lag()?;
        network.disconnect(0)?;
        let event = Instant::now();
        moves()?;
        thread::sleep(AFTER_CRASH);
        let report = turnover.finish()?;
        let lost = report.ages_of_lost(event);
        let is_old = |age: &Duration| *age > OLD;
        let ages = report.open_at(event).filter_map(|it| it.established);
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Self {
            peers,
            open: report.open_at(event).count(),
            lost: lost.len(),
            old: ages.filter(|it| is_old(&event.duration_since(*it))).count(),
            old_lost: lost.iter().filter(|age| is_old(age)).count(),
            oldest_lost_ms: lost.last().copied().map_or(0.0, milliseconds),
            new_connection_ms: report
                .first_answer_after(event)
                .map_or(f64::INFINITY, milliseconds),
            lag,
        })
    }

    /// Returns the row of a table with [`Self::COLUMNS`].
    pub fn row(&self, who: String) -> [String; 9] {
        let [half, most] = Lag::columns(self.lag);
        [
            who,
            self.open.to_string(),
            self.lost.to_string(),
            self.old.to_string(),
            self.old_lost.to_string(),
            format!("{:.1} ms", self.oldest_lost_ms),
            half,
            most,
            format!("{:.0} ms", self.new_connection_ms),
        ]
    }
}

fn with(peers: bool) -> &'static str {
    if peers { "with peers" } else { "without peers" }
}

impl PairFigures {
    /// Returns the number of missed figures.
    pub fn missed(&self) -> usize {
        let missed = self.verdicts().into_iter().filter(|(_, reached)| !reached);
        missed.count()
    }

    /// Returns the expectations, and whether they are met.
    fn verdicts(&self) -> Vec<(String, bool)> {
        let cost = |rate, peers| {
            let mut costs = self.costs.iter();
            costs.find(|it| it.rate == rate && it.peers == peers)
        };
        let [lower, higher] = RATES;
        let mut verdicts = Vec::new();
        if let (Some(without), Some(with)) = (cost(higher, false), cost(higher, true)) {
            for (who, more, most) in [
                (
                    "sender",
                    with.active_share - without.active_share,
                    SENDER_AT_MOST,
                ),
                (
                    "receiver",
                    with.waiting_share - without.waiting_share,
                    RECEIVER_AT_MOST,
                ),
            ] {
                let text = format!(
                    "peers cost the {who} {:.1} % of a core, at most {:.0} %",
                    more * 100.0,
                    most * 100.0
                );
                verdicts.push((text, more <= most));
            }
        }
        if let Some(Lag { p50_ms, p99_ms }) = cost(lower, true).and_then(|it| it.lag) {
            let [half, most] = LAG_AT_MOST.map(|it| it.as_secs_f64() * 1e3);
            let text = format!(
                "acknowledged after {p50_ms:.1} and {p99_ms:.1} ms, at most {half} and {most} ms"
            );
            verdicts.push((text, p50_ms <= half && p99_ms <= most));
        }
        if let Some(crash) = self.crashes.iter().find(|it| it.peers) {
            let share = 1.0 - crash.old_lost as f64 / crash.old.max(1) as f64;
            let text = format!(
                "{:.2} % of the connections older than {OLD:?} survive, at least {:.1} %",
                share * 100.0,
                SURVIVES_AT_LEAST * 100.0
            );
            verdicts.push((text, share >= SURVIVES_AT_LEAST));
        }
        verdicts
    }
}

impl fmt::Display for PairFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "connections/s",
            "active",
            "waiting",
            "failed",
            "not opened",
            "records",
            "lag p50",
            "lag p99",
            "stolen",
        ]);
        for cost in &self.costs {
            let [half, most] = Lag::columns(cost.lag);
            table.row([
                format!("{} {}", cost.rate, with(cost.peers)),
                format!("{:.1} %", cost.active_share * 100.0),
                format!("{:.1} %", cost.waiting_share * 100.0),
                format!("{} of {}", cost.failed, cost.connections),
                cost.skipped.to_string(),
                cost.records_sent.to_string(),
                half,
                most,
                format!("{:.0} %", cost.stolen_percent),
            ]);
        }
        writeln!(f, "the manager processes, of one core\n\n{table}")?;
        let mut table = Table::new(&Crash::COLUMNS);
        for crash in &self.crashes {
            table.row(crash.row(with(crash.peers).to_owned()));
        }
        writeln!(f, "{table}")?;
        for (text, reached) in self.verdicts() {
            let verdict = if reached { "reached" } else { "MISSED" };
            writeln!(f, "  {text}: {verdict}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Crash, Lag, PairFigures, RATES, ReplicationCost};

    #[test]
    fn compares_figures_with_expectations() {
        let cost = |rate, peers, share| ReplicationCost {
            rate,
            peers,
            active_share: share,
            waiting_share: share,
            connections: 1,
            failed: 0,
            skipped: 0,
            records_sent: 2,
            lag: Some(Lag {
                p50_ms: 1.0,
                p99_ms: 11.0,
            }),
            stolen_percent: 0.0,
        };
        let crash = Crash {
            peers: true,
            open: 3000,
            lost: 3,
            old: 2000,
            old_lost: 2,
            oldest_lost_ms: 1100.0,
            new_connection_ms: 400.0,
            lag: None,
        };
        let outcome = PairFigures {
            costs: vec![
                cost(RATES[1], false, 0.01),
                cost(RATES[0], true, 0.02),
                cost(RATES[1], true, 0.04),
            ],
            crashes: vec![crash],
        };
        let reached: Vec<bool> = outcome.verdicts().iter().map(|it| it.1).collect();
        // Sender, receiver, lag, survival.
        assert_eq!(reached, [false, true, false, true]);
        assert_eq!(outcome.missed(), 2);
    }
}
