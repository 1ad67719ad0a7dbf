//! Docker Swarm as a source of workers: its running tasks become workers.
//!
//! Swarm lists the workers; their agents report whether they are up. The process polls the API of one of Swarm's managers,
//! because some changes cause no event. An event only makes the next poll earlier.

mod api;
mod docker;
mod labels;
mod tasks;

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::debug;

pub use docker::Docker;

use crate::{abort_on_drop::AbortOnDrop, worker_source::SourceClient};

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
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = wake.changed() => ticks.reset(),
        }
        match docker.state().await {
            Ok(state) => source.publish(&tasks::workers(&state)).await,
            Err(error) => source.report_problem(&format!("{error:#}")).await,
        }
        sleep(MIN_INTERVAL).await;
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
