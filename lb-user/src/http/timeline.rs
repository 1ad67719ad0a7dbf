//! Figures over time in three rings of bounded size, so that a page that is opened after an incident shows it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_core::{Health, MANAGER};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::{
    history::now_ms,
    manager::ManagerHandle,
    status::{BackendStatus, Status},
};

/// How often the manager samples.
const TICK_MS: u64 = 5_000;

/// The maximum number of backends of a ring; further ones are not recorded.
const MAX_TRACKS: usize = 4_096;

/// How far back a timeline reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Range {
    /// Ten minutes, a sample every 5 seconds.
    #[default]
    #[serde(rename = "10m")]
    TenMinutes,
    /// An hour, a sample every 30 seconds.
    #[serde(rename = "1h")]
    Hour,
    /// A day, a sample every 10 minutes.
    #[serde(rename = "24h")]
    Day,
}

/// Figures over time, one for each time of `at_ms`; null if unknown.
#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Timeline {
    /// Now, in milliseconds since 1970 by the manager's clock.
    pub now_ms: u64,
    pub range: Range,
    /// The time between two samples.
    pub interval_ms: u64,
    /// The times of the samples, by the same clock; the oldest first.
    pub at_ms: Vec<u64>,
    /// By service, then by backend.
    pub services: BTreeMap<String, BTreeMap<String, Track>>,
}

/// The figures of one backend. A worker that is down and has no open connection has none.
#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Track {
    /// The minimum within the interval.
    pub memory_available_bytes: Vec<Option<u64>>,
    /// Connections begun since the maps were made.
    pub connections: Vec<Option<u64>>,
    /// Handshakes that the backend refused or left unanswered, since the maps were made.
    pub refused: Vec<Option<u64>>,
    /// Bytes of whole frames in both directions, since the maps were made.
    pub bytes: Vec<Option<u64>>,
    /// Open connections: the maximum within the interval.
    pub open: Vec<Option<u64>>,
}

/// The samples; clones share them.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Mutex<[Ring; 3]>>);

#[derive(Debug)]
struct Ring {
    range: Range,
    slots: VecDeque<Slot>,
    /// By service and backend; each has one element for each slot.
    tracks: BTreeMap<(String, String), VecDeque<Figures>>,
}

/// The times of the first and the last sample of an interval.
#[derive(Debug, Clone, Copy)]
struct Slot {
    first_ms: u64,
    last_ms: u64,
}

/// The figures of a backend at one time, in 32 bytes: a manager may have thousands of backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Figures {
    memory_kib: u32,
    open: u32,
    connections: u64,
    refused: u64,
    bytes: u64,
}

/// An unknown `memory_kib`. As `open`, it marks a backend without figures.
const UNKNOWN: u32 = u32::MAX;

impl Range {
    fn interval_ms(self) -> u64 {
        match self {
            Self::TenMinutes => TICK_MS,
            Self::Hour => 30_000,
            Self::Day => 600_000,
        }
    }

    fn capacity(self) -> usize {
        match self {
            Self::TenMinutes | Self::Hour => 120,
            Self::Day => 144,
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        let ranges = [Range::TenMinutes, Range::Hour, Range::Day];
        Self(Arc::new(Mutex::new(ranges.map(|range| Ring {
            range,
            slots: VecDeque::with_capacity(range.capacity()),
            tracks: BTreeMap::new(),
        }))))
    }
}

impl Recorder {
    /// Records samples until this future is dropped.
    pub async fn record(&self, manager: ManagerHandle) {
        let mut ticks = interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match manager.totals().await {
                Ok(status) => self.sample(&status, now_ms()),
                // The timeline then has a gap.
                Err(error) => debug!("no sample for the timeline: {error:#}"),
            }
        }
    }

    /// Returns the figures of `service`, or of all services.
    pub fn timeline(&self, range: Range, service: Option<&str>) -> Timeline {
        let rings = self.rings();
        let ring = rings.iter().find(|ring| ring.range == range);
        let mut timeline = Timeline {
            now_ms: now_ms(),
            range,
            interval_ms: range.interval_ms(),
            ..Timeline::default()
        };
        let Some(ring) = ring else { return timeline };
        timeline.at_ms = ring.slots.iter().map(|slot| slot.last_ms).collect();
        for ((of, backend), figures) in &ring.tracks {
            if service.is_none_or(|service| service == of) {
                let tracks = timeline.services.entry(of.clone()).or_default();
                tracks.insert(backend.clone(), Track::new(figures));
            }
        }
        timeline
    }

