//! The panic threshold: most workers fall silent at the same time, while the packet programs still see their
//! packets. The fault is then more likely on the manager's side (a firewall rule for the heartbeat port, a
//! broken link) than on all workers. So the workers whose packets arrive stay up.

use std::time::{Duration, Instant};

use super::Core;
use crate::event::Event;
use crate::health::Health;
use crate::milliseconds;
use crate::worker::Worker;

/// The least number of silent workers that is an outage of heartbeats.
const MIN_SILENT: usize = 2;

/// The workers of a group that fell silent together.
#[derive(Debug, Clone, Copy, Default)]
struct SilentGroup {
    silent: usize,
    /// The silent workers and those that are up.
    workers: usize,
    /// The silent workers whose packets still arrive.
    sending: usize,
}

impl Core {
    /// Keeps workers up whose deadline has passed, if this is an outage of heartbeats and their packets arrive. Returns
    /// the others, which are down.
    pub(super) fn apply_panic_threshold(&mut self, due: Vec<usize>, now: Instant) -> Vec<usize> {
        let mut down = Vec::new();
        for index in due {
            let outage = self.outage_of(index).filter(|_| self.sends_packets(index));
            let Some(group) = outage else {
                down.push(index);
                continue;
            };
            let is_first = !self.workers.iter().any(|it| it.heartbeats_missing);
            self.workers[index].heartbeats_missing = true;
            self.deadlines.set(index, None);
            if is_first {
                self.outage_since = Some(now);
                self.events.push_back(Event::HeartbeatsMissing {
                    silent: group.silent,
                    workers: group.workers,
                    sending: group.sending,
                    silent_ms: milliseconds(self.workers[index].silent_for(now)),
                });
            }
        }
        down
    }

    /// Notes that a worker sends heartbeats again. With the last such worker the outage ends.
    pub(super) fn end_missing_heartbeats(&mut self, index: usize, now: Instant) {
        let was_missing = std::mem::take(&mut self.workers[index].heartbeats_missing);
        if !was_missing || self.workers.iter().any(|it| it.heartbeats_missing) {
            return;
        }
        if let Some(since) = self.outage_since.take() {
            self.events.push_back(Event::HeartbeatsBack {
                worker: self.workers[index].name.clone(),
                missing_ms: milliseconds(now.saturating_duration_since(since)),
            });
        }
    }

    /// Gives workers that stay up without heartbeats their deadline again, if the settings no longer let them stay up.
    pub(super) fn end_disabled_outage(&mut self) {
        for index in 0..self.workers.len() {
            let may_stay_up = self.panic_percent.is_some()
                && self.workers[index].agent
                && self.has_passive_checks(index);
            self.workers[index].heartbeats_missing &= may_stay_up;
        }
        if !self.workers.iter().any(|it| it.heartbeats_missing) {
            self.outage_since = None;
        }
    }

    fn has_passive_checks(&self, index: usize) -> bool {
        let services = self.workers[index].backends.iter();
        let mut services = services.map(|at| &self.services[at.service]);
        services.any(|service| service.failing_settings(&self.failing).after > 0)
    }

    /// Whether packets of a worker arrived long after its last heartbeat. Only services with passive checks count:
    /// without heartbeats, nothing else would detect that the worker is dead.
    fn sends_packets(&self, index: usize) -> bool {
        let worker = &self.workers[index];
        let last_packets = worker.backends.iter().filter_map(|at| {
            let service = &self.services[at.service];
            let is_watched = service.failing_settings(&self.failing).after > 0;
            let handshakes = &service.handshakes[at.backend];
            let answers = is_watched && handshakes.ejection().is_none();
            handshakes.last_packet().filter(|_| answers)
        });
        // A worker that died right after its last heartbeat sent packets for an interval at most, a third of
        // `down_after`.
        let after = worker.silent_from() + self.down_after * 2 / 5;
        last_packets
            .max()
            .is_some_and(|last_packet| last_packet >= after)
    }

    /// Returns the first group around a worker in which the silent workers reach the panic threshold: the workers of
    /// one of its services, or all workers.
    fn outage_of(&self, index: usize) -> Option<SilentGroup> {
        let percent = self.panic_percent?;
        let services = self.workers[index].backends.iter().map(|at| at.service);
        let groups = services.map(|service| {
            let workers = self.services[service].workers.iter().copied();
            self.silent_with(index, workers)
        });
        let all = std::iter::once_with(|| self.silent_with(index, 0..self.workers.len()));
        let mut groups = groups.chain(all);
        groups
            .find(|it| it.silent >= MIN_SILENT && it.silent * 100 >= it.workers * percent as usize)
    }

    /// Counts the workers of a group that fell silent within half of `down_after` of a worker. A worker without an
    /// agent is always silent, and does not count.
    fn silent_with(&self, index: usize, group: impl Iterator<Item = usize>) -> SilentGroup {
        let from = self.workers[index].silent_from();
        let near = self.down_after / 2;
        let mut count = SilentGroup::default();
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
            count.sending += usize::from(is_silent && self.sends_packets(other));
        }
        count
    }

    /// Describes the outage, if some of these workers stay up without heartbeats.
    pub(super) fn outage_text<'a>(
        &self,
        workers: impl Iterator<Item = &'a Worker>,
        now: Instant,
    ) -> Option<String> {
        let since = self.outage_since?;
        let missing = workers.filter(|it| it.heartbeats_missing).count();
        let seconds = now.saturating_duration_since(since).as_secs();
        (missing > 0).then(|| {
            format!(
                "the heartbeats of most workers are missing for {seconds} s, and {missing} stay up because \
                 their packets arrive: look for a firewall rule or a broken link on the path of the \
                 heartbeats (memlb doctor)"
            )
        })
    }
}

fn distance(one: Instant, other: Instant) -> Duration {
    one.saturating_duration_since(other)
        .max(other.saturating_duration_since(one))
}
