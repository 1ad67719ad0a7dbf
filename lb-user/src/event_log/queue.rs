//! The lines that wait to be written, and the thread's work that writes them.

use std::{
    collections::VecDeque,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tracing::{info, warn};

use super::file::LogFile;

/// How many lines wait while the file cannot be written; then events are lost until it can be.
pub(super) const MOST_WAITING: usize = 10_000;

/// How long after a failure the file is written again.
const RETRY: Duration = Duration::from_secs(1);

/// How long is waited for a queue to be written to its end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Locked for moments only, never while the disk is written.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Since there was no room any more; there is again when all before is written.
    lost: u64,
    /// Nothing more comes.
    closed: bool,
    /// Nothing more is written.
    ended: bool,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Gap {
    EventsLost { count: u64 },
}

impl Queue {
    pub fn push(&self, line: Vec<u8>) {
        let mut state = self.state();
        if state.lost == 0 && state.lines.len() < MOST_WAITING {
            state.lines.push_back(line);
            drop(state);
            self.changed.notify_all();
            return;
        }
        state.lost += 1;
        let is_first = state.lost == 1;
        drop(state);
        if is_first {
            warn!(
                "the event log cannot be written fast enough: {MOST_WAITING} events wait for it, \
                 further ones are lost until these are written"
            );
        }
    }

    /// Has the rest written and the writer end.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Closes, waits for the writer, but not for long, and returns what it has left.
    pub fn finish(&self) -> VecDeque<Vec<u8>> {
        self.close();
        let waited = self
            .changed
            .wait_timeout_while(self.state(), PATIENCE, |state| !state.ended);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let mut left = mem::take(&mut state.lines);
        left.extend(state.gap());
        left
    }

    #[cfg(test)]
    pub fn is_ended(&self) -> bool {
        self.state().ended
    }

    /// Waits for the next line to write; there is none any more once the queue is closed.
    fn next(&self) -> Option<Vec<u8>> {
        let waited = self.changed.wait_while(self.state(), |state| {
            state.lines.is_empty() && state.lost == 0 && !state.closed
        });
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let line = state.lines.pop_front();
        line.or_else(|| state.gap())
    }

    /// Takes back a line that could not be written, and waits until it is time to try again; returns
    /// whether that will come.
    fn put_back(&self, line: Vec<u8>) -> bool {
        let mut state = self.state();
        state.lines.push_front(line);
        if state.closed {
            return false;
        }
        // Closed or not, it is tried once more.
        let waited = self
            .changed
            .wait_timeout_while(state, RETRY, |state| !state.closed);
        waited.is_ok()
    }

    /// Puts what another queue has left before all that came since.
    fn inherit(&self, mut left: VecDeque<Vec<u8>>) {
        let mut state = self.state();
        left.append(&mut state.lines);
        let excess = left.len().saturating_sub(MOST_WAITING);
        left.truncate(MOST_WAITING);
        state.lost += excess as u64;
        state.lines = left;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns a line that stands for the lost ones, if there are any.
    fn gap(&mut self) -> Option<Vec<u8>> {
        let count = mem::take(&mut self.lost);
        if count == 0 {
            return None;
        }
        info!("the event log is written again; {count} events are lost");
        super::line(&Gap::EventsLost { count }).ok()
    }
}

/// Writes the lines of `queue` until it is closed, after those of the one before, whose file may be
/// the same.
///
/// A write that fails is said once, and repeated: a full disk makes no holes in the story.
pub(super) fn write(queue: &Queue, mut file: LogFile, before: Option<&Queue>) {
    if let Some(before) = before {
        queue.inherit(before.finish());
        file.close();
    }
    let mut failing = false;
    while let Some(line) = queue.next() {
        match (file.write(&line), failing) {
            (Ok(()), true) => {
                failing = false;
                info!("the event log can be written again");
            }
            (Ok(()), false) => {}
            (Err(error), before) => {
                if !before {
                    failing = true;
                    warn!(
                        "the event log cannot be written: {error:#}; the next {MOST_WAITING} events \
                         are kept for it"
                    );
                }
                if !queue.put_back(line) {
                    break;
                }
            }
        }
    }
    queue.state().ended = true;
    queue.changed.notify_all();
}
