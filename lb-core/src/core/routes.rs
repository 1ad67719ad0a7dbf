//! Input about the network: routes to the workers, and replies of workers in mode `routed`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Core;
use crate::eligibility::WorkerRoute;
use crate::return_path::ReplyCounters;
use crate::settings::{BackendId, Mode};

impl Core {
    /// Handles new routes to the backends.
    pub fn handle_routes(&mut self, routes: &BTreeMap<BackendId, WorkerRoute>, now: Instant) {
        self.detect_stall(now);
        let services = self.services.iter_mut();
        let changed: BTreeSet<usize> = services.flat_map(|it| it.update_routes(routes)).collect();
        self.sync_changed(changed, now);
    }

    /// Handles the reply counters of backends in mode `routed`. The caller calls it every few seconds: it also ends the
    /// pause of a worker without a return path.
    pub fn handle_reply_counters(
        &mut self,
        counters: &BTreeMap<BackendId, ReplyCounters>,
        now: Instant,
    ) {
        self.detect_stall(now);
        let mut changed = BTreeSet::new();
        for service in &mut self.services {
            if service.settings.mode == Mode::Routed {
                let is_up = |worker: usize| self.workers[worker].health.is_up();
                changed.extend(service.observe_replies(counters, is_up, now));
            }
        }
        self.sync_changed(changed, now);
    }

    pub(super) fn sync_changed(&mut self, changed: BTreeSet<usize>, now: Instant) {
        if !changed.is_empty() {
            self.sync_services(&changed.into_iter().collect::<Vec<_>>(), now);
        }
    }
}
