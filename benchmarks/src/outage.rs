//! The outage of clients when the link of the selected worker is cut.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_core::DEFAULT_DOWN_AFTER;
use memlb_tests::{Cluster, Probe, cluster_options::worker_name};
use serde::Serialize;
use serde_json::Value;

use super::{laboratory::Laboratory, statistics::Spread};
use xtask::{interrupt::Interrupt, workspace::print_message};

/// Interval of the client's requests, answered or not.
const ASK_INTERVAL: Duration = Duration::from_millis(10);

/// Shorter than the second after which TCP repeats a SYN: a lost SYN counts as a failure.
const PATIENCE: Duration = Duration::from_millis(400);

const DEADLINE: Duration = Duration::from_secs(10);

/// Until the manager detects the failure, and 100 ms for the change and the next request.
const EXPECTED_MS: u64 = DEFAULT_DOWN_AFTER.as_millis() as u64 + 100;

#[derive(Debug, Serialize)]
pub struct Outage {
    pub longest_gaps_ms: Vec<f64>,
    pub spread: Spread,
    pub at_most_ms: u64,
    pub reached: bool,
}

/// Cuts the selected worker off for a number of `repetitions`, and measures each outage.
pub fn measure(
    laboratory: &Laboratory,
    repetitions: usize,
    interrupt: &Interrupt,
) -> Result<Outage> {
    print_message("cutting the selected worker off");
    let cluster = laboratory
        .cluster()
        .context("the laboratory has no memlb")?;
    let mut longest_gaps_ms = Vec::new();
    for _ in 0..repetitions {
        interrupt.check()?;
        longest_gaps_ms.push(disconnect_once(cluster)?.as_secs_f64() * 1e3);
    }
    let spread = Spread::of(longest_gaps_ms.iter().copied()).context("at least one repetition")?;
    Ok(Outage {
        longest_gaps_ms,
        spread,
        at_most_ms: EXPECTED_MS,
        reached: spread.most <= EXPECTED_MS as f64,
    })
}

fn disconnect_once(cluster: &Cluster) -> Result<Duration> {
    let workers = &cluster.topology.workers;
    let selected = cluster.status()?["services"][0]["selected"].take();
    let index = (0..workers.len())
        .find(|index| selected == worker_name(*index).as_str())
        .with_context(|| format!("{selected} is no worker"))?;
    let other = 1 - index;

    let probe = Probe::start(
        &cluster.topology.client,
        cluster.service(),
        ASK_INTERVAL,
        PATIENCE,
    )?;
    probe.wait_for_page(&page(index), Instant::now(), DEADLINE)?;
    let cut_at = Instant::now();
    workers[index].disconnect()?;
    probe.wait_for_page(&page(other), cut_at, DEADLINE)?;
    let report = probe.stop()?;

    workers[index].reconnect()?;
    cluster.wait_for_status(DEADLINE, "the worker to be back", |status| {
        let backends = status["services"][0]["backends"].as_array();
        backends.is_some_and(|backends| {
            let state = |backend: &Value| backend["name"] == "manager" || backend["state"] == "up";
            backends.iter().all(state)
        })
    })?;
    Ok(report.longest_outage())
}

fn page(index: usize) -> String {
    format!("Worker{}", index + 1)
}
