//! Has open connections counted now and then, in a task of its own: reading the flow table takes time.

use std::{path::PathBuf, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

use crate::datapath;

const INTERVAL: Duration = Duration::from_secs(5);

/// Ended when dropped.
#[derive(Debug)]
pub(super) struct Recounting(JoinHandle<()>);

impl Recounting {
    pub fn start(pin_path: PathBuf, idle: Duration) -> Self {
        Self(tokio::spawn(recount(pin_path, idle)))
    }
}

impl Drop for Recounting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn recount(pin_path: PathBuf, idle: Duration) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        let pin_path = pin_path.clone();
        let counted = match spawn_blocking(move || datapath::recount(&pin_path, idle)).await {
            Ok(counted) => counted,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = &counted
            && !failing
        {
            warn!("count open connections: {error:#}; trying again");
        }
        failing = counted.is_err();
    }
}
