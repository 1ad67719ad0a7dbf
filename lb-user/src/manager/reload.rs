//! Applies a changed configuration to a running manager: as a whole, or not at all.
//!
//! The caller's task reads and opens what the reload needs, and looks up routes. The manager's task then applies
//! the result in one step, so that heartbeats never wait for a disk or for the kernel.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use tracing::warn;

use super::{Manager, ManagerRequest};
use crate::{
    config::{Changes, Config, ConfigError, PinnedIds},
    datapath::{Netlink, Routes},
    event_log::{self, LogFile},
    heartbeat_receiver,
    keys::KeyRing,
    membership::Applied,
    peer::{self, PeerSettings},
};
use lb_core::Event;

/// How long the kernel may take to return the routes to new workers; without them the reload continues.
const ROUTES_TIMEOUT: Duration = Duration::from_millis(200);

/// How long the disk may take; then nothing is changed.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads and checks the configuration again, from its source at the start; it may block.
pub type ReadConfig = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Prepares reloads and sends them to the manager's task, one after another.
#[derive(Clone)]
pub(super) struct Reloader {
    read_config: ReadConfig,
    /// The configuration file in force; locked during a reload.
    in_force: Arc<Mutex<Config>>,
}

/// A changed configuration with everything that is needed to apply it.
#[derive(Debug)]
pub(crate) struct Reload {
    file: Config,
    keys: KeyRing,
    peers: Vec<PeerSettings>,
    log: Option<LogFile>,
    routes: Routes,
}

/// A configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// One sentence each; none if nothing was different.
    pub changes: Vec<String>,
    /// Effects that the operator may not have intended, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Why nothing was changed.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The file is not valid.
    #[error("nothing was changed: {0}")]
    Configuration(ConfigError),
    /// Settings that only a restart can change.
    #[error("nothing was changed: these settings cannot change while the manager runs\n{}", .0.join("\n"))]
    Refused(Vec<String>),
    #[error("nothing was changed: {0:#}")]
    RunTime(anyhow::Error),
}

impl Reloader {
    /// Returns the configuration in force; waits for the end of a reload.
    pub async fn in_force(&self) -> Config {
        self.in_force.lock().await.clone()
    }

    pub fn new(read_config: ReadConfig, in_force: Config) -> Self {
        Self {
            read_config,
            in_force: Arc::new(Mutex::new(in_force)),
        }
    }

    /// Reads the configuration and lets the manager's task apply it; returns the changes.
    ///
    /// # Errors
    ///
    /// Says why nothing was changed.
    pub async fn reload(
        &self,
        requests: &mpsc::Sender<ManagerRequest>,
    ) -> Result<Reloaded, ReloadError> {
        let mut in_force = self.in_force.lock().await;
        let (read_config, before) = (self.read_config.clone(), in_force.clone());
        let prepared = match read_from_disk(move || read(&*read_config, &before)).await {
            Ok(Ok((file, keys, peers, log))) => Ok(Box::new(Reload {
                routes: routes_to_workers(&file).await,
                file,
                keys,
                peers,
                log,
            })),
            Ok(Err(error)) | Err(error) => Err(error),
        };
        let file = prepared.as_ref().ok().map(|it| it.file.clone());
        let (reply, outcome) = oneshot::channel();
        let stops = || ReloadError::RunTime(anyhow!("the manager stops"));
        let sent = requests.send(ManagerRequest::Reload(prepared, reply)).await;
        sent.ok().ok_or_else(stops)?;
        let reloaded = outcome.await.ok().ok_or_else(stops)??;
        if let Some(file) = file {
            *in_force = file;
        }
        Ok(reloaded)
    }
}

/// Runs what may block, with a timeout.
async fn read_from_disk<T: Send + 'static>(
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReloadError> {
    let done = timeout(DISK_TIMEOUT, spawn_blocking(task)).await;
    let done = done.context("the disk does not answer");
    done.and_then(|done| done.context("read the configuration"))
        .map_err(ReloadError::RunTime)
}

/// Reads and opens what a reload needs, unless a change needs a restart.
fn read(
    read_config: &dyn Fn() -> Result<Config, ConfigError>,
    in_force: &Config,
) -> Result<(Config, KeyRing, Vec<PeerSettings>, Option<LogFile>), ReloadError> {
    let file = read_config().map_err(ReloadError::Configuration)?;
    let refused = Changes::between(in_force, &file).refused;
    if !refused.is_empty() {
        return Err(ReloadError::Refused(refused));
    }
    let log = file.manager.event_log.as_deref();
    let log = log.map(event_log::open).transpose();
    let log = log.map_err(ReloadError::RunTime)?;
    let keys = heartbeat_receiver::read_keys_of(&file).map_err(ReloadError::RunTime)?;
    let peers = peer::read_peers(&file).map_err(ReloadError::RunTime)?;
    Ok((file, keys, peers, log))
}

