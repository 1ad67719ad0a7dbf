//! Pauses: an operator says that a worker will be silent for a while, since its machine or container is
//! moved.
//!
//! Until the pause ends, the worker gets no new connection, its open ones go on to its address, and its
//! silence alarms nobody. A pause ends at its deadline, when the worker is back, or by order. A worker
//! that is silent then is down as usual.

use std::time::{Duration, Instant};

use super::Core;
use super::admin::{AdminError, Audited};
use super::event::Event;
use super::health::Health;
use super::milliseconds;

/// The shortest and the longest pause.
pub const MIN_PAUSE: Duration = Duration::from_secs(1);
pub const MAX_PAUSE: Duration = Duration::from_secs(3_600);

/// A pause in force.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    pub until: Instant,
    /// Whether the worker has been silent for `down_after` since, or has said that it leaves.
    away: bool,
}

impl Pause {
    pub fn new(until: Instant) -> Self {
        Self { until, away: false }
    }
}

impl Audited<u64> {
    /// Returns how much is left of a pause at `now_ms` by the wall clock. Where the clock was set back,
    /// that is no more than the pause as it was ordered.
    pub fn pause_left(&self, now_ms: u64) -> Duration {
        let end_ms = self.at_ms.saturating_add(self.value);
        Duration::from_millis(end_ms.saturating_sub(now_ms).min(self.value))
    }
}

/// Checks for how long a pause is ordered.
pub(super) fn check_pause(for_ms: u64) -> Result<(), AdminError> {
    let allowed = milliseconds(MIN_PAUSE)..=milliseconds(MAX_PAUSE);
    match allowed.contains(&for_ms) {
        true => Ok(()),
        false => Err(AdminError::PauseOutOfRange { for_ms }),
    }
}

impl Core {
    /// Begins a pause, or takes note that it is over, before the worker's services are told.
    pub(super) fn set_pause(&mut self, worker: &str, for_ms: Option<u64>, now: Instant) {
        let until = for_ms.and_then(|for_ms| now.checked_add(Duration::from_millis(for_ms)));
        match until {
            Some(until) => self.pauses.insert(worker.to_owned(), Pause::new(until)),
            None => self.pauses.remove(worker),
        };
        if let Some(&index) = self.by_name.get(worker) {
            self.update_pause(index, now);
        }
    }

    /// Takes note of a worker's health; one that was away and is up again ends its pause.
    pub(super) fn update_pause(&mut self, index: usize, now: Instant) {
        let worker = &self.workers[index];
        let Some(pause) = self.pauses.get_mut(&worker.name) else {
            return;
        };
        match worker.health {
            Health::Down | Health::Leaving => pause.away = true,
            Health::Up if pause.away => {
                let worker = worker.name.clone();
                self.end_pause(&worker, true, now);
            }
            _ => {}
        }
    }

    /// Ends the pauses whose time is over.
    pub(super) fn end_due_pauses(&mut self, now: Instant) {
        let due = self.pauses.iter().filter(|(_, pause)| pause.until <= now);
        let due: Vec<String> = due.map(|(worker, _)| worker.clone()).collect();
        for worker in due {
            self.end_pause(&worker, false, now);
        }
    }

    /// Returns when the next pause ends by itself.
    pub(super) fn poll_pause(&self) -> Option<Instant> {
        self.pauses.values().map(|pause| pause.until).min()
    }

    fn end_pause(&mut self, worker: &str, is_back: bool, now: Instant) {
        self.pauses.remove(worker);
        self.overrides.end_pause(worker);
        self.events.push_back(Event::PauseEnded {
            worker: worker.to_owned(),
            is_back,
        });
        if let Some(&index) = self.by_name.get(worker) {
            self.overlay(index);
            self.report_down_after_pause(index, now);
            self.sync_services(&[index], now);
        }
    }

    /// Reports a worker that is down at the end of its pause: nobody was alarmed when it fell silent.
    pub(super) fn report_down_after_pause(&mut self, index: usize, now: Instant) {
        if self.workers[index].health == Health::Down {
            self.emit_health(index, Health::Paused, now);
        }
    }
}
