//! The rates of counters between two statuses.

use std::{collections::BTreeMap, time::Instant};

use memlb::{datapath::BackendTraffic, status::Status};

/// The rates of a backend, per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    pub connections: f64,
    /// Handshakes that were refused or left unanswered.
    pub failed: f64,
    pub bytes_in: f64,
    pub bytes_out: f64,
}

/// The rates between the last two readings.
#[derive(Debug, Default)]
pub struct Rates {
    last: Option<(Instant, Counts)>,
    rates: BTreeMap<u32, Rate>,
    packets: BTreeMap<String, f64>,
}

#[derive(Debug, Default)]
struct Counts {
    traffic: BTreeMap<u32, BackendTraffic>,
    packets: BTreeMap<String, u64>,
}

impl Rates {
    /// Records a reading. Ignores one that follows within half a second: its rates would fluctuate.
    pub fn update(&mut self, status: &Status, now: Instant) {
        let verdicts = status.verdicts.iter();
        let counts = Counts {
            traffic: (status.backends())
                .map(|backend| (backend.seen.backend_id.0, backend.traffic))
                .collect(),
            packets: verdicts
                .map(|(name, count)| (name.clone(), count.packets))
                .collect(),
        };
        let Some((then, before)) = &self.last else {
            self.last = Some((now, counts));
            return;
        };
        let seconds = now.saturating_duration_since(*then).as_secs_f64();
        if seconds < 0.5 {
            return;
        }
        // Counters restart at 0 with new maps.
        let rate = |after: u64, before: u64| after.saturating_sub(before) as f64 / seconds;
        let known = counts.traffic.iter().filter_map(|(id, after)| {
            let before = before.traffic.get(id)?;
            let rate = Rate {
                connections: rate(after.connections, before.connections),
                failed: rate(
                    after.refused + after.unanswered,
                    before.refused + before.unanswered,
                ),
                bytes_in: rate(after.bytes_in, before.bytes_in),
                bytes_out: rate(after.bytes_out, before.bytes_out),
            };
            Some((*id, rate))
        });
        self.rates = known.collect();
        let known = counts.packets.iter().filter_map(|(name, after)| {
            let before = before.packets.get(name)?;
            Some((name.clone(), rate(*after, *before)))
        });
        self.packets = known.collect();
        self.last = Some((now, counts));
    }

    pub fn of(&self, backend: u32) -> Option<Rate> {
        self.rates.get(&backend).copied()
    }

    pub fn of_verdict(&self, verdict: &str) -> Option<f64> {
        self.packets.get(verdict).copied()
    }
}
