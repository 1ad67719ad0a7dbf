//! One worker: its last heartbeat, its health and its deadline.

use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::event::Event;
use crate::health::{self, Health, HealthEvent};
use crate::memory::{Memory, Pressure};
use crate::policy::MemoryPerConnection;
use crate::report::Report;
use crate::sequence::{Admission, SequenceWindow};

/// A backend: the index of its service, and its index there.
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
    /// The age of the memory figures in the last heartbeat; `None` if its agent had just read them.
    pub memory_stale: Option<Duration>,
    /// The services of mode `dsr` that its DSR translator translates.
    pub translates: Vec<Endpoint>,
    /// Whether its agent checks the worker's server.
    pub checked: bool,
    pub last_heartbeat: Option<Instant>,
    pub sequence: SequenceWindow,
    pub backends: Vec<BackendIndex>,
    /// The heartbeat interval, as last reported.
    pub interval: Option<Duration>,
    /// Whether its interval is too long for `down_after`, and an event says so.
    pub slow: bool,
    /// Whether it is in maintenance in all services, so that its silence raises no alarm.
    pub in_maintenance: bool,
    /// The end of its pause.
    pub paused_until: Option<Instant>,
    /// Whether its heartbeats are missing and it stays up because its packets arrive.
    pub heartbeats_missing: bool,
    /// Whether heartbeats are expected; without an agent, it is up until its packets say otherwise.
    pub agent: bool,
    /// When it came up, if the ramp applies.
    pub came_up: Option<Instant>,
    pub memory_per_connection: MemoryPerConnection,
    /// The last heartbeat, moved by the time in which the manager did not run.
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
            checked: false,
            last_heartbeat: None,
            sequence: SequenceWindow::default(),
            backends: Vec::new(),
            interval: None,
            slow: false,
            in_maintenance: false,
            paused_until: None,
            heartbeats_missing: false,
            agent: true,
            came_up: None,
            memory_per_connection: MemoryPerConnection::default(),
            silent_from: now,
            good_in_a_row: 0,
        }
    }

    pub fn admit(&mut self, report: &Report, down_after: Duration, now: Instant) -> Admission {
        let fresh = self.last_heartbeat.is_some() && self.silent_for(now) <= down_after;
        self.sequence.admit(report.sequence, fresh, report.signed)
    }

    /// Updates the worker by an admitted heartbeat; returns the health before.
    pub fn update(
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
        let event = HealthEvent::of(report, self.good_in_a_row >= up_after);
        if !matches!(event, HealthEvent::Good { .. }) {
            self.good_in_a_row = 0;
        }
        self.health = health::transition(before, event);
        self.memory = Some(report.memory);
        self.pressure = report.pressure;
        self.memory_stale = report.memory_stale;
        self.translates.clone_from(&report.translates);
        self.checked = report.checked;
        self.memory_per_connection.record_report();
        self.last_heartbeat = Some(now);
        self.silent_from = now;
        before
    }

    /// Returns the event of memory figures that became stale or fresh.
    pub fn memory_event(&self, was_stale: bool) -> Option<Event> {
        let worker = self.name.clone();
        match (was_stale, self.memory_stale) {
            (false, Some(_)) => Some(Event::MemoryStale { worker }),
            (true, None) => Some(Event::MemoryFresh { worker }),
            _ => None,
        }
    }

    /// Updates the health after the deadline; returns the health before.
    pub fn expire(&mut self) -> Health {
        let before = self.health;
        self.good_in_a_row = 0;
        self.health = health::transition(before, HealthEvent::Timeout);
        if !self.agent {
            self.assume_up();
        }
        before
    }

    /// Sets whether heartbeats are expected. A worker without an agent is up; one that should have an agent
    /// now has `down_after` to send a heartbeat.
    pub fn set_agent(&mut self, agent: bool, now: Instant) {
        if self.agent && !agent && !self.health.needs_deadline() {
            self.assume_up();
        } else if agent && !self.agent && self.is_assumed_up() {
            self.silent_from = now;
        }
        self.agent = agent;
    }

    fn assume_up(&mut self) {
        self.health = Health::Up;
        (self.memory, self.pressure) = (None, None);
    }

    /// Whether it has no agent, is up, and has sent no heartbeat.
    pub fn is_assumed_up(&self) -> bool {
        !self.agent && self.health.is_up() && self.memory.is_none()
    }

    /// Returns the deadline of the next heartbeat: one nanosecond after `down_after`, because at exactly
    /// `down_after` the worker is still up.
    pub fn deadline(&self, down_after: Duration) -> Option<Instant> {
        let is_expected = self.health.needs_deadline() && !self.is_assumed_up();
        if !is_expected || self.heartbeats_missing {
            return None;
        }
        self.silent_from
            .checked_add(down_after)?
            .checked_add(Duration::from_nanos(1))
    }

    /// Continues with the silence that the former manager observed, but leaves a fifth of `down_after`
    /// for the next heartbeat.
    pub fn adopt_silence(&mut self, silence: Duration, down_after: Duration) {
        let silence = silence.min(down_after - down_after / 5);
        if let Some(moved) = self.silent_from.checked_sub(silence) {
            self.silent_from = moved;
        }
    }

    /// Moves the deadline by the time in which the manager did not run.
    pub fn extend_deadline(&mut self, gap: Duration, now: Instant) {
        if let Some(moved) = self.silent_from.checked_add(gap) {
            self.silent_from = moved.min(now);
        }
    }

    /// Returns since when it is silent: its last heartbeat, moved by the time in which the manager did not run.
    pub fn silent_from(&self) -> Instant {
        self.silent_from
    }

    pub fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.silent_from)
    }

    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.last_heartbeat
            .map(|at| now.saturating_duration_since(at))
    }

    pub fn available_bytes(&self) -> Option<u64> {
        self.memory.map(|memory| memory.available_bytes)
    }
}

/// Returns the percentage of its share that a worker gets after it came up: a quarter more after each third of
/// `ramp_up`.
pub(super) fn ramp_percent(came_up: Option<Instant>, ramp_up: Duration, now: Instant) -> u32 {
    let Some(came_up) = came_up else {
        return 100;
    };
    let thirds = now.saturating_duration_since(came_up).as_nanos() * 3;
    let steps = thirds.checked_div(ramp_up.as_nanos()).unwrap_or(3);
    25 * (u32::try_from(steps).unwrap_or(3).min(3) + 1)
}

/// Returns when the ramp takes its next step, if it is not over.
pub(super) fn next_ramp(came_up: Instant, ramp_up: Duration, now: Instant) -> Option<Instant> {
    let mut steps = (1..=3).map(|step| came_up + third(ramp_up * step));
    steps.find(|at| *at > now)
}

/// Rounded up, so that the third is over at the returned time.
fn third(duration: Duration) -> Duration {
    (duration + Duration::from_nanos(2)) / 3
}
