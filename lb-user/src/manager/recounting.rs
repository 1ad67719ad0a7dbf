//! Has open connections counted now and then, in a task of its own: reading the flow table takes time.

use std::{path::PathBuf, time::Duration};

use nix::time::{ClockId, clock_gettime};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};
use tracing::{debug, warn};

use crate::datapath;

/// At most so often.
const INTERVAL: Duration = Duration::from_secs(5);

/// A large table takes long: between two counts passes this many times what the last one worked, so that
/// counting takes a hundredth of one processor at most. What it waited for a busy one does not matter.
const REST: u32 = 100;

/// Ended when dropped.
#[derive(Debug)]
pub(super) struct Recounting(JoinHandle<()>);

impl Recounting {
    pub fn start(pin_path: PathBuf) -> Self {
        Self(tokio::spawn(recount(pin_path)))
    }
}

impl Drop for Recounting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn recount(pin_path: PathBuf) {
    let mut failing = false;
    loop {
        let pin_path = pin_path.clone();
        let (counted, worked) = spawn_blocking(move || {
            let begun = worked();
            let counted = datapath::recount(&pin_path);
            (counted, worked().saturating_sub(begun))
        })
        .await
        .unwrap_or_else(|error| (Err(error.into()), Duration::ZERO));
        if let Err(error) = &counted
            && !failing
        {
            warn!("count open connections: {error:#}; trying again");
        }
        failing = counted.is_err();
        debug!("counted open connections in {worked:?}");
        sleep(INTERVAL.max(worked * REST)).await;
    }
}

/// How long this thread has worked.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