    fn sample(&self, status: &Status, at_ms: u64) {
        for ring in self.rings().iter_mut() {
            ring.advance(at_ms);
            for service in &status.services {
                for backend in &service.backends {
                    ring.add(&service.name, backend);
                }
            }
        }
    }

    /// Never held over an `await`.
    fn rings(&self) -> MutexGuard<'_, [Ring; 3]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Begins a slot if the interval of the last one is over, or if the clock was set back.
    fn advance(&mut self, at_ms: u64) {
        if let Some(slot) = self.slots.back_mut() {
            let age = at_ms.checked_sub(slot.first_ms);
            if age.is_some_and(|age| age + TICK_MS / 2 < self.range.interval_ms()) {
                slot.last_ms = at_ms;
                return;
            }
        }
        let is_full = self.slots.len() == self.range.capacity();
        if is_full {
            self.slots.pop_front();
        }
        self.slots.push_back(Slot {
            first_ms: at_ms,
            last_ms: at_ms,
        });
        self.tracks.retain(|_, figures| {
            if is_full {
                figures.pop_front();
            }
            figures.push_back(Figures::NONE);
            figures.iter().any(|it| *it != Figures::NONE)
        });
    }

    /// Adds a backend's figures to the last slot.
    fn add(&mut self, service: &str, backend: &BackendStatus) {
        let Some(new) = Figures::new(backend) else {
            return;
        };
        let is_full = self.tracks.len() >= MAX_TRACKS;
        let key = (service.to_owned(), backend.seen.name.clone());
        if is_full && !self.tracks.contains_key(&key) {
            return;
        }
        let (slots, capacity) = (self.slots.len(), self.range.capacity());
        let track = self.tracks.entry(key).or_insert_with(|| {
            let mut track = VecDeque::with_capacity(capacity);
            track.resize(slots, Figures::NONE);
            track
        });
        if let Some(last) = track.back_mut() {
            *last = last.merge(new);
        }
    }
}

impl Figures {
    const NONE: Self = Self {
        memory_kib: UNKNOWN,
        open: UNKNOWN,
        connections: 0,
        refused: 0,
        bytes: 0,
    };

    /// Returns `None` for a worker that sends no heartbeats and has no open connection.
    fn new(BackendStatus { seen, traffic }: &BackendStatus) -> Option<Self> {
        let has_heartbeats =
            seen.name == MANAGER || !matches!(seen.health, Health::Down | Health::Unknown);
        if !has_heartbeats && traffic.flows == 0 {
            return None;
        }
        let known =
            |number: u64| u32::try_from(number).map_or(UNKNOWN - 1, |it| it.min(UNKNOWN - 1));
        let memory = seen.memory_available_bytes.filter(|_| has_heartbeats);
        Some(Self {
            memory_kib: memory.map_or(UNKNOWN, |bytes| known(bytes / 1024)),
            open: known(traffic.flows),
            connections: traffic.connections,
            refused: traffic.refused + traffic.unanswered,
            bytes: traffic.bytes_in + traffic.bytes_out,
        })
    }

    fn merge(self, later: Self) -> Self {
        if self == Self::NONE {
            return later;
        }
        Self {
            // `UNKNOWN` is the maximum.
            memory_kib: self.memory_kib.min(later.memory_kib),
            open: self.open.max(later.open),
            ..later
        }
    }

    fn memory_bytes(self) -> Option<u64> {
        (self.memory_kib != UNKNOWN).then(|| u64::from(self.memory_kib) * 1024)
    }
}

