//! The manager: the loop between the world and the decision core.
//!
//! One task owns core and datapath. Heartbeats and deadlines go in, commands come out and are
//! written to the maps at once; whoever asks for the status gets a copy and bothers nobody.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::{
    net::UdpSocket,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, error, info, warn};

use crate::{
    config::Config,
    control::{Counters, Question, Server},
    core::{Core, Event, Report, Severity},
    datapath::{self, Datapath, Netlink},
    event_log::EventLog,
    heartbeat::{self, Decoded},
    status::{Decided, Heartbeats, Interface},
};

/// How often the ways to the workers are looked up again.
const ROUTE_INTERVAL: Duration = Duration::from_secs(2);

/// How often a worker's heartbeats are mentioned; each single one is at level debug.
const MENTION_INTERVAL: Duration = Duration::from_secs(1);

/// How often a reason of refusal is mentioned.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// Datagrams taken from the socket before deadlines and questions get their turn.
const BATCH: usize = 256;

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
    let socket = bind(config.manager.heartbeat_listen).await?;
    let netlink = Netlink::connect()?;
    let mut interfaces = Vec::new();
    for name in &config.manager.interfaces {
        interfaces.push(netlink.interface(name).await?);
    }
    let prepared = datapath::prepare(&config)?;
    let server = Server::bind(&config.manager.control_socket).await?;
    let log = EventLog::open(config.manager.event_log.as_deref())?;
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
        legacy: config.manager.legacy_heartbeats,
        interfaces: datapath.attachments().iter().map(Interface::from).collect(),
        core,
        datapath,
        log,
        started: Instant::now(),
        heartbeats: Heartbeats::default(),
        mentions: BTreeMap::new(),
        refusals: BTreeMap::new(),
    };
    manager.log.append(&Lifecycle::ManagerStarted {
        version: env!("CARGO_PKG_VERSION"),
        interfaces: &manager.interfaces,
    });
    manager.carry_out();
    manager.datapath.open(&settings)?;
    announce(&config);

    let (questions, mut asked) = mpsc::channel(16);
    let counters = Counters {
        pin_path: config.manager.pin_path.clone(),
        idle: config.limits.established_idle,
    };
    let serving = server.serve(questions, counters);
    tokio::pin!(serving);
    let mut route_ticks = interval(ROUTE_INTERVAL);
    route_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let deadline = manager.core.poll_timeout();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            received = socket.readable() => {
                received.context("wait for heartbeats")?;
                manager.receive(&socket);
            }
            // The proof that a worker lives may have come in this very moment.
            () = until(deadline) => manager.receive(&socket),
            Some(question) = asked.recv() => manager.answer(question),
            _ = route_ticks.tick() => {
                if let Err(error) = manager.datapath.refresh_routes(&netlink).await {
                    error!("{error:#}");
                }
            }
            () = &mut serving => {}
        }
        // In every turn, so that a flood of datagrams cannot hold up a deadline.
        manager.core.handle_timeout(Instant::now());
        manager.carry_out();
    }
    manager.log.append(&Lifecycle::ManagerStopped);
    info!(
        "stopped; the datapath stays and carries on with the last selection (memlb unload removes it)"
    );
    Ok(())
}

async fn bind(address: std::net::SocketAddrV4) -> Result<UdpSocket> {
    UdpSocket::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                ": the port is in use, perhaps by another manager; stop it, or choose another \
                 address with --heartbeat-listen"
            }
            io::ErrorKind::AddrNotAvailable => {
                ": this machine does not have that address; see --heartbeat-listen"
            }
            _ => "",
        };
        anyhow::anyhow!("receive heartbeats at UDP {address}: {error}{hint}")
    })
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn announce(config: &Config) {
    warn!(
        "heartbeats are not authenticated: whoever can reach UDP {} can steer the balancer; keep it \
         to a trusted network",
        config.manager.heartbeat_listen
    );
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
    /// What a worker said; one line a second and worker.
    Heartbeat {
        worker: &'a str,
        from: SocketAddr,
        memory_available_bytes: u64,
        memory_total_bytes: Option<u64>,
        /// Heartbeats of this worker since the line before.
        heartbeats: u64,
    },
    HeartbeatRefused {
        reason: &'a str,
        from: SocketAddr,
        detail: &'a str,
        /// Datagrams refused for this reason since the line before.
        datagrams: u64,
    },
    MapWriteFailed {
        error: &'a str,
    },
}

