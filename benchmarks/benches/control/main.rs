//! What the manager costs with a thousand workers that sign ten times a second, how late one's death
//! is noticed among them, and whether a thousand decisions a second break anything.
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

/// Until every worker is up, and the first nonces have gone round.
const WARM_UP: Duration = Duration::from_secs(3);

const MEASURED: Duration = Duration::from_secs(10);
const DEATHS: usize = 20;
const BETWEEN_DEATHS: Duration = Duration::from_millis(230);

/// memlb's default.
const DOWN_AFTER: Duration = Duration::from_millis(1_500);

const MOST_SHARE: f64 = 0.2;
const MOST_LATE: Duration = Duration::from_millis(20);

/// One figure, and what it may be at most.
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

/// A thousand workers live, and then some of them die, one after the other.
fn crowd_under(policy: &str) -> Result<[Figure; 2]> {
    let (cluster, mut crowd) = Crowd::start(policy)?;
    crowd.send_for(WARM_UP)?;
    let accepted = || -> Result<u64> {
        let accepted = cluster.status()?["heartbeats"]["accepted"].as_u64();
        accepted.context("the manager counts heartbeats")
    };
    let (heard, sent) = (accepted()?, crowd.sent());
    let (cost, begun) = (processor_time(&cluster)?, Instant::now());
    crowd.send_for(MEASURED)?;
    let cost = processor_time(&cluster)? - cost;
    let seconds = begun.elapsed().as_secs_f64();
    let share = cost.as_secs_f64() / seconds;
    let (heard, sent) = (accepted()? - heard, crowd.sent() - sent);
    let rate = heard as f64 / seconds;
    ensure!(
        heard + 100 >= sent,
        "{heard} of {sent} heartbeats were accepted"
    );
    let late = deaths(&cluster, &mut crowd)?;
    let (median, worst) = (late[late.len() / 2], late[late.len() - 1]);
    Ok([
        Figure {
            what: format!("{WORKERS} workers, {policy}: the manager's share of a core"),
            measured: format!("{:.1} % at {rate:.0}/s", share * 100.0),
            at_most: format!("{:.0} %", MOST_SHARE * 100.0),
            reached: share <= MOST_SHARE,
            json: json!({
                "figure": "processor_share", "policy": policy, "workers": WORKERS,
                "measured": share, "heartbeats_per_second": rate, "at_most": MOST_SHARE,
            }),
        },
        Figure {
            what: format!("{WORKERS} workers, {policy}: a death is noticed after its deadline by"),
            measured: format!("{median} ms, at worst {worst} ms of {}", late.len()),
            at_most: format!("{} ms", MOST_LATE.as_millis()),
            reached: u128::try_from(worst)? <= MOST_LATE.as_millis(),
            json: json!({
                "figure": "deadline_late_ms", "policy": policy, "workers": WORKERS,
                "measured": late, "at_most": MOST_LATE.as_millis() as u64,
            }),
        },
    ])
}

/// Returns how late each death was noticed, in milliseconds, in order: from the last heartbeat's
/// leaving its worker, by the clock that both share.
fn deaths(cluster: &Cluster, crowd: &mut Crowd) -> Result<Vec<i64>> {
    let mut spoke = BTreeMap::new();
    for _ in 0..DEATHS {
        spoke.extend(crowd.silence_one());
        crowd.send_for(BETWEEN_DEATHS)?;
    }
    crowd.send_for(DOWN_AFTER + MOST_LATE * 10)?;
    let down = cluster.events_of("worker_down")?;
    let mut late = Vec::new();
    for event in &down {
        let name = event["worker"].as_str().context("a worker's name")?;
        let spoke = spoke
            .remove(name)
            .with_context(|| format!("{name} lives, and counts as down: {event}"))?;
        let noticed = event["time"].as_str().context("a time")?;
        let noticed = humantime::parse_rfc3339(noticed)?;
        late.push(milliseconds(noticed)? - milliseconds(spoke + DOWN_AFTER)?);
    }
    ensure!(spoke.is_empty(), "dead, and not noticed: {spoke:?}");
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
