//! How a manager comes to be: everything opened, loaded, attached and adopted, or nothing.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use lb_core::{AdminAction, AdminOverrides, Core, Severity};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};

use super::{
    Happening, Instruction, Joined, Kept, Manager, Reloader, Reread, Silences, Surveyor, kept,
};
use crate::{
    addresses,
    config::Config,
    control::{Offices, Question, Server, Tracer},
    datapath::{self, Datapath, Interface, Netlink, Pins},
    deny::DenyList,
    event_log::{self, EventLog},
    feed::Feed,
    history::{History, now_ms},
    http,
    meters::Meters,
    reception::Reception,
    status,
};

/// Through which the world reaches a manager, besides heartbeats.
pub(super) struct Doors {
    pub questions: mpsc::Receiver<Question>,
    pub instructions: mpsc::Receiver<Instruction>,
    pub terminate: Signal,
    pub interrupt: Signal,
    pub hangup: Signal,
    pub server: Server,
    /// Where the control socket's askers turn to.
    pub offices: Offices,
    pub web: Option<http::Running>,
}

/// Opens everything and takes up what an earlier manager has left.
pub(super) async fn open(
    config: Config,
    config_file: Option<PathBuf>,
    reread: Reread,
) -> Result<(Manager, Doors)> {
    let file = config;
    let (joined_file, joined) = Kept::<Joined>::open(
        &file.manager.state_file.with_file_name("joined.json"),
        "the workers that joined by themselves",
        "mend or remove the file; who has an agent running joins again",
    )?;
    let config = joined.added_to(&file);
    let mut reception = Reception::open(&config).await?;
    reception.expect(&joined);
    let mut netlink = Netlink::connect()?;
    let interfaces = netlink.interfaces(&config.manager.interfaces).await?;
    warn_of_strayed_addresses(&config, &interfaces);
    let prepared = datapath::prepare(&config)?;
    warn_of_others(&config, &interfaces);
    let server = Server::bind(&config.manager.control_socket).await?;
    let web = config
        .manager
        .http_listen
        .map(http::Server::bind)
        .transpose()?;
    let feed = Feed::default();
    let history = History::default();
    let log_file = config.manager.event_log.as_deref();
    let log = EventLog::start(log_file.map(event_log::open).transpose()?, feed.clone())?;
    let state_lock = kept::Lock::take(&config.manager.state_file)?;
    let (orders_file, orders) = Kept::open(
        &config.manager.state_file,
        "the operator's orders",
        "mend or remove the file (it says which workers are drained), or name another with \
         --state-file",
    )?;
    let (denied_file, denied) = Kept::<DenyList>::open(
        &config.manager.state_file.with_file_name("denied.json"),
        "the denied clients",
        "mend or remove the file; nobody is denied without it",
    )?;
    let (silences_file, silences) = Kept::<Silences>::open(
        &config.manager.control_socket.with_extension("silences"),
        "the silences of workers",
        "remove the file; silent workers have down_after again to be heard",
    )?;
    let terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("catch SIGHUP")?;

    let settings = config.settings(&prepared.adoption.pinned);
    let mut adopted = prepared.adoption.adopted.clone();
    if !prepared.adoption.is_empty() {
        info!(
            "adopting the maps, links and flows pinned at {}",
            config.manager.pin_path.display()
        );
    }
    recall(&orders, &config);
    let now_ms = now_ms();
    let pauses = orders.pauses();
    adopted.pauses = pauses
        .map(|(worker, pause)| (worker.to_owned(), pause.pause_left(now_ms)))
        .collect();
    adopted.overrides = orders;
    adopted.silences = silences.of_workers();
    let mut datapath = Datapath::start(prepared, &config, &settings, &interfaces)?;
    let addresses = datapath.addresses();
    datapath.take_routes(&netlink.routes(&addresses).await?)?;
    deny(&mut datapath, &denied)?;
    let (instructor, instructions) = mpsc::channel(16);
    let core = Core::resume(settings.clone(), &adopted, Instant::now());
    let (written, denied_written) = (orders_file.written(), denied_file.written());
    let reloader = Reloader::new(reread, instructor.clone(), file.clone());
    let mut manager = Manager {
        interfaces: datapath
            .attachments()
            .map(status::Interface::from)
            .collect(),
        core,
        pins: Pins::hold(datapath.pin_path())?,
        pins_fail: false,
        datapath,
        log,
        history: history.clone(),
        reception,
        admitting: false,
        meters: Meters::new(&config)?,
        orders_file,
        denied,
        denied_file,
        _state_lock: state_lock,
        silences,
        silences_file,
        started: Instant::now(),
        swept: Instant::now(),
        surveyor: Surveyor::start(netlink, addresses, instructor.clone()),
        writes_fail: false,
        nat_ports: super::nat_ports::NatPorts::default(),
        write_failed_now: false,
        settings: settings.clone(),
        config,
        file,
        config_file,
        joined,
        joined_file,
    };
    let started = Happening::ManagerStarted {
        version: env!("CARGO_PKG_VERSION"),
        interfaces: &manager.interfaces,
    };
    let message = "the manager has started".to_owned();
    manager.log.publish(Severity::Info, message, &started);
    manager.look_at_links();
    manager.carry_out();
    manager.datapath.open(&settings)?;
    manager.reception.announce(&manager.config);
    announce(&manager.config);

    let (asker, questions) = mpsc::channel(16);
    let pin_path = manager.config.manager.pin_path.clone();
    let web = web
        .map(|web| {
            let address = web.address();
            let sources = http::Sources {
                asker: http::Asker::new(asker.clone(), pin_path.clone()),
                feed: feed.clone(),
                meters: manager.meters.clone(),
            };
            let running = web.start(sources, &manager.config.manager.http_names)?;
            info!("web page, metrics and API at http://{address}/");
            anyhow::Ok(running)
        })
        .transpose()?;
    let doors = Doors {
        questions,
        instructions,
        terminate,
        interrupt,
        hangup,
        server,
        offices: Offices {
            questions: asker,
            instructions: instructor,
            written,
            denied_written,
            reloader,
            pin_path,
            feed,
            history,
            tracer: Tracer::default(),
        },
        web,
    };
    Ok((manager, doors))
}