/// How often something happened since it was last mentioned.
struct Mention {
    at: Instant,
    unmentioned: u64,
}

impl Mention {
    /// Counts one more; says how many are to be mentioned now, if it is time.
    fn due(&mut self, now: Instant, interval: Duration) -> Option<u64> {
        self.unmentioned += 1;
        let due = now.saturating_duration_since(self.at) >= interval;
        due.then(|| {
            self.at = now;
            std::mem::take(&mut self.unmentioned)
        })
    }
}

struct Manager {
    core: Core,
    datapath: Datapath,
    log: EventLog,
    legacy: bool,
    interfaces: Vec<Interface>,
    started: Instant,
    heartbeats: Heartbeats,
    mentions: BTreeMap<Arc<str>, Mention>,
    refusals: BTreeMap<&'static str, Mention>,
}

impl Manager {
    /// Takes the waiting datagrams, one batch at most.
    fn receive(&mut self, socket: &UdpSocket) {
        let mut buffer = [0; heartbeat::SIZE_LIMIT];
        for _ in 0..BATCH {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => self.hear(&buffer[..length], from, Instant::now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error about something sent earlier, for one.
                Err(error) => debug!("receive a heartbeat: {error}"),
            }
        }
    }

    fn hear(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) {
        let decoded = match heartbeat::decode(datagram, self.legacy) {
            Ok(decoded) => decoded,
            Err(refusal) => {
                return self.refuse(refusal.name(), &refusal.to_string(), from, now);
            }
        };
        let Some(report) = decoded.report() else {
            // The 2018 form's first datagram says nothing; the second is the heartbeat.
            return;
        };
        let outcome = self.core.handle_heartbeat(&report, now);
        match outcome.refusal() {
            Some(reason) => {
                let detail = format!("from worker {}", report.worker);
                self.refuse(reason, &detail, from, now);
            }
            None => {
                self.heartbeats.accepted += 1;
                self.mention(&decoded, &report, from, now);
            }
        }
    }

    fn mention(&mut self, decoded: &Decoded, report: &Report, from: SocketAddr, now: Instant) {
        debug!("received from {from}: {decoded:?}");
        let mention = self
            .mentions
            .entry(report.worker.as_str().into())
            .or_insert_with(|| Mention {
                at: now - MENTION_INTERVAL,
                unmentioned: 0,
            });
        let Some(heartbeats) = mention.due(now, MENTION_INTERVAL) else {
            return;
        };
        let memory = report.memory;
        info!(
            "received {}: {} available ({heartbeats} heartbeats since the last line, from {from})",
            report.worker,
            crate::core::Bytes(memory.available_bytes),
        );
        self.log.append(&Lifecycle::Heartbeat {
            worker: &report.worker,
            from,
            memory_available_bytes: memory.available_bytes,
            memory_total_bytes: memory.total_bytes,
            heartbeats,
        });
    }

    fn refuse(&mut self, reason: &'static str, detail: &str, from: SocketAddr, now: Instant) {
        *self
            .heartbeats
            .refused
            .entry(reason.to_owned())
            .or_default() += 1;
        let mention = self.refusals.entry(reason).or_insert_with(|| Mention {
            at: now - REFUSAL_INTERVAL,
            unmentioned: 0,
        });
        let Some(datagrams) = mention.due(now, REFUSAL_INTERVAL) else {
            return;
        };
        warn!("refused {datagrams} datagrams ({reason}), the last from {from}: {detail}");
        self.log.append(&Lifecycle::HeartbeatRefused {
            reason,
            from,
            detail,
            datagrams,
        });
    }

    /// Carries out what the core wants written, and tells what it saw.
    fn carry_out(&mut self) {
        while let Some(command) = self.core.poll_command() {
            if let Err(error) = self.datapath.apply(command) {
                let error = format!("{error:#}");
                error!("{error}");
                self.log
                    .append(&Lifecycle::MapWriteFailed { error: &error });
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
        self.log.append(event);
    }

    fn answer(&self, question: Question) {
        let now = Instant::now();
        let decided = Decided {
            uptime_ms: u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX),
            interfaces: self.interfaces.clone(),
            services: self.core.snapshot(now).services,
            heartbeats: self.heartbeats.clone(),
        };
        if question.send(decided).is_err() {
            debug!("who asked for the status has gone");
        }
    }
}
