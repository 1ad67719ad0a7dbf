//! The panic threshold: most workers fall silent at the same time, while the programs hear them answer
//! clients. The fault is then more likely the manager's own (a firewall rule for the heartbeat port, a
//! broken link) than that of all workers, and those that answer stay up.

use std::time::{Duration, Instant};

use super::Core;
use crate::event::Event;
use crate::health::Health;
use crate::milliseconds;
use crate::worker::Worker;

/// Fewer silent workers are never an outage: one alone is down.
const LEAST_SILENT: usize = 2;

/// How many workers of a group fell silent together.
#[derive(Debug, Clone, Copy, Default)]
struct Silent {
    silent: usize,
    /// Those, and the workers that are up.
    workers: usize,
    /// Of the silent ones: whose packets still arrive.
    heard: usize,
}

impl Core {
    /// Keeps those of the workers whose deadline is over that the programs hear, if it is an outage of the
    /// heartbeats. Returns the others.
    pub(super) fn hold_by_traffic(&mut self, due: Vec<usize>, now: Instant) -> Vec<usize> {
        let mut lost = Vec::new();
        for index in due {
            let outage = match self.is_heard(index) {
                true => self.outage_of(index),
                false => None,
            };
            let Some(Silent {
                silent,
                workers,
                heard,
            }) = outage
            else {
                lost.push(index);
                continue;
            };
            let is_first = !self.workers.iter().any(|it| it.held_since.is_some());
            self.workers[index].held_since = Some(now);
            self.deadlines.set(index, None);
            if is_first {
                self.outage_since = Some(now);
                self.events.push_back(Event::HeartbeatsMissing {
                    silent,
                    workers,
                    heard,
                    silent_ms: milliseconds(self.workers[index].silent_for(now)),
                });
            }
        }
        lost
    }

    /// Ends the hold of a worker that sends heartbeats again.
    pub(super) fn release(&mut self, index: usize, now: Instant) {
        if self.workers[index].held_since.take().is_none() {
            return;
        }
        if self.workers.iter().any(|it| it.held_since.is_some()) {
            return;
        }
        if let Some(since) = self.outage_since.take() {
            self.events.push_back(Event::HeartbeatsBack {
                worker: self.workers[index].name.clone(),
                missing_ms: milliseconds(now.saturating_duration_since(since)),
            });
        }
    }

    /// Whether the programs heard a worker long after its last heartbeat. Only where its handshakes are
    /// watched, so that its death does not go unnoticed.
    fn is_heard(&self, index: usize) -> bool {
        let worker = &self.workers[index];
        let heard = worker.backends.iter().filter_map(|at| {
            let service = &self.services[at.service];
            let is_watched = service.failing_settings(&self.failing).after > 0;
            let handshakes = &service.handshakes[at.backend];
            let answers = is_watched && handshakes.ejection().is_none();
            handshakes.heard().filter(|_| answers)
        });
        // More than the heartbeat interval, at most a third of it, that a worker may still have lived.
        let after = worker.silent_from() + self.down_after * 2 / 5;
        heard.max().is_some_and(|heard| heard >= after)
    }

    /// Returns the silent workers of one of a worker's services, or of all, if they are so many that the
    /// fault is likelier elsewhere.
    fn outage_of(&self, index: usize) -> Option<Silent> {
        let percent = self.panic_percent?;
        let services = self.workers[index].backends.iter().map(|at| at.service);
        let groups = services.map(|service| {
            let workers = self.services[service].workers.iter().copied();
            self.silent_with(index, workers)
        });
        let all = std::iter::once_with(|| self.silent_with(index, 0..self.workers.len()));
        let mut groups = groups.chain(all);
        groups.find(|it| {
            it.silent >= LEAST_SILENT && it.silent * 100 >= it.workers * percent as usize
        })
    }

    /// Counts the workers of a group that fell silent within half of `down_after` of a worker. A worker without an
    /// agent is always silent, and does not count.
    fn silent_with(&self, index: usize, group: impl Iterator<Item = usize>) -> Silent {
        let from = self.workers[index].silent_from();
        let near = self.down_after / 2;
        let mut count = Silent::default();
        for other in group {
            let worker = &self.workers[other];
            if !worker.agent {
                continue;
            }
            let is_near = distance(worker.silent_from(), from) <= near;
            let is_silent = match worker.health {
                Health::Up | Health::Unhealthy => is_near,
                Health::Down if is_near => true,
                _ => continue,
            };
            count.workers += 1;
            count.silent += usize::from(is_silent);
            count.heard += usize::from(is_silent && self.is_heard(other));
        }
        count
    }

    /// Describes the outage to a service that has held workers.
    pub(super) fn outage_text<'a>(
        &self,
        workers: impl Iterator<Item = &'a Worker>,
        now: Instant,
    ) -> Option<String> {
        let since = self.outage_since?;
        let held = workers.filter(|it| it.held_since.is_some()).count();
        let seconds = now.saturating_duration_since(since).as_secs();
        (held > 0).then(|| {
            format!(
                "the heartbeats of most workers are missing for {seconds} s, and {held} stay up because \
                 their packets arrive: look for a firewall rule or a broken link on the way of the \
                 heartbeats (memlb doctor)"
            )
        })
    }
}

fn distance(one: Instant, other: Instant) -> Duration {
    one.saturating_duration_since(other)
        .max(other.saturating_duration_since(one))
}
