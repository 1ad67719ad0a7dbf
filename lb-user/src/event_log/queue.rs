//! The queue of lines, and the thread that writes them.

use std::{
    collections::VecDeque,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_core::{Event, counted};
use tracing::{info, warn};

use super::file::LogFile;

/// The most lines that wait while the file cannot be written; further ones are lost.
pub(super) const MAX_WAITING: usize = 10_000;

/// How long after a failure the writer tries again.
const RETRY: Duration = Duration::from_secs(1);

/// The longest wait for a queue to be written.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Never locked while the disk is written.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// The number of lost lines; counted until all lines before them are written.
    lost: u64,
    /// No further line comes.
    closed: bool,
    /// The writer has ended.
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

    /// Lets the writer write the rest and end.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Closes the queue, waits for the writer with a timeout, and returns the lines that are left.
    pub fn finish(&self) -> VecDeque<Vec<u8>> {
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

    /// Waits for the next line; nothing once the queue is closed and empty.
    fn next(&self) -> Option<Vec<u8>> {
        let waited = self.changed.wait_while(self.state(), |state| {
            state.lines.is_empty() && state.lost == 0 && !state.closed
        });
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let line = state.lines.pop_front();
        line.or_else(|| state.lost_line())
    }

    /// Puts back a line that could not be written, and waits until the next attempt; returns whether there is
    /// one.
    fn requeue(&self, line: Vec<u8>) -> bool {
        let mut state = self.state();
        state.lines.push_front(line);
        if state.closed {
            return false;
        }
        // Even if the queue is closed meanwhile, there is one more attempt.
        let waited = self
            .changed
            .wait_timeout_while(state, RETRY, |state| !state.closed);
        waited.is_ok()
    }

    /// Puts the lines that another queue has left before its own.
    fn prepend(&self, mut left: VecDeque<Vec<u8>>) {
        let mut state = self.state();
        left.append(&mut state.lines);
        let excess = left.len().saturating_sub(MAX_WAITING);
        left.truncate(MAX_WAITING);
        state.lost += excess as u64;
        state.lines = left;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns a line in place of lost ones, if any.
    fn lost_line(&mut self) -> Option<Vec<u8>> {
        let count = mem::take(&mut self.lost);
        if count == 0 {
            return None;
        }
        info!(
            "the event log is written again; lost: {}",
            counted(count, "event")
        );
        super::line(&Event::EventsLost { count }).ok()
    }
}

/// Writes the lines of `queue` until it is closed, after those of the former queue, whose file may be the same.
///
/// A failed write is logged once and repeated, so that a full disk loses no line that has room in the queue.
pub(super) fn write(queue: &Queue, mut file: LogFile, before: Option<&Queue>) {
    if let Some(before) = before {
        queue.prepend(before.finish());
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