/// Says which services' addresses are nowhere here, or at an interface where no packet will be steered.
fn warn_of_strayed_addresses(config: &Config, interfaces: &[Interface]) {
    let addresses = match addresses::own() {
        Ok(addresses) => addresses,
        Err(error) => return warn!("{error:#}"),
    };
    let interfaces: Vec<&str> = interfaces.iter().map(|it| it.name.as_str()).collect();
    for service in &config.services {
        let ip = service.address.ip();
        if addresses.interface_of(ip).is_none() {
            let interface = interfaces.first().unwrap_or(&"INTERFACE");
            let (found, remedy) = addresses::absent(&service.name, ip, interface);
            warn!("service {found}: {remedy}");
        }
        if let Some(own) = addresses.elsewhere(ip, &interfaces) {
            warn!(
                "service {}: {ip} is an address of {own}, which is not among the interfaces ({}): if \
                 clients' packets arrive there, nobody steers them; name it with --interface {own}",
                service.name,
                interfaces.join(", ")
            );
        }
    }
}

/// Says whose programs meet the same packets: two managers would steer them twice.
fn warn_of_others(config: &Config, interfaces: &[Interface]) {
    for other in datapath::others(&config.manager.pin_path) {
        if interfaces
            .iter()
            .any(|it| other.interfaces.contains(&it.name))
        {
            warn!("{other}; to take them out: {}", other.remedy());
        }
    }
}

/// Denies whom an earlier manager was told to deny, and ends what it may have left open.
fn deny(datapath: &mut Datapath, denied: &DenyList) -> Result<()> {
    datapath.set_denied(denied.prefixes())?;
    if denied.is_empty() {
        return Ok(());
    }
    info!("{} prefixes of clients are still denied", denied.len());
    let prefixes: Vec<_> = denied.prefixes().collect();
    datapath::end_connections(datapath.pin_path(), &prefixes)?;
    Ok(())
}

/// Says which orders still stand: who restarts a manager may have forgotten them.
fn recall(orders: &AdminOverrides, config: &Config) {
    for order in orders.commands() {
        let mut workers = config.services.iter().flat_map(|service| &service.workers);
        let is_stray = !workers.any(|worker| worker.name == order.worker);
        let remedy = match order.action {
            _ if !is_stray => String::new(),
            AdminAction::Weight { .. } => {
                format!(" (no service has it: memlb weight {} 100)", order.worker)
            }
            AdminAction::Pause { .. } => String::new(),
            _ => format!(" (no service has it: memlb undrain {})", order.worker),
        };
        warn!("still in force: {order}{remedy}");
    }
}

fn announce(config: &Config) {
    for service in &config.services {
        info!(
            "ready: {} at {} for {} workers, heartbeats at UDP {}",
            service.name,
            service.endpoint(),
            service.workers.len(),
            config.manager.heartbeat_listen
        );
    }
}
