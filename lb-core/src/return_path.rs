//! Whether the answers of a worker in mode `routed` pass the manager: if its route to the clients leads
//! elsewhere, they go untranslated to clients that did not ask it, and no connection comes about.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Core;
use super::service::Service;
use super::settings::{BackendId, Mode};

/// So many handshakes without an answer, and without any answer between them, tell that there is no way
/// back. One answer tells that there is one: whoever forges such handshakes cannot harm a worker that
/// serves others meanwhile.
const UNANSWERED_LIMIT: u64 = 3;

/// The worker is tried again after this long, the next time after twice as long, up to the longest.
const MIN_RETRY_PAUSE: Duration = Duration::from_secs(10);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(320);

/// What the programs have counted of a backend, ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplyCounters {
    /// Packets from the backend to clients.
    pub packets: u64,
    /// Handshakes that a client went on with although no answer had passed the manager.
    pub unanswered: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReturnPath {
    counted: Option<ReplyCounters>,
    /// How often it was missed since the last answer.
    missed: u64,
    /// How long the worker is left alone when it is missed next.
    pause: Option<Duration>,
    /// Until when it is left alone; nothing while it may serve.
    retry: Option<Instant>,
}

impl ReturnPath {
    pub fn is_missing(&self) -> bool {
        self.retry.is_some()
    }

    fn observe(&mut self, counted: ReplyCounters, now: Instant) {
        let Some(before) = self.counted.replace(counted) else {
            return;
        };
        if counted.packets != before.packets {
            *self = Self {
                counted: Some(counted),
                ..Self::default()
            };
            return;
        }
        self.missed += counted.unanswered.saturating_sub(before.unanswered);
        if self.retry.is_some_and(|retry| retry <= now) {
            (self.retry, self.missed) = (None, 0);
        }
        if self.missed >= UNANSWERED_LIMIT && self.retry.is_none() {
            let pause = self.pause.unwrap_or(MIN_RETRY_PAUSE);
            self.retry = now.checked_add(pause);
            self.pause = Some((pause * 2).min(MAX_RETRY_PAUSE));
        }
    }
}

impl Core {
    /// Takes over what was counted of the answers of workers in mode `routed`. Called every few seconds: it
    /// is here, too, that a worker is tried again.
    pub fn handle_reply_counters(
        &mut self,
        answers: &BTreeMap<BackendId, ReplyCounters>,
        now: Instant,
    ) {
        self.wake(now);
        let mut changed = BTreeSet::new();
        for service in &mut self.services {
            if service.settings.mode == Mode::Routed {
                let is_up = |worker: usize| self.workers[worker].health.is_up();
                changed.extend(service.observe_answers(answers, is_up, now));
            }
        }
        if !changed.is_empty() {
            self.sync_services(&changed.into_iter().collect::<Vec<_>>(), now);
        }
    }
}

impl Service {
    /// Returns the workers whose way back was lost or found. What is down for other reasons answers nobody,
    /// and begins anew when it is back.
    fn observe_answers(
        &mut self,
        answers: &BTreeMap<BackendId, ReplyCounters>,
        is_up: impl Fn(usize) -> bool,
        now: Instant,
    ) -> BTreeSet<usize> {
        let mut changed = BTreeSet::new();
        let backends = self.settings.backends.iter().zip(&self.workers);
        for ((backend, worker), path) in backends.zip(&mut self.return_paths) {
            let before = path.is_missing();
            match answers.get(&backend.id) {
                Some(counted) if is_up(*worker) => path.observe(*counted, now),
                _ => *path = ReturnPath::default(),
            }
            if path.is_missing() != before {
                changed.insert(*worker);
            }
        }
        changed
    }
}
