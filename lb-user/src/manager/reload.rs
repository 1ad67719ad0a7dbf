//! How a running manager takes over a changed configuration: as a whole, or not at all.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::Serialize;
use tokio::{sync::mpsc, time::timeout};
use tracing::{error, info, warn};

use super::{Instruction, Manager};
use crate::{
    config::{Changes, Config, ConfigError, Pinned},
    core::Severity,
    datapath::{Netlink, Routes},
};

/// How long the kernel may take to tell the ways to new workers; heartbeats wait meanwhile.
const PATIENCE: Duration = Duration::from_millis(200);

/// Reads and checks the configuration again, from where it came at the start; it may block.
pub type Reread = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Why nothing was changed.
#[derive(Debug)]
pub enum ReloadError {
    /// The file is wrong by itself.
    Configuration(ConfigError),
    /// These changes would need more than a reload.
    Refused(Vec<String>),
    RunTime(anyhow::Error),
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing was changed: ")?;
        match self {
            Self::Configuration(error) => error.fmt(f),
            Self::Refused(refused) => {
                f.write_str("these settings cannot change while the manager runs")?;
                refused.iter().try_for_each(|it| write!(f, "\n{it}"))
            }
            Self::RunTime(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for ReloadError {}

/// What a reload has come to, for the event log.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Reload<'a> {
    ConfigurationReloaded { changes: &'a [String] },
    ReloadRefused { error: &'a str },
}

/// Rereads the configuration aside of the manager's task, and hands it in; SIGHUP has nobody to
/// answer to.
pub(super) fn on_hangup(reread: Reread, instructions: mpsc::Sender<Instruction>) {
    tokio::spawn(async move {
        let read = tokio::task::spawn_blocking(move || reread()).await;
        let Ok(config) = read else { return };
        // The manager's end is this task's, too.
        _ = instructions
            .send(Instruction::Reload(config.map(Box::new), None))
            .await;
    });
}

impl Manager {
    /// Takes over a configuration that was read anew, and returns what has changed.
    pub(super) async fn reload(
        &mut self,
        config: Result<Box<Config>, ConfigError>,
    ) -> Result<Vec<String>, ReloadError> {
        let outcome = match config {
            Ok(config) => self.take_over(*config).await,
            Err(error) => Err(ReloadError::Configuration(error)),
        };
        match &outcome {
            Ok(changes) => {
                let message = match changes.len() {
                    0 => "the configuration was read again: nothing has changed".to_owned(),
                    _ => format!("the configuration was read again: {}", changes.join("; ")),
                };
                info!("{message}");
                let event = Reload::ConfigurationReloaded { changes };
                self.log.publish(Severity::Info, message, &event);
            }
            Err(refused) => {
                let message = format!("reload: {refused}");
                error!("{message}");
                let event = Reload::ReloadRefused { error: &message };
                self.log.publish(Severity::Warn, message.clone(), &event);
            }
        }
        outcome
    }

    async fn take_over(&mut self, file: Config) -> Result<Vec<String>, ReloadError> {
        let config = self.joined.added_to(&file);
        let mut changes = Changes::between(&self.config, &config);
        changes.refused.extend(self.datapath.refuses(&config));
        if !changes.refused.is_empty() {
            return Err(ReloadError::Refused(changes.refused));
        }
        // Whatever may fail comes first and changes nothing by failing.
        let numbers = self.datapath.numbers().map_err(ReloadError::RunTime)?;
        let log = self
            .log
            .elsewhere(config.manager.event_log.as_deref())
            .map_err(ReloadError::RunTime)?;
        self.reception
            .reload(&config)
            .map_err(ReloadError::RunTime)?;
        self.log = log;
        self.joined.retain_workers_of(&config);
        self.joined_file.keep(self.joined.clone());
        self.reception.expect(&self.joined);
        self.arrange(config, &numbers).await;
        self.file = file;
        Ok(changes.accepted)
    }

    /// Brings core and datapath in line with a configuration, which must differ from the one in force
    /// only in what can change while a manager runs.
    pub(super) async fn arrange(&mut self, config: Config, numbers: &Pinned) {
        let settings = config.settings(numbers);
        let routes = ways(&config).await;
        self.datapath.expect(&settings);
        // A new worker may be chosen at its first heartbeat, or at once if it has merely moved.
        match routes {
            Ok(routes) => self.look_around(&routes),
            Err(error) => warn!("{error:#}; the ways to new workers are looked up later"),
        }
        self.surveyor.look_at(self.datapath.addresses());
        self.core.reconfigure(settings.clone(), Instant::now());
        self.look_at_links();
        self.carry_out();
        if let Err(error) = self.datapath.open(&settings) {
            self.map_write_failed(&error);
        }
        self.settings = settings;
        self.config = config;
    }
}

/// Looks up the ways to the workers of a configuration that is not in force yet.
async fn ways(config: &Config) -> anyhow::Result<Routes> {
    let workers = config.services.iter().flat_map(|it| &it.workers);
    let addresses = workers.map(|worker| worker.address.ip()).collect();
    let mut netlink = Netlink::connect()?;
    timeout(PATIENCE, netlink.routes(&addresses))
        .await
        .context("the kernel does not answer about routes")?
}
