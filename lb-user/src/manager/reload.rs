//! How a running manager takes over a changed configuration: as a whole, or not at all.
//!
//! What is to be read, opened and looked up is prepared aside of the manager's task, which then takes
//! it over in one step: heartbeats never wait for a disk, nor for the kernel's routes.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use lb_core::Severity;
use serde::Serialize;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use tracing::{error, info, warn};

use super::{Instruction, Manager};
use crate::{
    config::{Changes, Config, ConfigError, Pinned},
    control::Reloaded,
    datapath::{Netlink, Routes},
    event_log::{self, LogFile},
    keys::KeyRing,
    reception,
};

/// How long the kernel may take to tell the ways to new workers; without them it goes on.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long the disk may take; then nothing is changed.
const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// Reads and checks the configuration again, from where it came at the start; it may block.
pub type Reread = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Prepares reloads and hands them to the manager's task, one after another.
#[derive(Clone)]
pub struct Reloader {
    reread: Reread,
    instructions: mpsc::Sender<Instruction>,
    /// As it was last taken over; who holds it reloads.
    in_force: Arc<Mutex<Config>>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").finish_non_exhaustive()
    }
}

/// A changed configuration with all that it takes to take it over.
#[derive(Debug)]
pub struct Reload {
    file: Config,
    keys: KeyRing,
    log: Option<LogFile>,
    routes: Routes,
}

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
enum Outcome<'a> {
    ConfigurationReloaded { changes: &'a [String] },
    ReloadRefused { error: &'a str },
}

impl Reloader {
    pub(super) fn new(
        reread: Reread,
        instructions: mpsc::Sender<Instruction>,
        in_force: Config,
    ) -> Self {
        Self {
            reread,
            instructions,
            in_force: Arc::new(Mutex::new(in_force)),
        }
    }

    /// Reads the configuration anew and has it taken over; returns what has changed.
    ///
    /// # Errors
    ///
    /// Says why nothing was changed.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let mut in_force = self.in_force.lock().await;
        let (reread, before) = (self.reread.clone(), in_force.clone());
        let prepared = match aside(move || read(&*reread, &before)).await {
            Ok(Ok((file, keys, log))) => Ok(Box::new(Reload {
                routes: routes_to_workers(&file).await,
                file,
                keys,
                log,
            })),
            Ok(Err(error)) | Err(error) => Err(error),
        };
        let file = prepared.as_ref().ok().map(|it| it.file.clone());
        let (reply, outcome) = oneshot::channel();
        let instruction = Instruction::Reload(prepared, reply);
        let stops = || ReloadError::RunTime(anyhow!("the manager stops"));
        let sent = self.instructions.send(instruction).await;
        sent.ok().ok_or_else(stops)?;
        let reloaded = outcome.await.ok().ok_or_else(stops)??;
        if let Some(file) = file {
            *in_force = file;
        }
        Ok(reloaded)
    }
}

/// Does what may block, and gives up where a disk does not answer.
async fn aside<T: Send + 'static>(
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReloadError> {
    let done = timeout(DISK_PATIENCE, spawn_blocking(task)).await;
    let done = done.context("the disk does not answer");
    done.and_then(|done| done.context("read the configuration"))
        .map_err(ReloadError::RunTime)
}

/// Reads and opens what a reload needs, if the change is one that a reload can make.
fn read(
    reread: &dyn Fn() -> Result<Config, ConfigError>,
    in_force: &Config,
) -> Result<(Config, KeyRing, Option<LogFile>), ReloadError> {
    let file = reread().map_err(ReloadError::Configuration)?;
    let refused = Changes::between(in_force, &file).refused;
    if !refused.is_empty() {
        return Err(ReloadError::Refused(refused));
    }
    let log = file.manager.event_log.as_deref();
    let log = log.map(event_log::open).transpose();
    let log = log.map_err(ReloadError::RunTime)?;
    let keys = reception::read_keys_of(&file).map_err(ReloadError::RunTime)?;
    Ok((file, keys, log))
}

/// SIGHUP has nobody to answer to.
pub(super) fn on_hangup(reloader: Reloader) {
    tokio::spawn(async move {
        // The manager's task has said what came of it.
        _ = reloader.reload().await;
    });
}

