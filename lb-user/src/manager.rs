//! The manager: the loop between the world and the decision core.
//!
//! One task owns core and datapath. Heartbeats and deadlines go in, commands come out and are
//! written to the maps at once; whoever asks for the status gets a copy and bothers nobody.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, error, info, warn};

use crate::{
    config::Config,
    control::{Counters, Question, Server},
    core::{Core, Event, Severity},
    datapath::{self, Datapath, Netlink},
    event_log::EventLog,
    feed::Feed,
    http,
    meters::Meters,
    reception::Reception,
    status::{Decided, Interface},
};

/// How often the ways to the workers are looked up again.
const ROUTE_INTERVAL: Duration = Duration::from_secs(2);

/// Runs a manager until SIGTERM or SIGINT, and leaves the datapath as it is: traffic flows on, and
/// the next manager adopts it.
///
/// # Errors
///
/// Says what could not be opened, loaded or attached; nothing new stays attached then.
pub async fn run(config: Config) -> Result<()> {
    for warning in config.warnings() {
        warn!("{warning}");
    }
    let reception = Reception::open(&config).await?;
    let netlink = Netlink::connect()?;
    let mut interfaces = Vec::new();
    for name in &config.manager.interfaces {
        interfaces.push(netlink.interface(name).await?);
    }
    let prepared = datapath::prepare(&config)?;
    let server = Server::bind(&config.manager.control_socket).await?;
    let web = config
        .manager
        .http_listen
        .map(http::Server::bind)
        .transpose()?;
    let feed = Feed::default();
    let log = EventLog::open(config.manager.event_log.as_deref(), feed.clone())?;
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;

    let settings = config.settings(&prepared.adoption.pinned);
    let adopted = prepared.adoption.adopted.clone();
    if !prepared.adoption.is_empty() {
        info!(
            "adopting the maps, links and flows pinned at {}",
            config.manager.pin_path.display()
        );
    }
    let mut datapath = Datapath::start(prepared, &config, &settings, &interfaces)?;
    datapath.refresh_routes(&netlink).await?;
    let core = Core::resume(settings.clone(), &adopted, Instant::now());
    let mut manager = Manager {
        interfaces: datapath.attachments().iter().map(Interface::from).collect(),
        core,
        datapath,
        log,
        reception,
        meters: Meters::new(&config)?,
        started: Instant::now(),
    };
    let started = Lifecycle::ManagerStarted {
        version: env!("CARGO_PKG_VERSION"),
        interfaces: &manager.interfaces,
    };
    let message = "the manager has started".to_owned();
    manager.log.publish(Severity::Info, message, &started);
    manager.carry_out();
    manager.datapath.open(&settings)?;
    manager.reception.announce(&config);
    announce(&config);

    let (questions, mut asked) = mpsc::channel(16);
    let counters = Counters {
        pin_path: config.manager.pin_path.clone(),
        idle: config.limits.established_idle,
    };
    let _web = web
        .map(|web| {
            let address = web.address();
            let running = web.start(http::Sources {
                asker: http::Asker::new(questions.clone(), counters.clone()),
                feed,
                meters: manager.meters.clone(),
            })?;
            info!("web page, metrics and API at http://{address}/");
            anyhow::Ok(running)
        })
        .transpose()?;
    let serving = server.serve(questions, counters);
    tokio::pin!(serving);
    let mut route_ticks = interval(ROUTE_INTERVAL);
    route_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let deadline = manager.core.poll_timeout();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            received = manager.reception.readable() => {
                received.context("wait for heartbeats")?;
                manager.receive();
            }
            // The proof that a worker lives may have come in this very moment.
            () = until(deadline) => manager.receive(),
            Some(question) = asked.recv() => manager.answer(question),
            due = route_ticks.tick() => {
                manager.meters.lag(due.elapsed());
                if let Err(error) = manager.datapath.refresh_routes(&netlink).await {
                    error!("{error:#}");
                }
            }
            () = &mut serving => {}
        }
        // In every turn, so that a flood of datagrams cannot hold up a deadline.
        let now = Instant::now();
        if let Some(late) = deadline.and_then(|due| now.checked_duration_since(due)) {
            manager.meters.lag(late);
        }
        manager.core.handle_timeout(now);
        manager.carry_out();
    }
    manager.log.append(&Lifecycle::ManagerStopped);
    info!(
        "stopped; the datapath stays and carries on with the last selection (memlb unload removes it)"
    );
    Ok(())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn announce(config: &Config) {
    for service in &config.services {
        info!(
            "ready: {} at {} for {} workers, heartbeats at UDP {}",
            service.name,
            service.address,
            service.workers.len(),
            config.manager.heartbeat_listen
        );
    }
}

/// Events of the manager itself, for the event log.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Lifecycle<'a> {
    ManagerStarted {
        version: &'a str,
        interfaces: &'a [Interface],
    },
    ManagerStopped,
    MapWriteFailed {
        error: &'a str,
    },
}

struct Manager {
    core: Core,
    datapath: Datapath,
    log: EventLog,
    meters: Meters,
    reception: Reception,
    interfaces: Vec<Interface>,
    started: Instant,
}

impl Manager {
    fn receive(&mut self) {
        self.reception.receive(&mut self.core, &mut self.log);
    }

    /// Carries out what the core wants written, and tells what it saw.
    fn carry_out(&mut self) {
        while let Some(command) = self.core.poll_command() {
            if let Err(error) = self.datapath.apply(command) {
                let error = format!("{error:#}");
                error!("{error}");
                self.meters.map_write_failed();
                let failed = Lifecycle::MapWriteFailed { error: &error };
                self.log.publish(Severity::Warn, error.clone(), &failed);
            }
        }
        while let Some(event) = self.core.poll_event() {
            self.tell(&event);
        }
    }

    fn tell(&mut self, event: &Event) {
        match event.severity() {
            Severity::Info => info!("{event}"),
            Severity::Warn => warn!("{event}"),
        }
        self.meters.count(event);
        self.log.publish(event.severity(), event.to_string(), event);
    }

    fn answer(&self, question: Question) {
        let now = Instant::now();
        let decided = Decided {
            uptime_ms: u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX),
            interfaces: self.interfaces.clone(),
            services: self.core.snapshot(now).services,
            heartbeats: self.reception.counts().clone(),
        };
        if question.send(decided).is_err() {
            debug!("who asked for the status has gone");
        }
    }
}
