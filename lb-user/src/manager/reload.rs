//! Applies a changed configuration to a running manager: as a whole, or not at all.
//!
//! The caller's task reads and opens what the reload needs, and looks up routes. The manager's task then applies the
//! result in one step, so that heartbeats wait neither for a disk nor for the kernel.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{task::spawn_blocking, time::timeout};

use super::{Manager, route_monitor::look_up_routes};
use crate::{
    config::{Changes, Config, ConfigError, PinnedIds},
    datapath::Routes,
    event_log::{self, LogFile},
    heartbeat_receiver,
    keys::KeyRing,
    membership::ComposedConfig,
    peer::{self, PeerSettings},
};
use lb_core::Event;

/// How long the disk may take. After that time the reload fails.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads and checks the configuration again, from its source at the start. It may block.
pub type ReadConfig = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// A changed configuration with everything that is needed to apply it.
#[derive(Debug)]
pub(super) struct Reload {
    pub file: Config,
    keys: KeyRing,
    peers: Vec<PeerSettings>,
    log: Option<LogFile>,
    routes: Routes,
}

/// A configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// One sentence each; empty if nothing changed.
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

/// Reads the configuration again, and everything that is needed to apply it. `in_force` is the file's content in force.
pub(super) async fn prepare(
    read_config: ReadConfig,
    in_force: Config,
) -> Result<Reload, ReloadError> {
    let reading = spawn_blocking(move || read(&*read_config, &in_force));
    let done = timeout(DISK_TIMEOUT, reading).await;
    let done = done.context("the disk does not answer");
    let done = done.and_then(|done| done.context("read the configuration"));
    let mut reload = done.map_err(ReloadError::RunTime)??;
    let addresses = reload.file.workers().map(|it| it.address.ip()).collect();
    reload.routes = look_up_routes(&addresses).await;
    Ok(reload)
}

/// Reads and opens what a reload needs, unless a change needs a restart. The routes are still missing.
fn read(
    read_config: &dyn Fn() -> Result<Config, ConfigError>,
    in_force: &Config,
) -> Result<Reload, ReloadError> {
    let file = read_config().map_err(ReloadError::Configuration)?;
    let refused = Changes::between(in_force, &file).refused;
    if !refused.is_empty() {
        return Err(ReloadError::Refused(refused));
    }
    let log = file.manager.event_log.as_deref();
    let log = log.map(event_log::open).transpose();
    Ok(Reload {
        log: log.map_err(ReloadError::RunTime)?,
        keys: heartbeat_receiver::read_keys_of(&file).map_err(ReloadError::RunTime)?,
        peers: peer::read_peers(&file).map_err(ReloadError::RunTime)?,
        routes: Routes::new(),
        file,
    })
}

impl Manager {
    /// Applies a configuration that was read again; returns the changes.
    pub(super) fn reload(
        &mut self,
        prepared: Result<Reload, ReloadError>,
    ) -> Result<Reloaded, ReloadError> {
        let outcome = prepared.and_then(|reload| self.apply_reload(reload));
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
        let ComposedConfig { config, absent } = self.compose(&file);
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
        // An agent that may still join sends another heartbeat.
        self.join_requests.clear();
        self.membership.retain_workers_of(&config);
        self.state_files.membership.save(self.membership.clone());
        self.configuration.file = file;
        self.apply_config(config, &numbers, &routes);
        self.record_absent(absent);
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

    /// Applies a configuration to core and datapath. It differs only in settings that can change while a manager runs.
    /// `routes` are those to new workers; the route monitor looks up missing ones later.
    pub(super) fn apply_config(&mut self, config: Config, numbers: &PinnedIds, routes: &Routes) {
        let settings = config.settings(numbers);
        self.datapath.prepare_reload(&settings, numbers);
        // The routes come first: the core selects a moved worker at once, and a new one at its first heartbeat.
        self.reconcile(routes);
        self.route_monitor
            .set_addresses(self.datapath.worker_addresses());
        let links = self.datapath.worker_routes();
        self.core
            .reconfigure(settings.clone(), &links, Instant::now());
        let is_configured = |worker: &str| self.core.has_worker(worker);
        self.receiver.retain_workers(is_configured);
        self.connection_lookup.retain_agents(is_configured);
        self.emitter.metrics.retain_workers(is_configured);
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
        let retiring = self.datapath.retiring();
        format!(
            "limits.backends: none of the {backends} ids is free for {lacking} new backends, and removed \
             workers hold {retiring} ids until their last connections end\n  to do: reload again when \
             they have ended (memlb flows), or raise limits.backends, for which memlb unload ends all \
             connections"
        )
    }
}
