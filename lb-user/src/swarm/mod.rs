//! Docker Swarm as a source of workers: its running tasks become workers.
//!
//! Swarm lists the workers; their agents report whether they are up, also while Swarm reports a node as down. The
//! process polls the API of one of Swarm's managers, because some changes cause no event. An event only makes the next
//! poll earlier.

mod api;
mod docker;
mod labels;
mod tasks;

use std::{collections::BTreeSet, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{debug, warn};

pub use docker::Docker;

use self::tasks::SwarmWorkers;
use crate::{abort_on_drop::AbortOnDrop, membership::ExternalWorker, worker_source::SourceClient};

/// The least time between two polls.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// How long after the end of the stream of events the next one is opened.
const EVENTS_RETRY: Duration = Duration::from_secs(1);

/// Polls the API every `period`, and sends the workers to the manager; never returns.
///
/// While the API does not answer, the last workers stay in force.
pub async fn run(docker: Docker, mut source: SourceClient, period: Duration) {
    let (woken, mut wake) = watch::channel(());
    let events = docker.clone();
    let _watcher = AbortOnDrop(tokio::spawn(watch_events(events, woken)));
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    let mut kept = BTreeSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = wake.changed() => ticks.reset(),
        }
        match docker.state().await {
            Ok(state) => {
                // The workers of an earlier process.
                if known.is_none() {
                    known = source.workers().await.ok();
                }
                let SwarmWorkers {
                    list,
                    on_down_nodes,
                } = tasks::workers(&state, known.as_ref().unwrap_or(&BTreeSet::new()));
                log_kept(&kept, &on_down_nodes);
                source.publish(&list).await;
                known = known.map(|_| list.workers.iter().map(ExternalWorker::path).collect());
                kept = on_down_nodes;
            }
            Err(error) => source.report_problem(&format!("{error:#}")).await,
        }
        sleep(MIN_INTERVAL).await;
    }
}

/// Logs the workers that newly stay although their nodes are down.
fn log_kept(before: &BTreeSet<String>, now: &BTreeSet<String>) {
    for worker in now.difference(before) {
        warn!("{worker} stays a worker although Swarm reports its node as down: its agent decides");
    }
}

/// Wakes the loop at each event.
async fn watch_events(docker: Docker, woken: watch::Sender<()>) {
    loop {
        if let Err(error) = docker.watch_events(|| woken.send_replace(())).await {
            debug!("{error:#}");
        }
        sleep(EVENTS_RETRY).await;
    }
}
