//! Background tasks of the manager. They wait for the kernel or read large tables, so that the manager's task does not,
//! and send a [`BackgroundResult`].

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
};
use tracing::debug;

use super::{Manager, connection_count::reconcile_forever};
use crate::datapath::{Routes, Stats};
use lb_core::{BackendId, TrialOutcome};

/// How often the connections of removed workers are counted.
const REMOVED_BACKENDS_INTERVAL: Duration = Duration::from_secs(10);

/// The result of a background task.
#[derive(Debug)]
pub(super) enum BackgroundResult {
    /// The routes to the agents that want to join from these addresses.
    JoinRoutes(BTreeSet<IpAddr>, Routes),
    /// The present routes to the workers.
    Routes(Routes),
    /// This next hop has another link address.
    NextHopMoved(IpAddr),
    /// The connections of all backends, removed ones among them, and the generation of backend ids at the
    /// time of the count, see [`crate::datapath::Datapath::sweep`].
    ConnectionCounts(Stats, u64),
    /// A trial of a failing worker.
    Trial(BackendId, TrialOutcome),
}

/// How background tasks report, and those that run all the time. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Background {
    pub results: mpsc::Sender<BackgroundResult>,
    /// When the connections of removed backends were last counted.
    removed_counted: Instant,
    _tasks: JoinSet<()>,
}

impl Background {
    pub fn new(pin_path: PathBuf, results: mpsc::Sender<BackgroundResult>) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(reconcile_forever(pin_path));
        Self {
            results,
            removed_counted: Instant::now(),
            _tasks: tasks,
        }
    }
}

impl Manager {
    pub(super) fn handle_result(&mut self, result: BackgroundResult) {
        match result {
            BackgroundResult::JoinRoutes(addresses, routes) => {
                self.handle_join_routes(&addresses, &routes);
            }
            BackgroundResult::Routes(routes) => self.reconcile(&routes),
            BackgroundResult::Trial(backend, outcome) => {
                self.core.handle_trial(backend, outcome, Instant::now());
            }
            BackgroundResult::NextHopMoved(next_hop) => {
                if let Err(error) = self.datapath.clear_neighbours_behind(next_hop) {
                    self.map_write_failed(&error);
                }
            }
            BackgroundResult::ConnectionCounts(stats, generation) => {
                if let Err(error) = self.datapath.sweep(&stats, generation) {
                    self.map_write_failed(&error);
                }
            }
        }
    }

    /// Starts to count the connections of backends that are no longer configured.
    pub(super) fn count_removed_backends(&mut self) {
        let counted = &mut self.background.removed_counted;
        if self.datapath.retiring() == 0 || counted.elapsed() < REMOVED_BACKENDS_INTERVAL {
            return;
        }
        *counted = Instant::now();
        let results = self.background.results.clone();
        let pin_path = self.datapath.pin_path().to_owned();
        let generation = self.datapath.generation();
        tokio::spawn(async move {
            match spawn_blocking(move || Stats::read(&pin_path)).await {
                // Fails only when the manager ends.
                Ok(Ok(stats)) => {
                    _ = results
                        .send(BackgroundResult::ConnectionCounts(stats, generation))
                        .await;
                }
                Ok(Err(error)) => debug!("count the connections of removed backends: {error:#}"),
                Err(error) => debug!("count the connections of removed backends: {error}"),
            }
        });
    }
}
