//! The handle by which the control socket, the HTTP server and the replication reach the manager.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_common::verdict::Verdict;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use tracing::debug;

use super::{
    CommandReceipt, DenyChange, DenyOutcome, Manager, ReadConfig, ReloadError, Reloaded,
    SourceError, SourceReceipt, SourceUpdate, reload, route_monitor::look_up_routes,
};
use crate::{
    config::Config,
    datapath::{self, Connection, Stats},
    deny::{DenyError, DenyList, Prefix},
    event_stream::EventStream,
    handover::TrackFile,
    history::History,
    membership::JoinError,
    metrics::Metrics,
    peer::{PeerStatus, Peers},
    status::{ManagerSnapshot, Status},
};
use lb_core::{AdminCommand, AdminError, Event};

/// The loop answers in well under a millisecond, if it runs.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(1);

/// Counters, and when they were read.
type TimedStats = (Instant, Arc<Stats>);

/// A short step that the manager's task runs. The step sends its result to the caller after the maps are written, so
/// that a command is in force when its caller continues. Whatever takes time runs in the caller's task.
pub(crate) type ManagerRequest = Box<dyn FnOnce(&mut Manager) + Send>;

/// Sends requests to the manager's task, and reads maps and shared state in the caller's task. Clones share one cache
/// of counters.
#[derive(Clone)]
pub struct ManagerHandle {
    requests: mpsc::Sender<ManagerRequest>,
    read_config: ReadConfig,
    /// The content of the configuration file in force; locked during a reload.
    in_force: Arc<Mutex<Config>>,
    shared: SharedState,
    last_stats: Arc<Mutex<Option<TimedStats>>>,
}

impl fmt::Debug for ManagerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerHandle").finish_non_exhaustive()
    }
}

/// State that the manager's task writes and the handle reads.
#[derive(Debug, Clone)]
pub(super) struct SharedState {
    pub pin_path: PathBuf,
    pub event_stream: EventStream,
    pub history: History,
    pub metrics: Metrics,
    pub peers: Peers,
    pub track_file: TrackFile,
}

impl ManagerHandle {
    pub(super) fn new(
        requests: mpsc::Sender<ManagerRequest>,
        read_config: ReadConfig,
        in_force: Config,
        shared: SharedState,
    ) -> Self {
        Self {
            requests,
            read_config,
            in_force: Arc::new(Mutex::new(in_force)),
            shared,
            last_stats: Arc::default(),
        }
    }

    /// Returns the configuration in force with the options of the command line, and without workers that joined. It
    /// waits for the end of a reload.
    pub async fn configuration(&self) -> Config {
        self.in_force.lock().await.clone()
    }

    /// Returns the state of the manager's task.
    ///
    /// # Errors
    ///
    /// Says that the manager's loop does not answer.
    pub async fn snapshot(&self) -> Result<ManagerSnapshot> {
        let snapshot = self.request(|manager| manager.snapshot());
        let snapshot = timeout(SNAPSHOT_TIMEOUT, snapshot).await;
        snapshot.context("the manager's loop does not answer")?
    }

    /// Returns the snapshot with counters that are at most `max_age` old. Reading a full flow table takes a tenth of a
    /// second, and any number of clients may request it.
    ///
    /// # Errors
    ///
    /// Says that the manager's loop does not answer, or which map cannot be read.
    pub async fn status(&self, max_age: Duration) -> Result<Status> {
        let stats = self.stats(max_age).await?;
        self.status_with(&stats).await
    }

    /// Returns the status without the figures of connection tables, which take time to read.
    ///
    /// # Errors
    ///
    /// As [`Self::status`].
    pub async fn totals(&self) -> Result<Status> {
        let stats = self.read(Stats::read_totals).await?;
        self.status_with(&stats).await
    }

    async fn status_with(&self, stats: &Stats) -> Result<Status> {
        let status = Status::new(self.snapshot().await?, stats);
        let relayed = status.verdicts.get(Verdict::ToPeer.name());
        let relayed_packets = relayed.map_or(0, |it| it.packets);
        let peers = self.peers().into_iter();
        Ok(Status {
            // Each packet goes to all living peers.
            peers: peers
                .map(|peer| PeerStatus {
                    relayed_packets,
                    ..peer
                })
                .collect(),
            handed_over: self.shared.track_file.handed_over(),
            ..status
        })
    }

    /// Applies an operator's command. Returns when it is in force.
    ///
    /// # Errors
    ///
    /// Says that the manager ends; the inner result refuses the command.
    pub async fn apply_command(
        &self,
        command: AdminCommand,
    ) -> Result<Result<CommandReceipt, AdminError>> {
        self.request(move |manager| manager.apply_admin_command(&command))
            .await
    }

    /// Denies or allows clients. Returns when that is in force for packets to come.
    ///
    /// # Errors
    ///
    /// Says that the manager ends; the inner result refuses the change.
    pub async fn change_denied(
        &self,
        change: DenyChange,
    ) -> Result<Result<DenyOutcome, DenyError>> {
        self.request(|manager| manager.change_denied(change)).await
    }

    /// Returns the denied clients.
    ///
    /// # Errors
    ///
    /// Says that the manager ends.
    pub async fn denied(&self) -> Result<DenyList> {
        self.request(|manager| manager.denied.clone()).await
    }

