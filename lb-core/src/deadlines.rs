//! The workers' deadlines, in order.

use std::collections::BTreeSet;
use std::time::Instant;

/// At most one deadline for each worker.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_worker: Vec<Option<Instant>>,
    in_order: BTreeSet<(Instant, usize)>,
}

impl Deadlines {
    /// Sets or removes a worker's deadline.
    pub fn set(&mut self, worker: usize, deadline: Option<Instant>) {
        if self.by_worker.len() <= worker {
            self.by_worker.resize(worker + 1, None);
        }
        let before = std::mem::replace(&mut self.by_worker[worker], deadline);
        if before == deadline {
            return;
        }
        if let Some(before) = before {
            self.in_order.remove(&(before, worker));
        }
        self.in_order.extend(deadline.map(|at| (at, worker)));
    }

    pub fn earliest(&self) -> Option<Instant> {
        self.in_order.first().map(|(at, _)| *at)
    }

    /// Returns the earliest deadline after `now`.
    pub fn earliest_after(&self, now: Instant) -> Option<Instant> {
        let mut later = self.in_order.range((now, usize::MAX)..);
        later.next().map(|(at, _)| *at)
    }

    /// Returns the workers whose deadline is `now` or earlier, in the order of their deadlines.
    pub fn due(&self, now: Instant) -> Vec<usize> {
        let due = self.in_order.range(..=(now, usize::MAX));
        due.map(|(_, worker)| *worker).collect()
    }
}
