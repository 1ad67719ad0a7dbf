//! The return paths of the workers of a service in mode `routed`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Service;
use crate::return_path::{ReplyCounters, ReturnPath};
use crate::settings::BackendId;

impl Service {
    /// Updates the return paths; returns the workers whose return path was lost or found. A worker that is not up
    /// sends no replies, so that its counters begin again when it is up.
    pub fn observe_replies(
        &mut self,
        counters: &BTreeMap<BackendId, ReplyCounters>,
        is_up: impl Fn(usize) -> bool,
        now: Instant,
    ) -> BTreeSet<usize> {
        let mut changed = BTreeSet::new();
        let backends = self.settings.backends.iter().zip(&self.workers);
        for ((backend, worker), path) in backends.zip(&mut self.return_paths) {
            let before = path.is_missing();
            match counters.get(&backend.id) {
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