    /// Adds a worker that joined a peer, or without an address removes one that a peer has removed. Returns when that
    /// is in force.
    ///
    /// # Errors
    ///
    /// Says that the manager ends; the inner result refuses the change.
    pub async fn apply_peer_member(
        &self,
        worker: String,
        address: Option<IpAddr>,
    ) -> Result<Result<(), JoinError>> {
        let routes = look_up_routes(&address.into_iter().collect()).await;
        self.request(move |manager| manager.apply_peer_member(worker, address, &routes))
            .await
    }

    /// Reads the configuration again and applies it.
    ///
    /// # Errors
    ///
    /// Says why nothing was changed.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let mut in_force = self.in_force.lock().await;
        let prepared = reload::prepare(self.read_config.clone(), in_force.clone()).await;
        let file = prepared.as_ref().ok().map(|it| it.file.clone());
        let outcome = self.request(|manager| manager.reload(prepared)).await;
        let reloaded = outcome.map_err(ReloadError::RunTime)??;
        if let Some(file) = file {
            *in_force = file;
        }
        Ok(reloaded)
    }

    /// Replaces a source's list of workers, as a whole or not at all. Returns when that is in force.
    ///
    /// # Errors
    ///
    /// Says that the manager ends; the inner result refuses the list.
    pub async fn set_workers(
        &self,
        update: SourceUpdate,
    ) -> Result<Result<SourceReceipt, SourceError>> {
        let routes = look_up_routes(&update.addresses()).await;
        self.request(move |manager| manager.set_workers(update, &routes))
            .await
    }

    /// Records why a source cannot give its list. Its last list stays in force.
    ///
    /// # Errors
    ///
    /// Says that the manager ends; the inner result refuses the source's name.
    pub async fn source_failed(
        &self,
        source: String,
        problem: String,
    ) -> Result<Result<(), SourceError>> {
        self.request(move |manager| manager.source_failed(&source, problem))
            .await
    }

    /// Reads the connection tables.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read.
    pub async fn connections(&self) -> Result<Vec<Connection>> {
        self.read(datapath::read_connections).await
    }

    /// Ends the open connections of clients; returns how many.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read or written.
    pub async fn end_connections(&self, prefixes: Vec<Prefix>) -> Result<u64> {
        self.read(move |pin_path| {
            let ended = datapath::end_connections(pin_path, &prefixes)?;
            datapath::reconcile_connection_counts(pin_path)?;
            Ok(ended)
        })
        .await
    }

    pub fn pin_path(&self) -> &Path {
        &self.shared.pin_path
    }

    pub fn event_stream(&self) -> &EventStream {
        &self.shared.event_stream
    }

    pub fn history(&self) -> &History {
        &self.shared.history
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Publishes an event of a caller's task.
    ///
    /// # Errors
    ///
    /// Says that the manager ends.
    pub async fn emit(&self, event: Event) -> Result<()> {
        self.request(move |manager| manager.emitter.emit(&event))
            .await
    }

    /// Returns the file by which this manager asks keepalived for a lower priority.
    pub fn track_file(&self) -> &TrackFile {
        &self.shared.track_file
    }

    /// Returns the state of every peer.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shared.peers.statuses()
    }

    /// Waits until every peer knows all connections of this manager and has acknowledged all records up to now.
    ///
    /// # Errors
    ///
    /// Returns for each peer what is missing after `wait`, in a sentence.
    pub async fn peers_acknowledged(&self, wait: Duration) -> Result<(), Vec<String>> {
        self.shared.peers.flush(wait).await
    }

    /// Runs a step in the manager's task, and returns its result.
    async fn request<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Manager) -> T + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = oneshot::channel();
        let request: ManagerRequest = Box::new(move |manager| {
            if reply.send(step(manager)).is_err() {
                debug!("the sender of a request has gone");
            }
        });
        let sent = self.requests.send(request).await;
        sent.ok().context("the manager stops")?;
        result.await.ok().context("the manager stops")
    }

    /// Returns the counters. One caller reads them, and others wait for its result.
    async fn stats(&self, max_age: Duration) -> Result<Arc<Stats>> {
        let called = Instant::now();
        let mut last = self.last_stats.lock().await;
        if let Some((begun, stats)) = &*last
            && (*begun >= called || called.saturating_duration_since(*begun) < max_age)
        {
            return Ok(stats.clone());
        }
        let begun = Instant::now();
        let stats = Arc::new(self.read(Stats::read_for_display).await?);
        *last = Some((begun, stats.clone()));
        Ok(stats)
    }

    /// Reads maps in a thread for blocking work, because that takes a while and must not delay heartbeats.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let pin_path = self.shared.pin_path.clone();
        let result = spawn_blocking(move || read(&pin_path)).await;
        result.context("read the maps")?
    }
}

#[cfg(test)]
impl ManagerHandle {
    /// Returns a handle whose manager never answers, with the channel that its requests wait in.
    pub(crate) fn without_manager() -> (Self, mpsc::Receiver<ManagerRequest>) {
        let config = crate::config::Config::example(&Default::default(), None).unwrap();
        let (requests, inputs) = mpsc::channel(1);
        let shared = SharedState {
            pin_path: PathBuf::new(),
            event_stream: EventStream::default(),
            history: History::default(),
            metrics: Metrics::new(&config).unwrap(),
            peers: Peers::default(),
            track_file: TrackFile::default(),
        };
        let read_config = {
            let config = config.clone();
            Arc::new(move || Ok(config.clone()))
        };
        (Self::new(requests, read_config, config, shared), inputs)
    }
}
