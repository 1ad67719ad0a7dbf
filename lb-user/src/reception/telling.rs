//! What is said of datagrams, and how often: no flood of them becomes a flood of words.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::Serialize;

/// What is said in the event log.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Happening<'a> {
    /// What a worker said; one line a second and worker.
    Heartbeat {
        worker: &'a str,
        from: SocketAddr,
        memory_available_bytes: u64,
        memory_total_bytes: Option<u64>,
        /// Heartbeats of this worker since the line before.
        heartbeats: u64,
    },
    HeartbeatRefused {
        reason: &'a str,
        from: SocketAddr,
        detail: &'a str,
        /// Datagrams refused for this reason since the line before.
        datagrams: u64,
    },
}

/// How often something happened since it was last mentioned.
#[derive(Debug)]
pub(super) struct Mention {
    at: Option<Instant>,
    unmentioned: u64,
}

impl Mention {
    /// Returns one that is due at its first occurrence.
    pub fn overdue() -> Self {
        Self {
            at: None,
            unmentioned: 0,
        }
    }

    /// Counts one more; says how many are to be mentioned now, if it is time.
    pub fn due(&mut self, now: Instant, interval: Duration) -> Option<u64> {
        self.unmentioned += 1;
        let due = self
            .at
            .is_none_or(|at| now.saturating_duration_since(at) >= interval);
        due.then(|| {
            self.at = Some(now);
            std::mem::take(&mut self.unmentioned)
        })
    }
}
