//! Starts a manager: opens, loads, attaches and adopts everything, or nothing.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Instant};

use anyhow::Result;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    Background, Configuration, Emitter, Inputs, JoinRequests, Manager, ManagerHandle, NatPorts,
    PeerEvents, ReadConfig, Recovery, RouteMonitor, WorkerSources,
    absent_interface::wait_for_interfaces, connection_lookup::ConnectionLookup,
    handle::SharedState, peers, state_file::StateFile, state_files::StateFiles,
};
use crate::{
    addresses,
    config::Config,
    datapath::{self, Adoption, Datapath, Interface, Links, Netlink, Pins},
    deny::DenyList,
    event_log::{self, EventLog},
    event_stream::EventStream,
    handover::TrackFile,
    heartbeat_receiver::HeartbeatReceiver,
    history::{History, now_ms},
    membership::{AbsentWorker, ComposedConfig, ExternalWorkers, Membership},
    metrics::Metrics,
    peer::PeerListener,
    status,
};
use lb_core::{
    AdminAction, AdminOverrides, AdoptedState, AttachedInterface, Core, Event, Mode, counted,
};

/// How many requests, or results, are queued before their senders wait.
const QUEUE: usize = 16;

/// A manager whose configuration and machine are checked. Nothing is attached yet.
pub struct PreparedManager {
    file: Config,
    path: Option<PathBuf>,
    read_config: ReadConfig,
    config: Config,
    receiver: HeartbeatReceiver,
    peers: Option<PeerListener>,
    netlink: Netlink,
    interfaces: Vec<Interface>,
    datapath: datapath::PreparedPins,
    membership: StateFile<Membership>,
    workers: StateFile<ExternalWorkers>,
    absent: BTreeMap<String, Vec<AbsentWorker>>,
}

/// Opens the heartbeat socket and checks interfaces, kernel and pins. `path` is the configuration file, and
/// `read_config` reads it for a reload.
///
/// # Errors
///
/// Says what cannot be opened or used, with the remedy.
pub async fn prepare(
    file: Config,
    path: Option<PathBuf>,
    read_config: ReadConfig,
) -> Result<PreparedManager> {
    let (membership, members) = StateFile::<Membership>::load(
        &file.manager.state_file.with_file_name("joined.json"),
        "the workers that joined by themselves",
        "repair or remove the file; workers whose agents run join again",
    )?;
    let (workers, given) = StateFile::<ExternalWorkers>::load(
        &file.manager.state_file.with_file_name("workers.json"),
        "the workers of sources",
        "correct or remove the file; each source gives its workers again",
    )?;
    let ComposedConfig { config, absent } = given.apply_to(&file, &members);
    let config = members.apply_to(&config);
    let mut netlink = Netlink::connect()?;
    wait_for_interfaces(&mut netlink, &config.manager.interfaces).await?;
    let receiver = HeartbeatReceiver::bind(&config)?;
    let peers = PeerListener::bind(&config)?;
    let interfaces = netlink.interfaces(&config.manager.interfaces).await?;
    warn_of_misplaced_addresses(&config, &interfaces, &netlink.links().await?);
    let datapath = datapath::prepare(&config)?;
    warn_of_other_managers(&config, &interfaces);
    Ok(PreparedManager {
        file,
        path,
        read_config,
        config,
        receiver,
        peers,
        netlink,
        interfaces,
        datapath,
        membership,
        workers,
        absent,
    })
}

impl fmt::Debug for PreparedManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedManager").finish_non_exhaustive()
    }
}

