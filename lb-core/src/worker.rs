//! One worker as the manager knows it: when it was heard, what it said, how it is.

use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::event::Event;
use super::health::{self, Health, HealthEvent};
use super::memory::{Memory, Pressure};
use super::policy::MemoryPerConnection;
use super::report::Report;
use super::sequence::{Admission, SequenceWindow};

/// Where a worker serves: the places of a service and of its backend in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BackendIndex {
    pub service: usize,
    pub backend: usize,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub name: String,
    pub health: Health,
    pub memory: Option<Memory>,
    pub pressure: Option<Pressure>,
    /// How old the memory figures were in its last heartbeat; nothing if its agent had just read them.
    pub memory_stale: Option<Duration>,
    /// The services of mode `dsr` that its DSR translator translates.
    pub translates: Vec<Endpoint>,
    /// When the last heartbeat was accepted.
    pub heard: Option<Instant>,
    pub sequence: SequenceWindow,
    pub backends: Vec<BackendIndex>,
    /// How often it sends, as it said last.
    pub interval: Option<Duration>,
    /// Whether its interval was found too long for `down_after`, so that this is said once.
    pub slow: bool,
    /// Whether the operator has it in maintenance everywhere, so that its silence alarms nobody.
    pub in_maintenance: bool,
    /// Until when its silence is expected, since the operator has paused it.
    pub paused_until: Option<Instant>,
    /// When it came up beside workers that were up already; nothing if it takes its whole share.
    pub came_up: Option<Instant>,
    pub memory_per_connection: MemoryPerConnection,
    /// Since when silence counts: the last heartbeat, moved on by what the manager overslept.
    silent_from: Instant,
    good_in_a_row: u32,
}

impl Worker {
    pub fn new(name: String, now: Instant) -> Self {
        Self {
            name,
            health: Health::Unknown,
            memory: None,
            pressure: None,
            memory_stale: None,
            translates: Vec::new(),
            heard: None,
            sequence: SequenceWindow::default(),
            backends: Vec::new(),
            interval: None,
            slow: false,
            in_maintenance: false,
            paused_until: None,
            came_up: None,
            memory_per_connection: MemoryPerConnection::default(),
            silent_from: now,
            good_in_a_row: 0,
        }
    }

    pub fn admit(&mut self, report: &Report, down_after: Duration, now: Instant) -> Admission {
        let fresh = self.heard.is_some() && self.silent_for(now) <= down_after;
        self.sequence.admit(report.sequence, fresh, report.signed)
    }

    /// Takes an admitted heartbeat in; returns the state before.
    pub fn hear(
        &mut self,
        report: &Report,
        down_after: Duration,
        up_after: u32,
        now: Instant,
    ) -> Health {
        let before = self.health;
        if self.silent_for(now) > down_after {
            self.good_in_a_row = 0;
        }
        self.good_in_a_row = self.good_in_a_row.saturating_add(1);
        let sign = HealthEvent::of(report, self.good_in_a_row >= up_after);
        if !matches!(sign, HealthEvent::Good { .. }) {
            self.good_in_a_row = 0;
        }
        self.health = health::next(before, sign);
        self.memory = Some(report.memory);
        self.pressure = report.pressure;
        self.memory_stale = report.memory_stale;
        self.translates.clone_from(&report.translates);
        self.memory_per_connection.report();
        self.heard = Some(now);
        self.silent_from = now;
        before
    }

    /// Returns the event of memory figures that have become stale, or are read again.
    pub fn memory_event(&self, was_stale: bool) -> Option<Event> {
        let worker = self.name.clone();
        match (was_stale, self.memory_stale) {
            (false, Some(_)) => Some(Event::MemoryStale { worker }),
            (true, None) => Some(Event::MemoryFresh { worker }),
            _ => None,
        }
    }

    /// Takes note that it is too late; returns the state before.
    pub fn expire(&mut self) -> Health {
        let before = self.health;
        self.good_in_a_row = 0;
        self.health = health::next(before, HealthEvent::Timeout);
        before
    }

    /// Returns the first instant at which this worker's silence is too long.
    ///
    /// At exactly `down_after` it is still up, so that is one nanosecond later.
    pub fn deadline(&self, down_after: Duration) -> Option<Instant> {
        if !self.health.needs_deadline() {
            return None;
        }
        self.silent_from
            .checked_add(down_after)?
            .checked_add(Duration::from_nanos(1))
    }

    /// Returns how much of its share it takes: a quarter more after each third of `ramp_up`.
    pub fn ramp_percent(&self, ramp_up: Duration, now: Instant) -> u32 {
        let Some(came_up) = self.came_up else {
            return 100;
        };
        let thirds = now.saturating_duration_since(came_up).as_nanos() * 3;
        let steps = thirds.checked_div(ramp_up.as_nanos()).unwrap_or(3);
        25 * (u32::try_from(steps).unwrap_or(3).min(3) + 1)
    }

    /// Returns when it takes a quarter more, if it does not take its whole share.
    pub fn next_ramp(&self, ramp_up: Duration, now: Instant) -> Option<Instant> {
        let came_up = self.came_up?;
        let mut steps = (1..=3).map(|step| came_up + third(ramp_up * step));
        steps.find(|at| *at > now)
    }

    /// Goes on with a silence that an earlier manager has listened to. Somebody who was heard just
    /// before that one ended has a moment to be heard again.
    pub fn adopt_silence(&mut self, silence: Duration, down_after: Duration) {
        let silence = silence.min(down_after - down_after / 5);
        if let Some(moved) = self.silent_from.checked_sub(silence) {
            self.silent_from = moved;
        }
    }

    /// Leaves time in which the manager could not listen out of account.
    pub fn extend_deadline(&mut self, gap: Duration, now: Instant) {
        if let Some(moved) = self.silent_from.checked_add(gap) {
            self.silent_from = moved.min(now);
        }
    }

    pub fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.silent_from)
    }

    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.heard.map(|heard| now.saturating_duration_since(heard))
    }

    pub fn available_bytes(&self) -> Option<u64> {
        self.memory.map(|memory| memory.available_bytes)
    }
}

/// Rounded up, so that a third is over when its time has come.
fn third(duration: Duration) -> Duration {
    (duration + Duration::from_nanos(2)) / 3
}