impl Track {
    fn new(figures: &VecDeque<Figures>) -> Self {
        let column = |read: fn(Figures) -> u64| -> Vec<Option<u64>> {
            let known = figures
                .iter()
                .map(|it| (*it != Figures::NONE).then(|| read(*it)));
            known.collect()
        };
        Self {
            memory_available_bytes: figures.iter().map(|it| it.memory_bytes()).collect(),
            connections: column(|it| it.connections),
            refused: column(|it| it.refused),
            bytes: column(|it| it.bytes),
            open: column(|it| it.open.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Overrides, PinnedIds},
        datapath::Stats,
        status::{Heartbeats, ManagerSnapshot},
    };
    use lb_core::Core;

    /// The status of the example, whose workers are up.
    fn status() -> Status {
        let config = Config::example(&Overrides::default(), None).unwrap();
        let now = std::time::Instant::now();
        let core = Core::new(config.settings(&PinnedIds::default()), now);
        let snapshot = ManagerSnapshot {
            uptime_ms: 0,
            config_file: None,
            interfaces: Vec::new(),
            services: core.snapshot(now).services,
            heartbeats: Heartbeats::default(),
            denied_prefixes: 0,
            kernel_selections: Vec::new(),
            sources: Vec::new(),
        };
        let mut status = Status::new(snapshot, &Stats::default());
        for backend in &mut status.services[0].backends {
            backend.seen.health = Health::Up;
            backend.seen.memory_available_bytes = Some(400 << 20);
        }
        status
    }

    #[test]
    fn stores_a_day_in_bounded_memory() {
        assert_eq!(size_of::<Figures>(), 32);
        let recorder = Recorder::default();
        let mut status = status();
        let day = 24 * 3_600_000;
        for at_ms in (0..day + 3_600_000).step_by(5_000) {
            let backend = &mut status.services[0].backends[0];
            backend.traffic.connections = at_ms / 100;
            // Short peaks must be seen in a coarse ring.
            backend.traffic.flows = if at_ms % 600_000 == 300_000 { 900 } else { 10 };
            backend.seen.memory_available_bytes = Some(if at_ms % 600_000 == 300_000 {
                1 << 20
            } else {
                400 << 20
            });
            recorder.sample(&status, at_ms);
        }
        for (range, samples, reach) in [
            (Range::TenMinutes, 120, 595_000),
            (Range::Hour, 120, 3_570_000),
            (Range::Day, 144, day - 600_000),
        ] {
            let timeline = recorder.timeline(range, Some("web"));
            assert_eq!(timeline.at_ms.len(), samples);
            let reached = timeline.at_ms[samples - 1] - timeline.at_ms[0];
            assert_eq!(reached, reach, "{range:?}");
            let track = &timeline.services["web"]["worker1"];
            for (at_ms, connections) in timeline.at_ms.iter().zip(&track.connections) {
                assert_eq!(*connections, Some(at_ms / 100));
            }
            assert!(track.open.contains(&Some(900)), "{range:?}");
            assert!(track.memory_available_bytes.contains(&Some(1 << 20)));
        }
        let tracks = recorder.timeline(Range::Day, Some("web"));
        assert!(
            tracks.services["web"]["worker1"]
                .open
                .iter()
                .all(|it| *it == Some(900))
        );
        assert!(
            recorder
                .timeline(Range::Day, Some("mail"))
                .services
                .is_empty()
        );
    }

    #[test]
    fn ends_with_the_worker_and_its_connections() {
        let recorder = Recorder::default();
        let mut status = status();
        recorder.sample(&status, 0);
        let backend = &mut status.services[0].backends[0];
        backend.seen.health = Health::Down;
        backend.traffic.flows = 3;
        recorder.sample(&status, 5_000);
        status.services[0].backends[0].traffic.flows = 0;
        recorder.sample(&status, 10_000);
        let timeline = recorder.timeline(Range::TenMinutes, None);
        let track = &timeline.services["web"]["worker1"];
        assert_eq!(track.memory_available_bytes, [Some(400 << 20), None, None]);
        assert_eq!(track.open, [Some(0), Some(3), None]);
        assert_eq!(track.connections, [Some(0), Some(0), None]);
        for tick in 3..200 {
            recorder.sample(&status, tick * 5_000);
        }
        let timeline = recorder.timeline(Range::TenMinutes, None);
        assert!(!timeline.services["web"].contains_key("worker1"));
        assert!(timeline.services["web"].contains_key("worker2"));
    }
}
