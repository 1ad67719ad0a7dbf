//! The manager: one task that owns the decision core and the datapath.
//!
//! Heartbeats, deadlines and requests go into the core. The task writes the core's map updates at once. Other tasks and
//! threads reach it by its [`ManagerHandle`] only. Work that may block or take long runs in their tasks, or in
//! background tasks that send a `BackgroundResult`.

mod absent_interface;
mod admin;
mod background;
mod connection_count;
mod connection_lookup;
mod deny;
mod emitter;
mod handle;
mod heartbeats;
mod joining;
mod kernel_selection;
mod nat_ports;
mod peer_events;
mod peer_orders;
mod peers;
mod pending_lookups;
mod recovery;
mod reload;
mod route_monitor;
mod sources;
mod start;
mod state_file;
mod state_files;
mod traffic;

use std::{
    future::Future,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::warn;

use crate::{
    config::Config,
    datapath::Datapath,
    deny::DenyList,
    heartbeat_receiver::HeartbeatReceiver,
    history::{History, now_ms},
    membership::{EjectionRecord, LivenessRecord, Membership},
    status::{InterfaceStatus, ManagerSnapshot},
    systemd::Watchdog,
};
pub use admin::CommandReceipt;
use background::{Background, BackgroundResult};
use connection_lookup::ConnectionLookup;
pub use deny::{DenyChange, DenyOutcome};
use emitter::Emitter;
pub use handle::ManagerHandle;
pub(crate) use handle::ManagerRequest;
use joining::JoinRequests;
use kernel_selection::ForeignSelection;
use lb_core::{Core, CoreSettings, Event, milliseconds};
use nat_ports::NatPorts;
use peer_events::PeerEvents;
use peers::RunningReplication;
use recovery::Recovery;
pub use reload::{ReadConfig, ReloadError, Reloaded};
use route_monitor::RouteMonitor;
use sources::WorkerSources;
pub use sources::{SourceError, SourceReceipt, SourceUpdate};
pub use start::{PreparedManager, prepare};
pub use state_file::Save;
use state_file::StateFile;
use state_files::StateFiles;
use traffic::TRAFFIC_INTERVAL;

/// How often the loop measures its lag and does work that is not urgent.
const TICK: Duration = Duration::from_secs(2);

/// How often programs and pins are checked.
const ATTACHMENT_INTERVAL: Duration = Duration::from_secs(1);

/// How often the silence of late workers is saved. A manager that is killed loses the silence of this time at most.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(100);

/// The task that decides and writes the maps.
#[derive(Debug)]
pub struct Manager {
    configuration: Configuration,
    core: Core,
    datapath: Datapath,
    receiver: HeartbeatReceiver,
    membership: Membership,
    sources: WorkerSources,
    join_requests: JoinRequests,
    connection_lookup: ConnectionLookup,
    denied: DenyList,
    /// As last saved.
    liveness: LivenessRecord,
    /// As last saved.
    ejections: EjectionRecord,
    state_files: StateFiles,
    emitter: Emitter,
    history: History,
    recovery: Recovery,
    route_monitor: RouteMonitor,
    background: Background,
    nat_ports: NatPorts,
    peer_events: PeerEvents,
    /// The selections that another program has written.
    foreign_selections: Vec<ForeignSelection>,
    interfaces: Vec<InterfaceStatus>,
    /// `None` without a peer.
    replication: Option<RunningReplication>,
    started: Instant,
    /// When the counters of handshakes were last read.
    traffic_read: Instant,
    inputs: Inputs,
}

/// The configuration in force.
#[derive(Debug)]
struct Configuration {
    /// With the workers that joined and those of sources.
    effective: Config,
    /// As in the file.
    file: Config,
    /// The file's path; `None` for the built-in example.
    path: Option<PathBuf>,
    settings: CoreSettings,
}

/// What other tasks send to the manager's task.
#[derive(Debug)]
struct Inputs {
    requests: mpsc::Receiver<ManagerRequest>,
    results: mpsc::Receiver<BackgroundResult>,
}

impl Manager {
    /// Runs until `shutdown` completes. The packet programs continue, and the next manager adopts the maps.
    ///
    /// # Errors
    ///
    /// Returns an error of the heartbeat socket.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        tokio::pin!(shutdown);
        let mut ticks = every(TICK);
        let mut liveness = every(LIVENESS_INTERVAL);
        let mut attachments = every(ATTACHMENT_INTERVAL);
        let mut traffic = every(TRAFFIC_INTERVAL);
        let mut watchdog = Watchdog::start();
        loop {
            let deadline = self.core.poll_timeout();
            tokio::select! {
                () = &mut shutdown => break,
                received = self.receiver.readable() => {
                    received.context("wait for heartbeats")?;
                    self.receive_heartbeats();
                }
                // The heartbeat that moves the deadline may have just arrived.
                () = until(deadline) => self.receive_heartbeats(),
                Some(request) = self.inputs.requests.recv() => request(&mut self),
                Some(result) = self.inputs.results.recv() => self.handle_result(result),
                due = ticks.tick() => self.handle_tick(due.elapsed()),
                _ = liveness.tick() => {
                    self.save_liveness();
                    self.report_peers();
                }
                _ = traffic.tick() => self.read_traffic(),
                _ = attachments.tick() => self.reconcile_attachments(),
                () = self.connection_lookup.due() => self.query_agents(),
                () = watchdog.due() => watchdog.notify(),
            }
            self.look_up_join_routes();
            // In every round, so that a flood of datagrams cannot delay a deadline.
            let now = Instant::now();
            if let Some(late) = deadline.and_then(|due| now.checked_duration_since(due)) {
                self.emitter.metrics.observe_lag(late);
            }
            self.count_connections(now);
            if self.core.wants_traffic(now) {
                self.read_traffic_again(now);
            }
            self.core.handle_timeout(now);
            self.apply_outputs();
            self.begin_trials();
        }
        self.emitter.emit(&Event::ManagerStopped {});
        self.emitter.event_log.shut_down();
        Ok(())
    }

    /// Does work that is not urgent. `lag` is the lag of the loop.
    fn handle_tick(&mut self, lag: Duration) {
        self.remove_absent_members();
        self.check_nat_ports();
        self.check_selections();
        self.emitter.metrics.observe_lag(lag);
        self.count_removed_backends();
        self.check_return_paths();
        self.update_topology();
        self.update_serving();
        self.report_lookups(Instant::now());
    }

    /// Passes the numbers of open connections to the core, if it computes weights now.
    fn count_connections(&mut self, now: Instant) {
        if !self.core.wants_connections(now) {
            return;
        }
        match self.datapath.open_connections() {
            Ok(open) => {
                self.core.handle_connections(&open);
                self.nat_ports.record(open, now);
            }
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Applies the core's map updates and emits its events.
    fn apply_outputs(&mut self) {
        let mut is_changed = false;
        while let Some(update) = self.core.poll_map_update() {
            is_changed = true;
            if let Err(error) = self.datapath.apply(update) {
                self.map_write_failed(&error);
            }
        }
        if is_changed {
            self.update_serving();
        }
        while let Some(event) = self.core.poll_event() {
            if matches!(event, Event::PauseEnded { .. }) {
                let overrides = self.core.admin_overrides().clone();
                self.state_files.overrides.save(overrides);
            }
            self.record_decision(&event);
            self.emitter.emit(&event);
        }
    }

    /// Adds an event to the history of decisions, if it is one.
    fn record_decision(&self, event: &Event) {
        let service = event
            .decided()
            .and_then(|name| self.core.snapshot_of(name, Instant::now()));
        if let Some(service) = service {
            self.history.record(event.to_string(), service);
        }
    }

    fn snapshot(&self) -> ManagerSnapshot {
        let now = Instant::now();
        let services = self.core.snapshot(now).services;
        ManagerSnapshot {
            kernel_selections: self.kernel_selections(&services, now),
            uptime_ms: milliseconds(now - self.started),
            config_file: self.configuration.path.clone(),
            interfaces: self.interfaces.clone(),
            services,
            heartbeats: self.receiver.counts(now),
            denied_prefixes: self.denied.len(),
            sources: self.sources.statuses(&self.configuration.effective, now),
        }
    }

    /// Saves the silence of late workers and the ejections, if they have changed.
    fn save_liveness(&mut self) {
        let now = Instant::now();
        let ejections = self.core.ejections(now);
        let ejections = EjectionRecord::new(ejections, &self.ejections, now_ms());
        if ejections != self.ejections {
            self.state_files.ejections.save(ejections.clone());
            self.ejections = ejections;
        }
        let liveness = LivenessRecord::new(self.core.overdue_workers(now));
        if liveness != self.liveness {
            self.state_files.liveness.save(liveness.clone());
            self.liveness = liveness;
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
