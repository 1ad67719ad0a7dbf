//! The agent on each worker: says how the worker is, to every manager.

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
pub use check::{Check, CheckTarget, parse_status};
pub use manager::{PORT, with_port};
pub use memory::{MemorySources, memory_now};

use announcement::PauseRequest;
use connection_queries::ConnectionQueries;
use manager::{FollowUp, ManagerPeer, ReceivedReply, Reply};
use memory::Sensors;
use suspension::Suspension;

/// How often the agent says that it leaves, and how far apart: a lost datagram or four do no harm.
const LEAVING_COUNT: u32 = 5;
const LEAVING_INTERVAL: Duration = Duration::from_millis(20);

/// How often it is looked whether the machine slept, or a manager fell silent.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the agent announces a pause until all managers have confirmed it, and how far apart.
const MAX_ANNOUNCEMENTS: u32 = 40;
const ANNOUNCEMENT_INTERVAL: Duration = Duration::from_millis(50);

/// How long a boot id lasts at least: a manager remembers a few dozen, and none may be forgotten while
/// what was signed under it still counts as fresh.
const MIN_BOOT_LIFETIME: Duration = Duration::from_secs(2);

/// The settings of an agent.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Addresses or names, with or without a port.
    pub managers: Vec<String>,
    pub name: String,
    pub interval: Duration,
    pub sources: MemorySources,
    /// Whether and how the worker's own service is checked.
    pub check: Option<Check>,
    /// The settings of the DSR translator, if the worker has one.
    pub dsr: Option<dsr::DsrSettings>,
    /// With which heartbeats are signed.
    pub key: Option<Key>,
    /// Do not print each heartbeat.
    pub quiet: bool,
}

