//! What is said of datagrams, and how often: no flood of them becomes a flood of words.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_core::{BootId, Memory};
use serde::Serialize;

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
    /// A worker is heard from another address, by what may be a second machine of its name.
    HeartbeatsMoved {
        worker: &'a str,
        from: IpAddr,
        before: IpAddr,
    },
    HeartbeatRefused {
        reason: &'a str,
        from: SocketAddr,
        detail: &'a str,
        /// Datagrams refused for this reason since the line before.
        datagrams: u64,
    },
}

/// Where a heartbeat came from: the address, and the agent if that says.
#[derive(Debug, Clone, Copy)]
struct Source {
    from: IpAddr,
    boot: Option<BootId>,
}

/// How long the next line about a worker waits for its memory to change, at least and at most.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(10);

/// With many workers each is heard of less often, so that all of them get ten lines a second.
const FOR_EACH_WORKER: Duration = Duration::from_millis(100);

/// How often it is said that a worker's heartbeats come from another address.
const MOVES: Duration = Duration::from_secs(60);

/// What was heard of a worker last, and what was said of that.
#[derive(Debug, Default)]
pub(super) struct Heard {
    source: Option<Source>,
    /// When it was last said that there is another one.
    told_move: Option<Instant>,
    /// When, and with how much available memory.
    said: Option<(Instant, u64)>,
    unmentioned: u64,
}

impl Heard {
    /// From where it was heard last.
    pub fn from(&self) -> Option<IpAddr> {
        self.source.map(|source| source.from)
    }

    /// Takes note of where a heartbeat comes from; returns where the last one came from if that was
    /// another address, and another agent as well, and that was not said of late.
    ///
    /// One agent may have several ways to the manager.
    pub fn moved(&mut self, now: Instant, from: IpAddr, boot: Option<BootId>) -> Option<IpAddr> {
        let before = self.source.replace(Source { from, boot })?;
        let other_agent = boot.is_none() || before.boot != boot;
        let told = self.told_move;
        let is_due = told.is_none_or(|at| now.saturating_duration_since(at) >= MOVES);
        (before.from != from && other_agent && is_due).then(|| {
            self.told_move = Some(now);
            before.from
        })
    }

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
        assert_eq!(
            lines(2, |beat| 300 + beat % 2 * 100 + beat / 10 % 2 * 200).0,
            60
        );
    }

    #[test]
    fn says_that_another_agent_speaks_from_another_address_now_and_then() {
        let [one, other]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let start = Instant::now();
        let mut heard = Heard::default();
        let mut after = |seconds, from, boot: Option<u64>| {
            heard.moved(start + Duration::from_secs(seconds), from, boot.map(BootId))
        };
        assert_eq!(after(0, one, Some(1)), None);
        assert_eq!(after(1, other, Some(2)), Some(one));
        assert_eq!(after(2, one, Some(1)), None, "said just now");
        assert_eq!(after(62, other, None), Some(one));
        assert_eq!(after(130, one, None), Some(other));
        // The same agent has another way, or an agent was started anew.
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
