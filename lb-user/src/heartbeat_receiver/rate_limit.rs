//! Limits how often datagrams are logged, so that a flood of datagrams does not become a flood of log lines.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_core::{BootId, Memory};

/// The source of a heartbeat: its address, and the boot id of the agent if it has one.
#[derive(Debug, Clone, Copy)]
struct HeartbeatSource {
    address: IpAddr,
    boot: Option<BootId>,
}

/// The least time between two samples of a worker whose memory changes.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two samples of a worker whose memory does not change.
const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// The least time between two samples of any workers: all workers together get ten samples a second.
const INTERVAL_PER_WORKER: Duration = Duration::from_millis(100);

/// The least time between two events that a worker's heartbeats come from another address.
const MOVE_INTERVAL: Duration = Duration::from_secs(60);

/// The last heartbeat of a worker, and when it was last logged.
#[derive(Debug, Default)]
pub(super) struct WorkerLog {
    source: Option<HeartbeatSource>,
    move_reported: Option<Instant>,
    /// When the last sample was logged, and the available memory in it.
    sampled: Option<(Instant, u64)>,
    unreported: u64,
}

impl WorkerLog {
    /// Returns the address of the last heartbeat.
    pub fn last_address(&self) -> Option<IpAddr> {
        self.source.map(|source| source.address)
    }

    /// Records the source of a heartbeat. Returns the former address if both address and agent differ and no move was
    /// reported within [`MOVE_INTERVAL`].
    ///
    /// One agent may reach the manager from several addresses.
    pub fn moved_from(
        &mut self,
        now: Instant,
        address: IpAddr,
        boot: Option<BootId>,
    ) -> Option<IpAddr> {
        let before = self.source.replace(HeartbeatSource { address, boot })?;
        let other_agent = boot.is_none() || before.boot != boot;
        let reported = self.move_reported;
        let is_due = reported.is_none_or(|at| now.saturating_duration_since(at) >= MOVE_INTERVAL);
        (before.address != address && other_agent && is_due).then(|| {
            self.move_reported = Some(now);
            before.address
        })
    }

    /// Counts a heartbeat. Returns the number of heartbeats since the last sample if a sample is due: for the first
    /// heartbeat, after [`MAX_INTERVAL`], and after [`MIN_INTERVAL`] if the available memory has changed by a twentieth
    /// of the total.
    pub fn sample_due(&mut self, now: Instant, memory: Memory, workers: usize) -> Option<u64> {
        self.unreported += 1;
        let available = memory.available_bytes;
        let due = self.sampled.is_none_or(|(at, before)| {
            let workers = u32::try_from(workers).unwrap_or(u32::MAX);
            let soonest = MIN_INTERVAL.max(INTERVAL_PER_WORKER.saturating_mul(workers));
            let step = memory.total_bytes.unwrap_or(before) / 20;
            let passed = now.saturating_duration_since(at);
            let changed = available.abs_diff(before) >= step.max(1);
            passed >= MAX_INTERVAL.max(soonest) || passed >= soonest && changed
        });
        due.then(|| {
            self.sampled = Some((now, available));
            std::mem::take(&mut self.unreported)
        })
    }
}

/// The last datagram that was refused for one reason, and when such datagrams were last logged.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    pub limiter: RateLimiter,
    /// When and from where the last datagram came.
    pub last: Option<(Instant, SocketAddr)>,
    /// Why it was refused.
    pub detail: String,
}

/// Limits how often something is reported, and counts what happens in between.
#[derive(Debug, Default)]
pub(super) struct RateLimiter {
    reported: Option<Instant>,
    unreported: u64,
}

impl RateLimiter {
    /// Counts one occurrence. Returns the number since the last report if a report is due. The first one is always due.
    pub fn due(&mut self, now: Instant, interval: Duration) -> Option<u64> {
        self.unreported += 1;
        let due = self
            .reported
            .is_none_or(|at| now.saturating_duration_since(at) >= interval);
        due.then(|| {
            self.reported = Some(now);
            std::mem::take(&mut self.unreported)
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
        let mut log = WorkerLog::default();
        let said = (0..600).filter_map(|beat| {
            let now = start + Duration::from_millis(100) * u32::try_from(beat).unwrap();
            log.sample_due(now, memory(available_mib(beat)), workers)
        });
        said.fold((0, 0), |(lines, beats), more| (lines + 1, beats + more))
    }

    #[test]
    fn a_steady_worker_is_mentioned_every_ten_seconds() {
        assert_eq!(lines(2, |beat| 300 + beat % 20), (6, 501));
    }

    #[test]
    fn a_worker_whose_memory_moves_is_mentioned_once_a_second() {
        assert_eq!(
            lines(2, |beat| 300 + beat % 2 * 100 + beat / 10 % 2 * 200).0,
            60
        );
    }

    #[test]
    fn reports_another_agent_of_the_same_name_now_and_then() {
        let [one, other]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let start = Instant::now();
        let mut log = WorkerLog::default();
        let mut after = |seconds, from, boot: Option<u64>| {
            log.moved_from(start + Duration::from_secs(seconds), from, boot.map(BootId))
        };
        assert_eq!(after(0, one, Some(1)), None);
        assert_eq!(after(1, other, Some(2)), Some(one));
        assert_eq!(after(2, one, Some(1)), None, "said just now");
        assert_eq!(after(62, other, None), Some(one));
        assert_eq!(after(130, one, None), Some(other));
        // The same agent has another path, or an agent was restarted.
        assert_eq!(after(200, other, Some(3)), Some(one));
        assert_eq!(after(270, one, Some(3)), None);
        assert_eq!(after(280, one, Some(4)), None);
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