impl Manager {
    /// Takes over a configuration that was read anew, and returns what has changed.
    pub(super) fn reload(
        &mut self,
        prepared: Result<Box<Reload>, ReloadError>,
    ) -> Result<Reloaded, ReloadError> {
        let outcome = prepared.and_then(|reload| self.take_over(*reload));
        match &outcome {
            Ok(Reloaded { changes, .. }) => {
                let message = match changes.len() {
                    0 => "the configuration was read again: nothing has changed".to_owned(),
                    _ => format!("the configuration was read again: {}", changes.join("; ")),
                };
                info!("{message}");
                let event = Outcome::ConfigurationReloaded { changes };
                self.log.publish(Severity::Info, message, &event);
            }
            Err(refused) => {
                let message = format!("reload: {refused}");
                error!("{message}");
                let event = Outcome::ReloadRefused { error: &message };
                self.log.publish(Severity::Warn, message.clone(), &event);
            }
        }
        outcome
    }

    fn take_over(&mut self, reload: Reload) -> Result<Reloaded, ReloadError> {
        let Reload {
            file,
            keys,
            log,
            routes,
        } = reload;
        // Others may have joined since it was prepared.
        let config = self.joined.added_to(&file);
        let mut changes = Changes::between(&self.config, &config);
        changes.refused.extend(self.datapath.refuses(&config));
        if !changes.refused.is_empty() {
            return Err(ReloadError::Refused(changes.refused));
        }
        // Whatever may fail comes first and changes nothing by failing.
        let numbers = self.datapath.numbers().map_err(ReloadError::RunTime)?;
        let lacking = numbers.reused_by(&config.settings(&numbers));
        if lacking > 0 {
            return Err(ReloadError::Refused(vec![self.lacks_numbers(lacking)]));
        }
        self.log.move_to(log).map_err(ReloadError::RunTime)?;
        changes
            .accepted
            .extend(self.reception.reload(&config, keys));
        self.joined.retain_workers_of(&config);
        self.joined_file.keep(self.joined.clone());
        self.reception.expect(&self.joined);
        self.arrange(config, &numbers, &routes);
        self.file = file;
        Ok(Reloaded {
            changes: changes.accepted,
            mind: self.reception.unheard(&self.config).into_iter().collect(),
        })
    }

    /// Brings core and datapath in line with a configuration, which must differ from the one in force
    /// only in what can change while a manager runs. `routes` are those to new workers; ones that are
    /// missing there are looked up later.
    pub(super) fn arrange(&mut self, config: Config, numbers: &Pinned, routes: &Routes) {
        let settings = config.settings(numbers);
        self.datapath.expect(&settings, numbers);
        // A new worker may be chosen at its first heartbeat, or at once if it has merely moved.
        self.look_around(routes);
        self.surveyor.look_at(self.datapath.addresses());
        let links = self.datapath.links();
        self.core
            .reconfigure(settings.clone(), &links, Instant::now());
        self.carry_out();
        if let Err(error) = self.datapath.open(&settings) {
            self.map_write_failed(&error);
        }
        self.settings = settings;
        self.config = config;
    }

    fn lacks_numbers(&self, lacking: usize) -> String {
        let (backends, parting) = (self.config.limits.backends, self.datapath.parting());
        format!(
            "limits.backends: of {backends} there is no number left for {lacking} new backends, and              {parting} are kept for removed workers until their last connection has ended\n  to do: \
             reload again when they have ended (memlb flows), or raise limits.backends, for which \
             memlb unload ends all connections"
        )
    }
}

async fn routes_to_workers(config: &Config) -> Routes {
    let workers = config.services.iter().flat_map(|it| &it.workers);
    routes(&workers.map(|worker| worker.address.ip()).collect()).await
}

/// Looks up the ways to workers of a configuration that is not in force yet; none if the kernel does
/// not answer.
pub(super) async fn routes(addresses: &BTreeSet<IpAddr>) -> Routes {
    let found = timeout(PATIENCE, async {
        Netlink::connect()?.routes(addresses).await
    });
    let found = found
        .await
        .context("the kernel does not answer about routes");
    found.flatten().unwrap_or_else(|error| {
        warn!("{error:#}; the ways to new workers are looked up later");
        Routes::new()
    })
}
