//! The agent on each worker: reports memory and health of the worker to every manager.

mod announcement;
mod cgroup;
mod check;
mod connection_queries;
mod lookup;
mod manager;
mod memory;
mod suspension;

use std::time::Duration;

use anyhow::{Context, Result};
use lb_core::{BootId, Sequence, WorkerState, milliseconds};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};
use tracing::{info, warn};

use crate::{
    datapath::dsr::{self, DsrTranslator},
    heartbeat::{ConnectionQuery, Heartbeat, MemoryReport, Ping, check_name, check_pause},
    keys::Key,
    systemd::{self, Watchdog},
};
pub use announcement::announce_pause;
pub use check::{CheckTarget, HealthCheck, parse_status};
pub use lookup::preferred_address;
pub use manager::{PORT, with_port};
pub use memory::{MemorySources, memory_now};

use announcement::PauseRequest;
use connection_queries::ConnectionQueries;
use manager::{FollowUp, ManagerDatagram, ManagerMessage, RemoteManager};
use memory::MemoryReader;
use suspension::Suspension;

/// The heartbeats that announce the end of the agent, so that four of them may be lost.
const LEAVING_COUNT: u32 = 5;

/// The time between these heartbeats.
const LEAVING_INTERVAL: Duration = Duration::from_millis(20);

/// How often the agent checks whether the machine was suspended, and whether a manager is silent.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The most heartbeats that announce a pause until all managers have confirmed it.
const MAX_ANNOUNCEMENTS: u32 = 40;

/// The time between these heartbeats.
const ANNOUNCEMENT_INTERVAL: Duration = Duration::from_millis(50);

/// The least time between two boot ids. A manager remembers 64 boot ids of a worker, and must not forget one while a
/// heartbeat signed under it counts as fresh.
const MIN_BOOT_LIFETIME: Duration = Duration::from_secs(2);

/// The settings of an agent.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Addresses or names of managers, with or without a port.
    pub managers: Vec<String>,
    pub name: String,
    pub interval: Duration,
    pub sources: MemorySources,
    /// How the agent checks the worker's server; `None` if it does not.
    pub check: Option<HealthCheck>,
    /// The settings of the DSR translator, if the worker has one.
    pub dsr: Option<dsr::DsrSettings>,
    /// The key that signs heartbeats.
    pub key: Option<Key>,
    /// Whether the agent logs no heartbeats.
    pub quiet: bool,
}

/// Sends heartbeats until SIGTERM or SIGINT, then announces that the worker leaves.
///
/// It tries a manager that cannot be reached, or whose name cannot be resolved, again at each heartbeat. Other managers
/// do not wait for that.
///
/// # Errors
///
/// Says which setting is wrong, or why a socket cannot be opened or a signal cannot be caught.
pub async fn run(settings: AgentSettings) -> Result<()> {
    check_name(&settings.name).map_err(|problem| {
        anyhow::anyhow!("--name {:?} cannot name a worker: {problem}", settings.name)
    })?;
    let mut stop = StopSignal::listen()?;
    let (mut agent, mut received) = Agent::new(settings).await?;
    let mut healthy = match agent.settings.check.clone() {
        Some(check) => {
            let (publish, healthy) = watch::channel(None);
            tokio::spawn(check.run_periodically(publish));
            healthy
        }
        None => watch::channel(Some(true)).1,
    };
    agent.log_start();
    // No heartbeat before the first result of the check.
    if healthy.borrow().is_none() {
        tokio::select! {
            changed = healthy.changed() => changed.context("check the service")?,
            () = stop.wait() => return agent.end(),
        }
    }
    let mut pause_requests = announcement::listen(&agent.settings.name);
    let mut ticks = ticker(agent.settings.interval);
    let mut checks = ticker(CHECK_INTERVAL);
    let mut suspension = Suspension::new();
    let mut watchdog = Watchdog::start();
    systemd::ready();
    loop {
        agent.healthy = healthy.borrow().unwrap_or(false);
        tokio::select! {
            _ = ticks.tick() => agent.send_all(WorkerState::Ready),
            Ok(()) = healthy.changed() => {
                agent.healthy = healthy.borrow_and_update().unwrap_or(false);
                agent.send_all(WorkerState::Ready);
            }
            Some(datagram) = received.recv() => agent.handle_datagram(&datagram, WorkerState::Ready),
            Some(request) = pause_requests.recv() => agent.announce_pause(request, &mut received).await,
            index = address_changed(&mut agent.managers) => agent.send(WorkerState::Ready, &[index]),
            _ = checks.tick() => {
                agent.check_managers();
                if agent.reconcile_dsr().await {
                    agent.send_all(WorkerState::Ready);
                }
                if let Some(suspended) = suspension.detect() {
                    info!("the machine was suspended for {suspended:.1?}");
                    agent.managers.iter().for_each(RemoteManager::refresh_address);
                    agent.send_all(WorkerState::Ready);
                }
            }
            () = watchdog.due() => watchdog.notify(),
            () = stop.wait() => break,
        }
    }
    systemd::stopping();
    info!("{} is leaving", agent.settings.name);
    for _ in 0..LEAVING_COUNT {
        agent.send_all(WorkerState::Leaving);
        let next = Instant::now() + LEAVING_INTERVAL;
        loop {
            tokio::select! {
                () = sleep_until(next) => break,
                Some(datagram) = received.recv() => agent.handle_datagram(&datagram, WorkerState::Leaving),
            }
        }
    }
    agent.end()
}

