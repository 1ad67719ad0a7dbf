//! The queue of lines, and the thread that writes them.

use std::{
    collections::VecDeque,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_core::{Event, counted};
use tracing::{info, warn};

use super::{file::LogFile, line};

/// The most lines that wait while the file cannot be written. Further lines are lost.
pub(super) const MAX_WAITING: usize = 10_000;

/// How long after a failure the writer tries again.
const RETRY: Duration = Duration::from_secs(1);

/// The longest wait for a queue to be written.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Lines between the threads that append and the thread that writes. It is not locked during a write.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    lines: VecDeque<Vec<u8>>,
    /// Lost lines since the lines before them were written.
    lost: u64,
    /// Whether no further line follows.
    closed: bool,
    /// Whether the writer has ended.
    ended: bool,
}

impl Queue {
    pub fn push(&self, line: Vec<u8>) {
        let mut state = self.state();
        if state.lost == 0 && state.lines.len() < MAX_WAITING {
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
                "the event log cannot be written fast enough: {MAX_WAITING} events wait for it, \
                 further ones are lost until these are written"
            );
        }
    }

    /// Makes the writer write the waiting lines and end.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Closes the queue, waits for the writer with a timeout, and returns the lines that it has not written.
    pub fn drain(&self) -> VecDeque<Vec<u8>> {
        self.close();
        let waited = self
            .changed
            .wait_timeout_while(self.state(), TIMEOUT, |state| !state.ended);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let mut left = mem::take(&mut state.lines);
        left.extend(state.lost_line());
        left
    }

    #[cfg(test)]
    pub fn is_ended(&self) -> bool {
        self.state().ended
    }

    /// Waits for the next line; returns `None` when the queue is closed and empty.
    fn next(&self) -> Option<Vec<u8>> {
        let waited = self.changed.wait_while(self.state(), |state| {
            state.lines.is_empty() && state.lost == 0 && !state.closed
        });
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let line = state.lines.pop_front();
        line.or_else(|| state.lost_line())
    }

    /// Puts back a line that could not be written, and waits until the next attempt; returns `false` if the queue is
    /// closed.
    fn requeue(&self, line: Vec<u8>) -> bool {
        let mut state = self.state();
        state.lines.push_front(line);
        if state.closed {
            return false;
        }
        // If the queue is closed meanwhile, one more attempt follows.
        let waited = self
            .changed
            .wait_timeout_while(state, RETRY, |state| !state.closed);
        waited.is_ok()
    }

    /// Inserts the lines that another queue has left before its own.
    fn prepend(&self, mut left: VecDeque<Vec<u8>>) {
        let mut state = self.state();
        left.append(&mut state.lines);
        let excess = left.len().saturating_sub(MAX_WAITING);
        left.truncate(MAX_WAITING);
        state.lost += excess as u64;
        state.lines = left;
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    /// Returns a line that replaces the lost ones, if there are any.
    fn lost_line(&mut self) -> Option<Vec<u8>> {
        let count = mem::take(&mut self.lost);
        if count == 0 {
            return None;
        }
        info!(
            "the event log is written again; lost: {}",
            counted(count, "event")
        );
        line::encode(&Event::EventsLost { count }).ok()
    }
}

/// Writes the lines of `queue` until it is closed. First it waits for the writer of the former queue, whose file may be
/// the same, and writes the lines that this writer has left.
///
/// It logs a failed write once and repeats it, so that a full disk loses no line that has room in the queue.
pub(super) fn write(queue: &Queue, mut file: LogFile, before: Option<&Queue>) {
    if let Some(before) = before {
        queue.prepend(before.drain());
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
            (Err(error), was_failing) => {
                if !was_failing {
                    failing = true;
                    warn!(
                        "the event log cannot be written: {error:#}; the next {MAX_WAITING} events \
                         are kept for it"
                    );
                }
                if !queue.requeue(line) {
                    break;
                }
            }
        }
    }
    queue.state().ended = true;
    queue.changed.notify_all();
}
