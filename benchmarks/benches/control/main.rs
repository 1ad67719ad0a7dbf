//! The manager's processor share with a thousand workers that send ten signed heartbeats a second, the delay until it
//! marks one of them as down, and failed requests during a thousand decisions a second.
//!
//! `cargo xtask bench control` builds and starts this.

mod crowd;
mod decisions;

use std::{
    collections::BTreeMap,
    env, fs,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use memlb_tests::Cluster;
use serde_json::{Value, json};

use crate::crowd::{Crowd, WORKERS, processor_time};

/// Until every worker is up, and nonces are in use.
const WARM_UP: Duration = Duration::from_secs(3);

const MEASURED: Duration = Duration::from_secs(10);
const STOPPED_WORKERS: usize = 20;
const STOP_INTERVAL: Duration = Duration::from_millis(230);

/// memlb's default.
const DOWN_AFTER: Duration = Duration::from_millis(1_500);

const MAX_SHARE: f64 = 0.2;
const MAX_DELAY: Duration = Duration::from_millis(20);

/// One figure, and its highest accepted value.
#[derive(Debug)]
struct Figure {
    what: String,
    measured: String,
    at_most: String,
    reached: bool,
    json: Value,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` starts benchmarks, too.
        println!("nothing to test here; `cargo xtask bench control` measures");
        return Ok(());
    }
    let mut figures = Vec::new();
    for policy in ["memory", "balanced"] {
        figures.extend(crowd_under(policy)?);
    }
    figures.push(decisions()?);
    println!("  {:<64}{:>34}   at most", "", "measured");
    for figure in &figures {
        let Figure { what, measured, .. } = figure;
        let verdict = if figure.reached { "reached" } else { "MISSED" };
        println!("  {what:<64}{measured:>34}   {}  {verdict}", figure.at_most);
    }
    let missed = figures.iter().filter(|figure| !figure.reached).count();
    let json = arguments.iter().position(|argument| argument == "--json");
    if let Some(file) = json.and_then(|at| arguments.get(at + 1)) {
        let json: Value = figures.into_iter().map(|figure| figure.json).collect();
        fs::write(file, format!("{json:#}\n")).with_context(|| format!("write {file}"))?;
    }
    ensure!(missed == 0, "{missed} figures are missed");
    Ok(())
}

/// Measures with a thousand live workers, then stops some of them in sequence.
fn crowd_under(policy: &str) -> Result<[Figure; 2]> {
    let (cluster, mut crowd) = Crowd::start(policy)?;
    crowd.send_for(WARM_UP)?;
    let accepted = || -> Result<u64> {
        let accepted = cluster.status()?["heartbeats"]["accepted"].as_u64();
        accepted.context("the manager counts heartbeats")
    };
    let (received, sent) = (accepted()?, crowd.sent());
    let (cost, begun) = (processor_time(&cluster)?, Instant::now());
    crowd.send_for(MEASURED)?;
    let cost = processor_time(&cluster)? - cost;
    let seconds = begun.elapsed().as_secs_f64();
    let share = cost.as_secs_f64() / seconds;
    let (received, sent) = (accepted()? - received, crowd.sent() - sent);
    let rate = received as f64 / seconds;
    ensure!(
        received + 100 >= sent,
        "{received} of {sent} heartbeats were accepted"
    );
    let late = stop_workers(&cluster, &mut crowd)?;
    let (median, worst) = (late[late.len() / 2], late[late.len() - 1]);
    Ok([
        Figure {
            what: format!("{WORKERS} workers, {policy}: the manager's share of a core"),
            measured: format!("{:.1} % at {rate:.0}/s", share * 100.0),
            at_most: format!("{:.0} %", MAX_SHARE * 100.0),
            reached: share <= MAX_SHARE,
            json: json!({
                "figure": "processor_share", "policy": policy, "workers": WORKERS,
                "measured": share, "heartbeats_per_second": rate, "at_most": MAX_SHARE,
            }),
        },
        Figure {
            what: format!(
                "{WORKERS} workers, {policy}: a stopped worker is down after its deadline by"
            ),
            measured: format!("{median} ms, at worst {worst} ms of {}", late.len()),
            at_most: format!("{} ms", MAX_DELAY.as_millis()),
            reached: u128::try_from(worst)? <= MAX_DELAY.as_millis(),
            json: json!({
                "figure": "deadline_late_ms", "policy": policy, "workers": WORKERS,
                "measured": late, "at_most": MAX_DELAY.as_millis() as u64,
            }),
        },
    ])
}

/// Stops workers. Returns the sorted delays in milliseconds from each deadline, counted from the sending of the last
/// heartbeat, to the event `worker_down`.
fn stop_workers(cluster: &Cluster, crowd: &mut Crowd) -> Result<Vec<i64>> {
    let mut last_sent = BTreeMap::new();
    for _ in 0..STOPPED_WORKERS {
        last_sent.extend(crowd.stop_one());
        crowd.send_for(STOP_INTERVAL)?;
    }
    crowd.send_for(DOWN_AFTER + MAX_DELAY * 10)?;
    let down = cluster.events_of("worker_down")?;
    let mut late = Vec::new();
    for event in &down {
        let name = event["worker"].as_str().context("a worker's name")?;
        let sent = last_sent
            .remove(name)
            .with_context(|| format!("{name} sends heartbeats, but is down: {event}"))?;
        let noticed = event["time"].as_str().context("a time")?;
        let noticed = humantime::parse_rfc3339(noticed)?;
        late.push(milliseconds(noticed)? - milliseconds(sent + DOWN_AFTER)?);
    }
    ensure!(last_sent.is_empty(), "stopped, but not down: {last_sent:?}");
    late.sort_unstable();
    Ok(late)
}

fn milliseconds(time: SystemTime) -> Result<i64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(i64::try_from(since.as_millis())?)
}

fn decisions() -> Result<Figure> {
    let outcome = decisions::measure()?;
    let failed = outcome.failures.len();
    for failure in outcome.failures.iter().take(5) {
        println!("  failed: {failure}");
    }
    let decisions_per_second = outcome.decisions as f64 / outcome.seconds;
    Ok(Figure {
        what: format!(
            "{decisions_per_second:.0} decisions/s for {:.0} s under load: failed requests",
            outcome.seconds
        ),
        measured: format!("{failed} of {}", outcome.requests),
        at_most: "0".to_owned(),
        reached: failed == 0 && decisions_per_second >= 990.0,
        json: json!({
            "figure": "failed_requests", "decisions": outcome.decisions,
            "seconds": outcome.seconds, "requests": outcome.requests,
            "measured": failed, "at_most": 0,
        }),
    })
}
