//! Background tasks of the manager. They wait for the kernel or read large tables, so that the manager's
//! task does not, and report by a [`BackgroundResult`].

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::spawn_blocking};
use tracing::debug;

use super::{
    Manager, connection_count::ConnectionCountReconciler, reload, route_monitor::RouteMonitor,
};
use crate::datapath::{Routes, Stats};
use lb_core::{BackendId, TrialOutcome};

/// How often the connections of removed workers are counted.
const REMOVED_BACKENDS_INTERVAL: Duration = Duration::from_secs(10);

/// What a background task found out.
#[derive(Debug)]
pub(super) enum BackgroundResult {
    /// The routes to the agents that want to join from these addresses.
    JoinRoutes(BTreeSet<IpAddr>, Routes),
    /// The routes to the workers as the kernel has them now.
    Routes(Routes),
    /// This next hop has another link address.
    NextHopMoved(IpAddr),
    /// The connections of all backends, removed ones among them, and the generation of backend ids at the
    /// time of the count, see [`crate::datapath::Datapath::sweep`].
    ConnectionCounts(Stats, u64),
    /// A trial of a failing worker.
    Trial(BackendId, TrialOutcome),
}

/// The background tasks that run all the time, and the state of the others.
#[derive(Debug)]
pub(super) struct Background {
    pub route_monitor: RouteMonitor,
    _reconciler: ConnectionCountReconciler,
    results: mpsc::Sender<BackgroundResult>,
    /// Whether the routes to agents that want to join are being looked up.
    pub looking_up_joins: bool,
    /// When the connections of removed backends were last counted.
    removed_counted: Instant,
}

impl Background {
    pub fn new(
        route_monitor: RouteMonitor,
        reconciler: ConnectionCountReconciler,
        results: mpsc::Sender<BackgroundResult>,
    ) -> Self {
        Self {
            route_monitor,
            _reconciler: reconciler,
            results,
            looking_up_joins: false,
            removed_counted: Instant::now(),
        }
    }

    pub fn results(&self) -> mpsc::Sender<BackgroundResult> {
        self.results.clone()
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

    /// Starts to look up the routes to agents that want to join.
    pub(super) fn look_up_join_requests(&mut self) {
        let addresses = self.join_requests.addresses();
        if self.background.looking_up_joins || addresses.is_empty() {
            return;
        }
        self.background.looking_up_joins = true;
        let results = self.background.results.clone();
        tokio::spawn(async move {
            let routes = reload::routes(&addresses).await;
            // Fails only when the manager ends.
            _ = results
                .send(BackgroundResult::JoinRoutes(addresses, routes))
                .await;
        });
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