impl PreparedManager {
    /// Loads and attaches the programs, adopts the pinned maps, and opens the services.
    ///
    /// # Errors
    ///
    /// Says what cannot be opened, loaded or attached. No new program stays attached then.
    pub async fn start(mut self) -> Result<(Manager, ManagerHandle)> {
        let config = self.config;
        let event_stream = EventStream::default();
        let log_file = config.manager.event_log.as_deref();
        let log_file = log_file.map(event_log::open).transpose()?;
        let history = History::default();
        let emitter = Emitter {
            event_log: EventLog::start(log_file)?,
            event_stream: event_stream.clone(),
            metrics: Metrics::new(&config)?,
        };
        let state_files = StateFiles::load(&config, self.membership, self.workers)?;
        let adoption = &self.datapath.adoption;
        if !adoption.is_empty() {
            info!(
                "adopting the maps, links and flows pinned at {}",
                config.manager.pin_path.display()
            );
        }
        log_overrides(&state_files.overrides.content(), &config);
        let settings = config.settings(&adoption.pinned);
        let adopted = adopted(adoption, &state_files);
        let mut datapath = Datapath::start(self.datapath, &config, &settings, &self.interfaces)?;
        let addresses = datapath.worker_addresses();
        datapath.apply_routes(&self.netlink.routes(&addresses).await?)?;
        deny(&mut datapath, &state_files.denied.content())?;
        let pin_path = datapath.pin_path().to_owned();
        let (request_sender, requests) = mpsc::channel(QUEUE);
        let (result_sender, results) = mpsc::channel(QUEUE);
        let shared = SharedState {
            pin_path: pin_path.clone(),
            event_stream,
            history: history.clone(),
            metrics: emitter.metrics.clone(),
            track_file: match config.peers.is_empty() {
                true => TrackFile::default(),
                false => TrackFile::restore(&config.manager.track_file),
            },
            peers: (self.peers.as_ref())
                .map(PeerListener::peers)
                .unwrap_or_default(),
        };
        let peer_events = PeerEvents::new(shared.peers.clone());
        let file = self.file.clone();
        let handle = ManagerHandle::new(request_sender, self.read_config, file, shared);
        let replication = peers::start(
            self.peers,
            &config,
            &mut datapath,
            &state_files,
            handle.clone(),
        )?;
        let has_dsr = settings.services.iter().any(|it| it.mode == Mode::Dsr);
        let connection_lookup = ConnectionLookup::open(&mut datapath, has_dsr)?;
        let manager = Manager {
            replication,
            interfaces: datapath
                .attachments()
                .map(status::InterfaceStatus::from)
                .collect(),
            core: Core::resume(settings.clone(), &adopted, Instant::now()),
            recovery: Recovery::new(Pins::open(&pin_path)?),
            datapath,
            receiver: self.receiver,
            membership: state_files.membership.content(),
            sources: WorkerSources::new(state_files.workers.content(), self.absent),
            connection_lookup,
            join_requests: JoinRequests::default(),
            denied: state_files.denied.content(),
            liveness: state_files.liveness.content(),
            ejections: state_files.ejections.content(),
            state_files,
            emitter,
            history,
            route_monitor: RouteMonitor::start(self.netlink, addresses, result_sender.clone()),
            background: Background::new(pin_path, result_sender),
            nat_ports: NatPorts::default(),
            peer_events,
            foreign_selections: Vec::new(),
            started: Instant::now(),
            traffic_read: Instant::now(),
            configuration: Configuration {
                effective: config,
                file: self.file,
                path: self.path,
                settings,
            },
            inputs: Inputs { requests, results },
        };
        Ok((manager.begin_serving()?, handle))
    }

    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Manager {
    /// Writes the first decisions, then opens the services to clients.
    fn begin_serving(mut self) -> Result<Self> {
        let interfaces = self.interfaces.iter().map(|it| AttachedInterface {
            name: it.name.clone(),
            attachment: it.attachment.clone(),
            reason: it.reason.clone(),
        });
        self.emitter.emit(&Event::ManagerStarted {
            version: env!("CARGO_PKG_VERSION"),
            interfaces: interfaces.collect(),
        });
        self.update_links();
        self.apply_outputs();
        self.datapath
            .publish_services(&self.configuration.settings)?;
        let config = &self.configuration.effective;
        self.receiver.log_authentication(config);
        log_services(config);
        Ok(self)
    }
}

/// Returns the state that the core adopts, from the pinned maps and the saved files.
fn adopted(adoption: &Adoption, saved: &StateFiles) -> AdoptedState {
    let (now_ms, overrides) = (now_ms(), saved.overrides.content());
    let pauses = overrides.pauses();
    AdoptedState {
        pauses: pauses
            .map(|(worker, pause)| (worker.to_owned(), pause.pause_left(now_ms)))
            .collect(),
        silent_for: saved.liveness.content().silent_for(),
        ejections: saved.ejections.content().ejections(now_ms),
        overrides,
        ..adoption.adopted.clone()
    }
}

/// Warns of services whose address this machine lacks, or has at an interface without packet programs.
fn warn_of_misplaced_addresses(config: &Config, interfaces: &[Interface], links: &Links) {
    let addresses = match addresses::own() {
        Ok(addresses) => addresses,
        Err(error) => return warn!("{error:#}"),
    };
    let carried = links.carried_by(&interfaces.iter().map(|it| it.index).collect());
    let interfaces: Vec<&str> = interfaces.iter().map(|it| it.name.as_str()).collect();
    for service in &config.services {
        let ip = service.address.ip();
        if addresses.interface_of(ip).is_none() && !config.peers.is_empty() {
            info!(
                "service {}: this machine does not have {ip} now; that is right on a standby",
                service.name
            );
        } else if addresses.interface_of(ip).is_none() {
            let interface = interfaces.first().unwrap_or(&"INTERFACE");
            let (found, remedy) = addresses::absent(&service.name, ip, interface);
            warn!("service {found}: {remedy}");
        }
        if let Some(own) = addresses.elsewhere(ip, &carried) {
            warn!(
                "service {}: {ip} is an address of {own}, which is not among the interfaces ({}): no \
                 program steers packets that arrive there; add --interface {own}",
                service.name,
                interfaces.join(", ")
            );
        }
    }
}

/// Warns of other managers' programs at the same interfaces: two managers would steer each packet twice.
fn warn_of_other_managers(config: &Config, interfaces: &[Interface]) {
    for other in datapath::foreign_programs(&config.manager.pin_path) {
        let is_shared = |it: &Interface| other.interfaces.contains(&it.name);
        if interfaces.iter().any(is_shared) {
            warn!("{other}; to remove them: {}", other.remedy());
        }
    }
}

/// Denies the saved clients, and ends their open connections.
fn deny(datapath: &mut Datapath, denied: &DenyList) -> Result<()> {
    datapath.set_denied(denied.prefixes())?;
    if denied.is_empty() {
        return Ok(());
    }
    info!(
        "still denied: {} of clients",
        counted(denied.len(), "prefix")
    );
    let prefixes: Vec<_> = denied.prefixes().collect();
    datapath::end_connections(datapath.pin_path(), &prefixes)?;
    Ok(())
}

/// Logs the commands in force: an operator who restarts a manager may have forgotten them.
fn log_overrides(overrides: &AdminOverrides, config: &Config) {
    for command in overrides.commands() {
        let worker = &command.worker;
        let is_known = config.workers().any(|it| it.name == *worker);
        let remedy = match command.action {
            _ if is_known => String::new(),
            AdminAction::Pause { .. } => String::new(),
            AdminAction::Weight { .. } => {
                format!(" (no service has {worker}: memlb weight {worker} 100)")
            }
            _ => format!(" (no service has {worker}: memlb undrain {worker})"),
        };
        warn!("still in force: {command}{remedy}");
    }
}

fn log_services(config: &Config) {
    for service in &config.services {
        info!(
            "ready: {} at {} for {}, heartbeats at UDP {}",
            service.name,
            service.endpoint(),
            counted(service.workers.len(), "worker"),
            config.manager.heartbeat_listen
        );
    }
}
