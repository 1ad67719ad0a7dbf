//! Whether a worker's replies pass the manager in mode `routed`. If the worker's route to the clients
//! leads elsewhere, its replies reach clients untranslated, and no connection is established.

use std::time::{Duration, Instant};

/// The number of handshakes in a row without a reply after which the return path counts as missing. One reply proves
/// that it exists: forged handshakes do not harm a worker that serves other clients meanwhile.
const MAX_UNANSWERED: u64 = 3;

/// The pause before the worker is tried again. It doubles each time, up to the maximum.
const MIN_RETRY_PAUSE: Duration = Duration::from_secs(10);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(320);

/// The packet programs' counters of a backend in mode `routed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplyCounters {
    /// Packets from the backend to clients.
    pub packets: u64,
    /// Handshakes that a client continued although no reply had passed the manager.
    pub unanswered: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct ReturnPath {
    last: Option<ReplyCounters>,
    /// Unanswered handshakes since the last reply.
    unanswered: u64,
    /// The next pause; `None` before the first one.
    pause: Option<Duration>,
    /// When the worker is tried again; `None` while it may serve.
    retry: Option<Instant>,
}

impl ReturnPath {
    pub fn is_missing(&self) -> bool {
        self.retry.is_some()
    }

    pub fn observe(&mut self, counters: ReplyCounters, now: Instant) {
        let Some(before) = self.last.replace(counters) else {
            return;
        };
        if counters.packets != before.packets {
            *self = Self {
                last: Some(counters),
                ..Self::default()
            };
            return;
        }
        self.unanswered += counters.unanswered.saturating_sub(before.unanswered);
        if self.retry.is_some_and(|retry| retry <= now) {
            (self.retry, self.unanswered) = (None, 0);
        }
        if self.unanswered >= MAX_UNANSWERED && self.retry.is_none() {
            let pause = self.pause.unwrap_or(MIN_RETRY_PAUSE);
            self.retry = now.checked_add(pause);
            self.pause = Some((pause * 2).min(MAX_RETRY_PAUSE));
        }
    }
}
