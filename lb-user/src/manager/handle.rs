//! The handle by which the control socket and the HTTP server reach the manager.

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

use super::{
    CommandReceipt, DenyChange, DenyOutcome, ManagerRequest, ReloadError, Reloaded, SourceError,
    SourceReceipt, SourceUpdate,
    reload::{self, Reloader},
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

/// Sends requests to the manager's task, and reads maps and shared records in the caller's. Clones share one
/// cache of counters.
#[derive(Clone)]
pub struct ManagerHandle {
    requests: mpsc::Sender<ManagerRequest>,
    reloader: Reloader,
    records: Records,
    last_stats: Arc<Mutex<Option<TimedStats>>>,
}

impl fmt::Debug for ManagerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerHandle").finish_non_exhaustive()
    }
}

/// The records that the manager's task writes and the handle reads.
#[derive(Debug, Clone)]
pub(super) struct Records {
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
        reloader: Reloader,
        records: Records,
    ) -> Self {
        Self {
            requests,
            reloader,
            records,
            last_stats: Arc::default(),
        }
    }

    /// Returns the configuration in force, options of the command line included, and without workers that joined.
    pub async fn configuration(&self) -> Config {
        self.reloader.in_force().await
    }

    /// Returns what the manager's task knows now.
    ///
    /// # Errors
    ///
    /// Says that its loop does not answer.
    pub async fn snapshot(&self) -> Result<ManagerSnapshot> {
        timeout(SNAPSHOT_TIMEOUT, self.request(ManagerRequest::Snapshot))
            .await
            .context("the manager's loop does not answer")?
    }

    /// Returns the snapshot with counters that were read at most `max_age` ago. To read a full flow table
    /// takes a tenth of a second, and any number of clients may ask.
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
            // A packet goes to all living peers.
            peers: peers
                .map(|peer| PeerStatus {
                    relayed_packets,
                    ..peer
                })
                .collect(),
            handed_over: self.records.track_file.handed_over(),
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
        self.request(|reply| ManagerRequest::Admin(command, reply))
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
        self.request(|reply| ManagerRequest::Deny(change, reply))
            .await
    }

    /// # Errors
    ///
    /// Says that the manager ends.
    pub async fn denied(&self) -> Result<DenyList> {
        self.request(ManagerRequest::ListDenied).await
    }

    /// Adds a worker that joined a peer, or with no address removes one that a peer has removed. Returns when that is
    /// in force.
    ///
    /// # Errors
    ///
    /// Says that the manager ends; the inner result says why it stays as it is.
    pub async fn join(
        &self,
        worker: String,
        address: Option<IpAddr>,
    ) -> Result<Result<(), JoinError>> {
        let routes = reload::routes(&address.into_iter().collect()).await;
        self.request(|reply| ManagerRequest::Join(worker, address, routes, reply))
            .await
    }

    /// Reads the configuration again and applies it.
    ///
    /// # Errors
    ///
    /// Says why nothing was changed.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        self.reloader.reload(&self.requests).await
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
        let routes = reload::routes(&update.addresses()).await;
        let update = Box::new(update);
        self.request(|reply| ManagerRequest::SetWorkers(update, routes, reply))
            .await
    }

    /// Records why a source cannot say which workers there are; its last ones stay.
    ///
    /// # Errors
    ///
    /// Says that the manager ends; the inner result refuses the source's name.
    pub async fn source_failed(
        &self,
        source: String,
        problem: String,
    ) -> Result<Result<(), SourceError>> {
        self.request(|reply| ManagerRequest::SourceProblem(source, problem, reply))
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
        &self.records.pin_path
    }

    pub fn event_stream(&self) -> &EventStream {
        &self.records.event_stream
    }

    pub fn history(&self) -> &History {
        &self.records.history
    }

    pub fn metrics(&self) -> &Metrics {
        &self.records.metrics
    }

    /// Publishes an event of a caller's task.
    ///
    /// # Errors
    ///
    /// Says that the manager ends.
    pub async fn emit(&self, event: Event) -> Result<()> {
        self.request(|reply| ManagerRequest::Emit(Box::new(event), reply))
            .await
    }

    /// Returns the file by which this manager asks keepalived for a lower priority.
    pub fn track_file(&self) -> &TrackFile {
        &self.records.track_file
    }

    /// Returns the state of every peer.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.records.peers.statuses()
    }

    /// Waits until every peer knows all connections of this manager and has acknowledged what happened before.
    ///
    /// # Errors
    ///
    /// Says of each peer what is missing after `wait`, in a sentence.
    pub async fn peers_acknowledged(&self, wait: Duration) -> Result<(), Vec<String>> {
        self.records.peers.flush(wait).await
    }

    async fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> ManagerRequest,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(request(reply)).await;
        sent.ok().context("the manager stops")?;
        answer.await.context("the manager stops")
    }

    /// One caller reads; the others wait for its result.
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

    /// Reads maps in a thread for blocking work: that takes a while, and must not delay heartbeats.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let pin_path = self.records.pin_path.clone();
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
        let records = Records {
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
        let reloader = Reloader::new(read_config, config);
        (Self::new(requests, reloader, records), inputs)
    }
}