impl Manager {
    /// Applies a configuration that was read again; returns the changes.
    pub(super) fn reload(
        &mut self,
        prepared: Result<Box<Reload>, ReloadError>,
    ) -> Result<Reloaded, ReloadError> {
        let outcome = prepared.and_then(|reload| self.apply_reload(*reload));
        self.emitter.emit(&match &outcome {
            Ok(Reloaded { changes, .. }) => Event::ConfigurationReloaded {
                changes: changes.clone(),
            },
            Err(refused) => Event::ReloadRefused {
                error: refused.to_string(),
            },
        });
        outcome
    }

    fn apply_reload(&mut self, reload: Reload) -> Result<Reloaded, ReloadError> {
        let Reload {
            file,
            keys,
            peers,
            log,
            routes,
        } = reload;
        // Workers may have joined since the reload was prepared.
        let Applied { config, absent } = self.compose(&file);
        let mut changes = Changes::between(&self.configuration.effective, &config);
        changes
            .refused
            .extend(self.datapath.restart_reasons(&config));
        if !changes.refused.is_empty() {
            return Err(ReloadError::Refused(changes.refused));
        }
        // Steps that may fail come first and change nothing if they do.
        let numbers = self.datapath.pinned_ids().map_err(ReloadError::RunTime)?;
        let lacking = numbers.reused_by(&config.settings(&numbers));
        if lacking > 0 {
            return Err(ReloadError::Refused(vec![self.lacks_backends(lacking)]));
        }
        self.emitter
            .event_log
            .move_to(log)
            .map_err(ReloadError::RunTime)?;
        changes
            .accepted
            .extend(self.receiver.reconfigure(&config, keys));
        // Agents that may still join send another heartbeat.
        self.join_requests.clear();
        self.membership.retain_workers_of(&config);
        self.state_files.membership.save(self.membership.clone());
        self.configuration.file = file;
        self.apply_config(config, &numbers, &routes);
        self.note_absent(absent);
        let warnings = self.receiver.missing_keys(&self.configuration.effective);
        let mut warnings: Vec<String> = warnings.into_iter().collect();
        if self.are_peers_changed(&peers) {
            let names: Vec<_> = peers.iter().map(|it| it.name.clone()).collect();
            let sessions = format!("new sessions with {}", names.join(", "));
            changes.accepted.push(sessions);
            if let Err(error) = self.replace_peers(peers) {
                warnings.push(format!(
                    "connections are not replicated: {error:#}\n  to do: restart the manager"
                ));
            }
        }
        Ok(Reloaded {
            changes: changes.accepted,
            warnings,
        })
    }

    /// Brings core and datapath in line with a configuration that differs only in what can change while a
    /// manager runs. `routes` are those to new workers; the route monitor looks up missing ones later.
    pub(super) fn apply_config(&mut self, config: Config, numbers: &PinnedIds, routes: &Routes) {
        let settings = config.settings(numbers);
        self.datapath.prepare_reload(&settings, numbers);
        // The core may select a new worker at its first heartbeat, or a moved one at once.
        self.reconcile(routes);
        self.background
            .route_monitor
            .watch(self.datapath.worker_addresses());
        let links = self.datapath.worker_routes();
        self.core
            .reconfigure(settings.clone(), &links, Instant::now());
        self.apply_outputs();
        if let Err(error) = self.datapath.publish_services(&settings) {
            self.map_write_failed(&error);
        }
        self.configuration.settings = settings;
        self.configuration.effective = config;
        self.update_topology();
    }

    pub(super) fn lacks_backends(&self, lacking: usize) -> String {
        let backends = self.configuration.effective.limits.backends;
        let parting = self.datapath.retiring();
        format!(
            "limits.backends: of {backends} there is no number left for {lacking} new backends, and \
             {parting} are kept for removed workers until their last connection has ended\n  to do: \
             reload again when they have ended (memlb flows), or raise limits.backends, for which \
             memlb unload ends all connections"
        )
    }
}

async fn routes_to_workers(config: &Config) -> Routes {
    routes(&config.workers().map(|it| it.address.ip()).collect()).await
}

/// Looks up the routes to workers that are not in force yet; none if the kernel does not answer.
pub(super) async fn routes(addresses: &BTreeSet<IpAddr>) -> Routes {
    let found = timeout(ROUTES_TIMEOUT, async {
        Netlink::connect()?.routes(addresses).await
    });
    let found = found
        .await
        .context("the kernel does not answer route requests");
    found.flatten().unwrap_or_else(|error| {
        warn!("{error:#}; the routes to new workers are looked up later");
        Routes::new()
    })
}