/// Waits until the name of a manager resolves to another address; returns the index of the manager.
async fn address_changed(managers: &mut [RemoteManager]) -> usize {
    let all = managers
        .iter_mut()
        .map(|manager| Box::pin(manager.address_changed()));
    let ((), index, _) = futures_util::future::select_all(all).await;
    index
}

fn ticker(period: Duration) -> Interval {
    let mut ticks = interval(period);
    // After a suspension, one heartbeat is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

fn random_boot_id() -> Result<BootId> {
    Ok(BootId(getrandom::u64().context("draw a boot id")?))
}

/// The signals that end an agent.
struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    fn listen() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("catch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("catch SIGINT")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

struct Agent {
    settings: AgentSettings,
    memory_reader: MemoryReader,
    key: Option<Key>,
    managers: Vec<RemoteManager>,
    dsr: Option<DsrTranslator>,
    queries: ConnectionQueries,
    boot: BootId,
    /// When the boot id was drawn.
    boot_drawn: Instant,
    /// The number of the last heartbeat.
    seq: u64,
    healthy: bool,
    /// The length of a pause, while the agent announces it.
    pause: Option<Duration>,
    /// The last memory figures, and when they were read.
    memory: Option<(MemoryReport, Instant)>,
    /// Whether the last heartbeat failed, so that this is logged once.
    failing: bool,
}

impl Agent {
    async fn new(settings: AgentSettings) -> Result<(Self, mpsc::Receiver<ManagerDatagram>)> {
        let memory_reader = MemoryReader::open(settings.sources.clone())?;
        let key = settings.key.clone();
        let (sender, received) = mpsc::channel(64);
        let mut managers = Vec::new();
        for (index, name) in settings.managers.iter().enumerate() {
            managers.push(RemoteManager::new(name, index, key.as_ref(), sender.clone()).await?);
        }
        let dsr = match settings.dsr.clone() {
            Some(settings) => Some(DsrTranslator::start(settings).await?),
            None => None,
        };
        let agent = Self {
            settings,
            memory_reader,
            key,
            managers,
            dsr,
            queries: ConnectionQueries::new(Instant::now()),
            boot: random_boot_id()?,
            boot_drawn: Instant::now(),
            seq: 0,
            healthy: true,
            pause: None,
            memory: None,
            failing: false,
        };
        Ok((agent, received))
    }

    /// Shuts down the DSR translator, if there is one.
    fn end(self) -> Result<()> {
        self.dsr.map_or(Ok(()), DsrTranslator::shut_down)
    }

    fn log_start(&self) {
        let managers: Vec<&str> = self.managers.iter().map(RemoteManager::name).collect();
        info!(
            "agent of {} sends a heartbeat every {} to {} (boot {}, {})",
            self.settings.name,
            humantime::format_duration(self.settings.interval),
            managers.join(", "),
            self.boot,
            match &self.key {
                Some(key) => format!("signed with key {}", key.id()),
                None => "not signed".to_owned(),
            }
        );
    }

    fn send_all(&mut self, state: WorkerState) {
        let all: Vec<usize> = (0..self.managers.len()).collect();
        self.send(state, &all);
    }

    /// Reads the worker's state and sends it to the managers with these indices.
    fn send(&mut self, state: WorkerState, indices: &[usize]) {
        match self.try_send(state, indices) {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !self.failing {
                    warn!("no heartbeat can be sent, trying again: {error:#}");
                }
                self.failing = true;
            }
        }
    }

    fn try_send(&mut self, state: WorkerState, indices: &[usize]) -> Result<()> {
        let memory = self.memory()?;
        self.seq += 1;
        let mut heartbeat = Heartbeat {
            worker: self.settings.name.clone(),
            boot: self.boot,
            seq: self.seq,
            interval: self.settings.interval,
            memory,
            state,
            healthy: self.healthy,
            checked: self.settings.check.is_some(),
            translates: self
                .dsr
                .iter()
                .flat_map(DsrTranslator::translated_services)
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pause: self.pause,
            nonce: None,
        };
        let mut was_sent = false;
        for &index in indices {
            let manager = &mut self.managers[index];
            let datagram = match &self.key {
                Some(key) => {
                    heartbeat.nonce = manager.nonce;
                    heartbeat.encode_signed(key)?
                }
                None => heartbeat.encode()?,
            };
            was_sent |= manager.send(heartbeat.seq, &datagram);
        }
        if was_sent && !self.settings.quiet {
            info!("sent {heartbeat}{}", self.round_trips(indices));
        }
        Ok(())
    }

    /// Reads the memory figures. If they cannot be read, it repeats the last ones, marked as stale: the worker is alive
    /// all the same.
    fn memory(&mut self) -> Result<MemoryReport> {
        let now = Instant::now();
        match (self.memory_reader.read(), self.memory) {
            (Ok(memory), before) => {
                if before.is_some_and(|(before, _)| before.stale_ms.is_some()) {
                    info!("memory figures can be read again");
                }
                self.memory = Some((memory, now));
                Ok(memory)
            }
            (Err(error), None) => Err(error),
            (Err(error), Some((mut memory, read))) => {
                if memory.stale_ms.is_none() {
                    warn!("the last memory figures are repeated, marked as stale: {error:#}");
                }
                memory.stale_ms = Some(milliseconds(now.saturating_duration_since(read)));
                self.memory = Some((memory, read));
                Ok(memory)
            }
        }
    }

    fn round_trips(&self, indices: &[usize]) -> String {
        let times: Vec<String> = indices
            .iter()
            .filter_map(|&index| self.managers[index].round_trip)
            .map(|time| format!("{:.1} ms", time.as_secs_f64() * 1000.0))
            .collect();
        if times.is_empty() {
            return String::new();
        }
        format!(", round trip {}", times.join(", "))
    }

    /// Handles a datagram of a manager. It replies to a challenge at once.
    fn handle_datagram(&mut self, datagram: &ManagerDatagram, state: WorkerState) {
        let ManagerDatagram {
            manager: index,
            content,
            at,
        } = datagram;
        let manager = &mut self.managers[*index];
        match content {
            ManagerMessage::Acknowledgement(acknowledgement) => {
                match manager.handle_acknowledgement(*acknowledgement, *at, self.boot) {
                    FollowUp::Nothing => {}
                    FollowUp::Heartbeat => self.send(state, &[*index]),
                    FollowUp::NewBoot => self.start_new_boot(state, *index),
                }
            }
            ManagerMessage::Pong(pong) => {
                manager.handle_pong(*pong, &self.settings.name, *at, self.boot);
            }
            ManagerMessage::ConnectionQuery(Ok(query)) => self.reply_to(query, *index, *at),
            ManagerMessage::ConnectionQuery(Err(refusal)) => {
                self.queries.refuse(refusal.name(), refusal, *at);
            }
        }
    }

    /// Replies to a connection query. Without a DSR translator, there is no reply.
    fn reply_to(&mut self, query: &ConnectionQuery, manager: usize, at: Instant) {
        let Some(dsr) = &self.dsr else { return };
        let sent = self.last_sequence();
        let reply = (self.queries).reply_to(query, sent, dsr, self.key.as_ref(), at);
        if let Some(datagram) = reply {
            self.managers[manager].send_other(&datagram);
        }
    }

    fn last_sequence(&self) -> Sequence {
        Sequence {
            boot: self.boot,
            number: self.seq,
        }
    }

    /// Announces a pause in signed heartbeats until every manager has confirmed one.
    async fn announce_pause(
        &mut self,
        request: PauseRequest,
        received: &mut mpsc::Receiver<ManagerDatagram>,
    ) {
        let pause = Duration::from_millis(request.for_ms);
        let outcome = match check_pause(pause) {
            _ if self.key.is_none() => Err(format!(
                "it has no key, and only signed heartbeats announce a pause; on the manager: memlb \
                 pause {} --for {}",
                self.settings.name,
                humantime::format_duration(pause)
            )),
            Err(problem) => Err(problem),
            Ok(()) => {
                self.pause = Some(pause);
                let unconfirmed = self.repeat_until_confirmed(received).await;
                self.pause = None;
                match unconfirmed.is_empty() {
                    true => Ok(()),
                    false => Err(format!("not confirmed by {}", unconfirmed.join(", "))),
                }
            }
        };
        match &outcome {
            Ok(()) => info!("announced a pause of {}", humantime::format_duration(pause)),
            Err(problem) => warn!("a pause was not announced: {problem}"),
        }
        // Fails only if the hook has ended.
        _ = request.reply.send(outcome);
    }

    /// Sends heartbeats until all managers have confirmed one; returns the managers that have not.
    async fn repeat_until_confirmed(
        &mut self,
        received: &mut mpsc::Receiver<ManagerDatagram>,
    ) -> Vec<String> {
        let first = self.seq;
        let missing = |agent: &Self| -> Vec<String> {
            let managers = agent.managers.iter().filter(|it| it.confirmed <= first);
            managers.map(|it| it.name().to_owned()).collect()
        };
        for _ in 0..MAX_ANNOUNCEMENTS {
            self.send_all(WorkerState::Ready);
            let next = Instant::now() + ANNOUNCEMENT_INTERVAL;
            loop {
                tokio::select! {
                    () = sleep_until(next) => break,
                    Some(datagram) = received.recv() => self.handle_datagram(&datagram, WorkerState::Ready),
                }
            }
            if missing(self).is_empty() {
                break;
            }
        }
        missing(self)
    }

    /// Continues under a new boot id. Sequence numbers continue, so that no late acknowledgement matches a new
    /// heartbeat.
    fn start_new_boot(&mut self, state: WorkerState, manager: usize) {
        if self.boot_drawn.elapsed() < MIN_BOOT_LIFETIME {
            return;
        }
        self.boot_drawn = Instant::now();
        match random_boot_id() {
            Ok(boot) => {
                self.boot = boot;
                info!(
                    "{} has received higher sequence numbers: this machine was restored from a snapshot; \
                     continuing with boot {boot}",
                    self.managers[manager].name()
                );
                self.send(state, &[manager]);
            }
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Updates the DSR translator; returns whether it translates other services than before.
    async fn reconcile_dsr(&mut self) -> bool {
        let Some(dsr) = &mut self.dsr else {
            return false;
        };
        let before = dsr.translated_services();
        dsr.reconcile().await;
        dsr.translated_services() != before
    }

    /// Logs which managers are silent. Managers do not acknowledge unsigned heartbeats, so that an agent without a key
    /// sends pings.
    fn check_managers(&mut self) {
        let now = Instant::now();
        if self.key.is_none() {
            self.ping_all();
        }
        for manager in &mut self.managers {
            manager.warn_if_silent(self.key.as_ref(), now);
        }
    }

    fn ping_all(&mut self) {
        self.seq += 1;
        let ping = Ping {
            worker: self.settings.name.clone(),
            sequence: self.last_sequence(),
        };
        match ping.encode(None) {
            Ok(datagram) => self.managers.iter().for_each(|it| it.send_other(&datagram)),
            Err(refusal) => warn!("send a ping: {refusal}"),
        }
    }
}
