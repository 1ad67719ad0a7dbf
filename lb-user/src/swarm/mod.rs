//! The source that is a Docker Swarm: its running tasks become workers.
//!
//! Swarm says which workers there are; that they live, their agents say. The process polls the API of one of
//! Swarm's managers, because some changes come without an event; an event only makes the next poll earlier.

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

/// Events that come closer together than this make one poll.
const PAUSE: Duration = Duration::from_millis(50);

/// How long after the end of the stream of events the next one is opened.
const EVENTS_RETRY: Duration = Duration::from_secs(1);

/// Polls the API every `period`, and gives the workers to the manager; never returns.
///
/// While the API does not answer, the last workers stay in force.
pub async fn run(docker: Docker, mut source: SourceClient, period: Duration) {
    let (woken, mut wake) = watch::channel(());
    let events = docker.clone();
    let _following = AbortOnDrop(tokio::spawn(watch_events(events, woken)));
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = wake.changed() => ticks.reset(),
        }
        match docker.state().await {
            Ok(state) => source.publish(&tasks::workers(&state)).await,
            Err(error) => {
                let problem = format!("{error:#}").replace('\n', " ");
                source.fail(problem.chars().take(500).collect()).await;
            }
        }
        sleep(PAUSE).await;
    }
}

/// Wakes the loop at each event.
async fn watch_events(docker: Docker, woken: watch::Sender<()>) {
    loop {
        let outcome = docker.follow_events(|| woken.send_replace(())).await;
        if let Err(error) = outcome {
            debug!("{error:#}");
        }
        sleep(EVENTS_RETRY).await;
    }
}
