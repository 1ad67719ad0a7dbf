//! What is said of datagrams, and how often: no flood of them becomes a flood of words.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::core::Memory;

/// What is said in the event log.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Happening<'a> {
    /// What a worker said, as often as [`Heard::due`] says.
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

/// How long the next line about a worker waits for its memory to change, at least and at most.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(10);

/// With many workers each is heard of less often, so that all of them get ten lines a second.
const FOR_EACH_WORKER: Duration = Duration::from_millis(100);

/// What was last said of a worker's heartbeats.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// When, and with how much available memory.
    said: Option<(Instant, u64)>,
    unmentioned: u64,
}

impl Heard {
    /// Counts one more; says how many are to be mentioned now: at the first, after a while, and
    /// sooner if the memory has changed by a twentieth of the total.
    pub fn due(&mut self, now: Instant, memory: Memory, workers: usize) -> Option<u64> {
        self.unmentioned += 1;
        let available = memory.available_bytes;
        let due = self.said.is_none_or(|(at, before)| {
            let workers = u32::try_from(workers).unwrap_or(u32::MAX);
            let soonest = SOONEST.max(FOR_EACH_WORKER.saturating_mul(workers));
            let step = memory.total_bytes.unwrap_or(before) / 20;
            let passed = now.saturating_duration_since(at);
            let changed = available.abs_diff(before) >= step.max(1);
            passed >= LATEST.max(soonest) || passed >= soonest && changed
        });
        due.then(|| {
            self.said = Some((now, available));
            std::mem::take(&mut self.unmentioned)
        })
    }
}

/// The last datagram that was refused for some reason.
#[derive(Debug)]
pub(super) struct LastRefused {
    pub at: Instant,
    pub from: SocketAddr,
    pub detail: String,
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(available_mib: u64) -> Memory {
        Memory {
            available_bytes: available_mib * MIB,
            total_bytes: Some(700 * MIB),
        }
    }

    /// How many lines a minute of ten heartbeats a second makes, for so many workers.
    fn lines(workers: usize, available_mib: impl Fn(u64) -> u64) -> (u64, u64) {
        let start = Instant::now();
        let mut heard = Heard::default();
        let said = (0..600).filter_map(|beat| {
            let now = start + Duration::from_millis(100) * u32::try_from(beat).unwrap();
            heard.due(now, memory(available_mib(beat)), workers)
        });
        said.fold((0, 0), |(lines, beats), more| (lines + 1, beats + more))
    }

    #[test]
    fn a_steady_worker_is_mentioned_every_ten_seconds() {
        assert_eq!(lines(2, |beat| 300 + beat % 20), (6, 501));
    }

    #[test]
    fn a_worker_whose_memory_moves_is_mentioned_once_a_second() {
        assert_eq!(lines(2, |beat| 300 + beat % 2 * 100 + beat / 10 % 2 * 200).0, 60);
    }

    #[test]
    fn many_workers_share_ten_lines_a_second() {
        let histories: [fn(u64) -> u64; 2] = [|_| 300, |beat| 300 + beat / 10 % 2 * 200];
        for available in histories {
            let (lines, _) = lines(300, available);
            assert_eq!(300 * lines / 60, 10, "lines a second");
        }
    }
}