/// Sends heartbeats until SIGTERM or SIGINT, then says that the worker leaves.
///
/// A manager that cannot be reached, or whose name cannot be resolved, is tried again at each
/// heartbeat; it holds up no other.
///
/// # Errors
///
/// Says which setting is wrong, or why no socket can be opened or signal be caught.
pub async fn run(settings: AgentSettings) -> Result<()> {
    check_name(&settings.name).map_err(|problem| {
        anyhow::anyhow!("--name {:?} cannot name a worker: {problem}", settings.name)
    })?;
    let mut stop = StopSignal::listen()?;
    let (mut agent, mut answers) = Agent::new(settings).await?;
    let mut healthy = match agent.settings.check.clone() {
        Some(check) => {
            let (publish, healthy) = watch::channel(None);
            tokio::spawn(check.watch(publish));
            healthy
        }
        None => watch::channel(Some(true)).1,
    };
    agent.log_start();
    // No heartbeat before the first result of the check.
    if healthy.borrow().is_none() {
        tokio::select! {
            changed = healthy.changed() => changed.context("ask the service")?,
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
        agent.healthy = healthy.borrow_and_update().unwrap_or(false);
        tokio::select! {
            _ = ticks.tick() => agent.send_all(WorkerState::Ready),
            Ok(()) = healthy.changed() => {
                agent.healthy = healthy.borrow_and_update().unwrap_or(false);
                agent.send_all(WorkerState::Ready);
            }
            Some(answer) = answers.recv() => agent.handle_reply(&answer, WorkerState::Ready),
            Some(request) = pause_requests.recv() => agent.announce_pause(request, &mut answers).await,
            index = address_changed(&mut agent.managers) => agent.send(WorkerState::Ready, &[index]),
            _ = checks.tick() => {
                agent.check_managers();
                if agent.reconcile_dsr().await {
                    agent.send_all(WorkerState::Ready);
                }
                if let Some(slept) = suspension.detect() {
                    info!("the machine slept for {slept:.1?}");
                    agent.managers.iter().for_each(ManagerPeer::refresh_address);
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
                Some(answer) = answers.recv() => agent.handle_reply(&answer, WorkerState::Leaving),
            }
        }
    }
    agent.end()
}

/// Waits until some manager's name means another address; returns the manager's place.
async fn address_changed(managers: &mut [ManagerPeer]) -> usize {
    let all = managers
        .iter_mut()
        .map(|manager| Box::pin(manager.address_changed()));
    let ((), index, _) = futures_util::future::select_all(all).await;
    index
}

fn ticker(period: Duration) -> Interval {
    let mut ticks = interval(period);
    // After a suspension one heartbeat is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

fn random_boot_id() -> Result<BootId> {
    Ok(BootId(getrandom::u64().context("draw a boot id")?))
}

/// The signals that ask an agent to end.
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
    sensors: Sensors,
    key: Option<Key>,
    managers: Vec<ManagerPeer>,
    dsr: Option<DsrTranslator>,
    questions: ConnectionQueries,
    boot: BootId,
    boot_drawn: Instant,
    seq: u64,
    healthy: bool,
    /// For how long the worker will be silent, while that is announced.
    pause: Option<Duration>,
    /// The memory figures that were read last, and when.
    memory: Option<(MemoryReport, Instant)>,
    /// Whether the last heartbeat could not be made, so that this is logged once.
    failing: bool,
}

impl Agent {
    async fn new(settings: AgentSettings) -> Result<(Self, mpsc::Receiver<ReceivedReply>)> {
        let sensors = Sensors::open(settings.sources.clone())?;
        let key = settings.key.clone();
        let (answers, answered) = mpsc::channel(64);
        let mut managers = Vec::new();
        for (index, name) in settings.managers.iter().enumerate() {
            managers.push(ManagerPeer::new(name, index, key.as_ref(), answers.clone()).await?);
        }
        let dsr = match settings.dsr.clone() {
            Some(settings) => Some(DsrTranslator::start(settings).await?),
            None => None,
        };
        let agent = Self {
            settings,
            sensors,
            key,
            managers,
            dsr,
            questions: ConnectionQueries::new(Instant::now()),
            boot: random_boot_id()?,
            boot_drawn: Instant::now(),
            seq: 0,
            healthy: true,
            pause: None,
            memory: None,
            failing: false,
        };
        Ok((agent, answered))
    }

    /// Ends with the worker's DSR translator, if it has one.
    fn end(self) -> Result<()> {
        self.dsr.map_or(Ok(()), DsrTranslator::shut_down)
    }

    fn log_start(&self) {
        let managers: Vec<&str> = self.managers.iter().map(ManagerPeer::name).collect();
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
                    warn!("no heartbeat is sent, trying on: {error:#}");
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

    /// Reads the memory figures; repeats the last ones, marked as stale, where they cannot be read. The
    /// worker is no less alive for it.
    fn memory(&mut self) -> Result<MemoryReport> {
        let now = Instant::now();
        match (self.sensors.memory(), self.memory) {
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

    /// Handles a manager's datagram; a challenge is answered at once.
    fn handle_reply(&mut self, answer: &ReceivedReply, state: WorkerState) {
        let manager = &mut self.managers[answer.manager];
        match &answer.word {
            Reply::Acknowledgement(acknowledgement) => {
                match manager.handle_acknowledgement(*acknowledgement, answer.at, self.boot) {
                    FollowUp::Nothing => {}
                    FollowUp::Heartbeat => self.send(state, &[answer.manager]),
                    FollowUp::NewBoot => self.start_new_boot(state, answer.manager),
                }
            }
            Reply::Pong(pong) => {
                manager.handle_pong(*pong, &self.settings.name, answer.at, self.boot);
            }
            Reply::ConnectionQuery(Ok(question)) => self.reply_to(question, answer),
            Reply::ConnectionQuery(Err(refusal)) => {
                self.questions.refuse(refusal.name(), refusal, answer.at);
            }
        }
    }

    /// Answers a question of a manager. Without a DSR translator, the worker has no such connections.
    fn reply_to(&mut self, question: &ConnectionQuery, received: &ReceivedReply) {
        let Some(dsr) = &self.dsr else { return };
        let sent = Sequence {
            boot: self.boot,
            number: self.seq,
        };
        let key = self.key.as_ref();
        let answer = self
            .questions
            .reply_to(question, sent, dsr, key, received.at);
        if let Some(datagram) = answer {
            self.managers[received.manager].send_other(&datagram);
        }
    }

    /// Announces a pause in signed heartbeats until every manager has confirmed one.
    async fn announce_pause(
        &mut self,
        request: PauseRequest,
        answers: &mut mpsc::Receiver<ReceivedReply>,
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
                let unconfirmed = self.repeat_until_confirmed(answers).await;
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
        // A hook that was ended does not wait for it.
        _ = request.reply.send(outcome);
    }

    /// Returns the managers that have not confirmed what was sent from now on.
    async fn repeat_until_confirmed(
        &mut self,
        answers: &mut mpsc::Receiver<ReceivedReply>,
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
                    Some(answer) = answers.recv() => self.handle_reply(&answer, WorkerState::Ready),
                }
            }
            if missing(self).is_empty() {
                break;
            }
        }
        missing(self)
    }

    /// Continues under a new boot id. Sequence numbers continue, so that no late answer matches a new heartbeat.
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
                     going on with boot {boot}",
                    self.managers[manager].name()
                );
                self.send(state, &[manager]);
            }
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Returns whether the DSR translator translates other services than before: the managers must know at once.
    async fn reconcile_dsr(&mut self) -> bool {
        let Some(dsr) = &mut self.dsr else {
            return false;
        };
        let before = dsr.translated_services();
        dsr.reconcile().await;
        dsr.translated_services() != before
    }

    /// Says which managers are silent. Unsigned heartbeats are not acknowledged, so that without a key
    /// each is asked whether it is there.
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
            sequence: Sequence {
                boot: self.boot,
                number: self.seq,
            },
        };
        match ping.encode(None) {
            Ok(datagram) => self.managers.iter().for_each(|it| it.send_other(&datagram)),
            Err(refusal) => warn!("ask the managers: {refusal}"),
        }
    }
}
