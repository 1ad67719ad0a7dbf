//! Corrects the counters of open connections from time to time: packet programs cannot count the flows that the table
//! evicts. A task of its own reads the flow table, because that takes time.

use std::{path::PathBuf, time::Duration};

use nix::time::{ClockId, clock_gettime};
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{debug, warn};

use crate::datapath;

/// The least time between two counts.
const INTERVAL: Duration = Duration::from_secs(5);

/// The pause after a count, in multiples of its CPU time. So counting takes a hundredth of one CPU at most.
const PAUSE_FACTOR: u32 = 100;

/// Counts the open connections again and again.
pub(super) async fn reconcile_forever(pin_path: PathBuf) {
    let mut failing = false;
    loop {
        let pin_path = pin_path.clone();
        let (counted, worked) = spawn_blocking(move || {
            let begun = cpu_time();
            let counted = datapath::reconcile_connection_counts(&pin_path);
            (counted, cpu_time().saturating_sub(begun))
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
        sleep(INTERVAL.max(worked * PAUSE_FACTOR)).await;
    }
}

/// Returns the CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
