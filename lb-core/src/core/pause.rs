//! Pauses: the operator, or the worker's agent, announces that the worker will be silent for a while, for
//! example because its machine or container is moved.
//!
//! Until the pause ends, the worker gets no new connection, its open ones stay, and its silence raises
//! no alarm. A pause ends at its deadline, when the worker is back, or by command. A worker that is
//! silent at the deadline is down as usual. A command gives a silent worker more than `down_after` to come back,
//! because the hook at the end of a move runs before the worker's first heartbeat.

use std::time::{Duration, Instant};

use super::Core;
use crate::admin::{AdminCommand, CommandResult};
use crate::event::Event;
use crate::health::Health;

/// A pause in force.
#[derive(Debug, Clone, Copy)]
pub struct Pause {
    pub until: Instant,
    /// Whether the worker has been silent for `down_after`, or has announced that it leaves.
    away: bool,
}

impl Pause {
    pub fn new(until: Instant) -> Self {
        Self { until, away: false }
    }
}

impl Core {
    /// Begins a pause, or ends it with `None`.
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

    /// Whether a paused worker is silent: it is down or leaving, or has missed heartbeats.
    pub(super) fn is_silent_in_pause(&self, index: usize, now: Instant) -> bool {
        let worker = &self.workers[index];
        self.pauses.contains_key(&worker.name)
            && worker.agent
            && (matches!(worker.health, Health::Down | Health::Leaving)
                || worker.silent_for(now) >= self.down_after / 4)
    }

    /// Handles a resume command for a silent worker: its pause ends when it is back, or 1.25 times `down_after` from
    /// now.
    pub(super) fn resume_when_back(
        &mut self,
        index: usize,
        command: &AdminCommand,
        now: Instant,
    ) -> CommandResult {
        self.events.push_back(Event::AdminCommandApplied {
            order: command.clone(),
        });
        let grace = self.down_after + self.down_after / 4;
        if let Some(pause) = self.pauses.get_mut(&command.worker) {
            pause.until = now
                .checked_add(grace)
                .map_or(pause.until, |soon| pause.until.min(soon));
        }
        self.apply_admin_states(index);
        let mut result = CommandResult::default();
        result.warnings.push(format!(
            "{} is silent: its pause ends when it is back, or in {} ms",
            command.worker,
            grace.as_millis()
        ));
        result
    }

    /// Updates a worker's pause by its health: a worker that was away and is up again ends it.
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

    /// Ends the pauses whose time has passed.
    pub(super) fn end_due_pauses(&mut self, now: Instant) {
        let due = self.pauses.iter().filter(|(_, pause)| pause.until <= now);
        let due: Vec<String> = due.map(|(worker, _)| worker.clone()).collect();
        for worker in due {
            self.end_pause(&worker, false, now);
        }
    }

    /// Returns when the next pause ends.
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
            self.apply_admin_states(index);
            self.report_down_after_pause(index, now);
            self.sync_services(&[index], now);
        }
    }

    /// Emits the health of a worker that went down during its pause, without an alarm then.
    pub(super) fn report_down_after_pause(&mut self, index: usize, now: Instant) {
        if self.workers[index].health == Health::Down {
            self.emit_health(index, Health::Paused, now);
        }
    }
}
