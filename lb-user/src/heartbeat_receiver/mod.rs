//! Receives heartbeats: reads datagrams, authenticates and parses them, and counts what is refused.
//!
//! The manager's loop passes each [`Received`] heartbeat to the core, and the outcome to
//! [`HeartbeatReceiver::handle_outcome`], which acknowledges, counts and logs it.

mod rate_limit;
mod socket;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::{self, Write},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    heartbeat::{
        self, Authentication, Authenticator, ConnectionQuery, ConnectionReply, Decoded, PingSender,
        Refusal, Refused, Verified,
    },
    keys::{KeyId, KeyRing, read_keys},
    status::{Heartbeats, RefusedDatagram},
};
use lb_core::{Event, HeartbeatOutcome, Report, counted, milliseconds};
use rate_limit::{RateLimiter, RefusalLog, WorkerLog};
use socket::{DatagramPath, HeartbeatSocket};

/// The least time between two log lines about the same reason of refusal.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// How long the status shows a refused datagram.
const RECENT: Duration = Duration::from_secs(60);

/// The least time between two log lines that name workers whose heartbeats are unsigned.
const UNSIGNED_INTERVAL: Duration = Duration::from_secs(30);

/// The reason under which datagrams are counted that did not fit into the socket's queue.
const QUEUE_FULL: &str = "queue_full";

/// Receives and authenticates heartbeats.
#[derive(Debug)]
pub struct HeartbeatReceiver {
    socket: HeartbeatSocket,
    authenticator: Authenticator,
    counts: Heartbeats,
    workers: BTreeMap<Arc<str>, WorkerLog>,
    /// By reason.
    refusals: BTreeMap<&'static str, RefusalLog>,
    unsigned: RateLimiter,
    events: VecDeque<Event>,
}

/// The result of one read of the socket.
#[derive(Debug)]
pub enum Received {
    Heartbeat(Box<ReceivedHeartbeat>),
    Ping(ReceivedPing),
    ConnectionReply(ReceivedConnectionReply),
    /// A datagram that needs no further handling: refused, or without meaning for the core.
    Handled,
    /// No datagram is waiting.
    Nothing,
}

/// An authenticated heartbeat, which the core may still refuse.
#[derive(Debug)]
pub struct ReceivedHeartbeat {
    pub report: Report,
    pub at: Instant,
    path: DatagramPath,
    verified: Verified,
}

/// A ping of an agent.
#[derive(Debug)]
pub struct ReceivedPing {
    path: DatagramPath,
    pong: Vec<u8>,
    /// `None` if the sender may not learn whether a service has its worker.
    sender: Option<PingSender>,
}

/// An agent's reply to a connection query.
#[derive(Debug)]
pub struct ReceivedConnectionReply {
    pub reply: ConnectionReply,
    pub agent: AgentAddress,
}

/// The address of an agent, and the key that signs its heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentAddress {
    path: DatagramPath,
    key: Option<KeyId>,
}

#[cfg(test)]
impl AgentAddress {
    /// An agent without a key that sends from this port.
    pub(crate) fn example(port: u16) -> Self {
        Self {
            path: DatagramPath::example(port),
            key: None,
        }
    }
}

impl ReceivedHeartbeat {
    pub fn address(&self) -> IpAddr {
        self.path.from.ip()
    }

    /// Returns the address for queries to its agent.
    pub fn agent(&self) -> AgentAddress {
        AgentAddress {
            path: self.path,
            key: self.verified.signature.map(|signature| signature.key),
        }
    }

    /// Returns the announced pause of a signed heartbeat. Unsigned announcements do not count: a forged one would keep
    /// new connections from a worker.
    pub fn pause(&self) -> Option<Duration> {
        self.verified.decoded.pause().filter(|_| self.report.signed)
    }
}

impl ReceivedPing {
    pub fn worker(&self) -> Option<&str> {
        self.sender.as_ref().map(|sender| sender.worker.as_str())
    }

    pub fn address(&self) -> IpAddr {
        self.path.from.ip()
    }
}

impl HeartbeatReceiver {
    /// Listens at `manager.heartbeat_listen`, with the keys of the configuration.
    ///
    /// # Errors
    ///
    /// Says why the keys cannot be read or the socket cannot be opened, and what to do.
    pub fn bind(config: &Config) -> Result<Self> {
        let authentication = config.heartbeats.authentication;
        let authenticator = Authenticator::new(
            authentication,
            config.manager.legacy_heartbeats,
            read_keys_of(config)?,
            Instant::now(),
        )?;
        Ok(Self {
            socket: HeartbeatSocket::bind(config.manager.heartbeat_listen)?,
            authenticator,
            counts: Heartbeats {
                authentication: authentication.name().to_owned(),
                ..Heartbeats::default()
            },
            workers: BTreeMap::new(),
            refusals: BTreeMap::new(),
            unsigned: RateLimiter::default(),
            events: VecDeque::new(),
        })
    }

    /// Applies `[heartbeats]`, `legacy_heartbeats` and `keys`; returns the changes of the keys, one
    /// sentence each.
    pub fn reconfigure(&mut self, config: &Config, keys: KeyRing) -> Vec<String> {
        let authentication = config.heartbeats.authentication;
        // Without authentication no keys are read.
        let before = self.authenticator.authentication();
        let changes = match [before, authentication].contains(&Authentication::Off) {
            true => Vec::new(),
            false => self.authenticator.keys().changes(&keys),
        };
        self.authenticator
            .reconfigure(authentication, config.manager.legacy_heartbeats, keys);
        authentication
            .name()
            .clone_into(&mut self.counts.authentication);
        self.counts.unsigned.clear();
        self.log_authentication(config);
        changes
    }

    /// Removes the figures of workers that are no longer configured.
    pub fn retain_workers(&mut self, is_configured: impl Fn(&str) -> bool) {
        self.workers.retain(|worker, _| is_configured(worker));
        let unsigned = &mut self.counts.unsigned;
        unsigned.retain(|worker, _| is_configured(worker));
    }

    /// Returns a warning that names the workers whose heartbeats cannot count, because they have no key.
    pub fn missing_keys(&self, config: &Config) -> Option<String> {
        let names = self.without_key(config)?;
        let is_enforced = self.authenticator.authentication() == Authentication::Enforce;
        is_enforced.then(|| {
            format!("no key for {names}; only signed heartbeats count, so these workers stay down")
        })
    }

    /// Returns the names of the workers that have no key, if there are any.
    fn without_key(&self, config: &Config) -> Option<String> {
        let workers = config.workers().map(|worker| worker.name.as_str());
        let without = self.authenticator.keys().workers_without_key(workers);
        let names: Vec<&str> = without.into_iter().collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Logs which heartbeats count, and warns where unsigned ones do.
    pub fn log_authentication(&self, config: &Config) {
        let listen = config.manager.heartbeat_listen;
        let keys = self.authenticator.keys();
        match self.authenticator.authentication() {
            Authentication::Off => warn!(
                "heartbeats are not authenticated: every host that can reach UDP {listen} can steer \
                 connections; use a trusted network, or give the workers keys (memlb keygen) and set \
                 heartbeats.authentication"
            ),
            Authentication::Permissive => warn!(
                "unsigned heartbeats count (heartbeats.authentication = \"permissive\"): everyone who \
                 can reach UDP {listen} can send heartbeats for workers that do not sign"
            ),
            Authentication::Enforce => info!("only signed heartbeats count"),
        }
        if self.authenticator.authentication() == Authentication::Off {
            return;
        }
        info!(
            "{} read from {}",
            counted(keys.len(), "key"),
            config.heartbeats.keys.display()
        );
        if let Some(names) = self.without_key(config) {
            warn!("no key for {names}: make one with `memlb keygen --name NAME`");
        }
    }

    /// Waits until a datagram may be waiting.
    ///
    /// # Errors
    ///
    /// Returns the error of the socket.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Returns the counters since the start, and the datagrams refused within the last minute.
    pub fn counts(&self, now: Instant) -> Heartbeats {
        let refusals = self.refusals.iter();
        let recent = refusals.filter_map(|(reason, log)| {
            let (at, from) = log.last?;
            let age = now.saturating_duration_since(at);
            let refused = RefusedDatagram {
                age_ms: milliseconds(age),
                from: from.to_string(),
                detail: log.detail.clone(),
            };
            (age <= RECENT).then(|| ((*reason).to_owned(), refused))
        });
        Heartbeats {
            refused_lately: recent.collect(),
            ..self.counts.clone()
        }
    }

    /// Reads one datagram and authenticates it. It counts and logs a refused datagram itself.
    pub fn receive(&mut self) -> Received {
        let mut buffer = [0; heartbeat::SIZE_LIMIT];
        match self.socket.receive(&mut buffer) {
            Ok((length, path)) => self.handle_datagram(&buffer[..length], path, Instant::now()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
            // For example an ICMP error about an earlier acknowledgement.
            Err(error) => {
                debug!("receive a heartbeat: {error}");
                Received::Handled
            }
        }
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Counts datagrams that did not fit into the socket's queue, and warns of them: heartbeats of workers
    /// may be among them.
    pub fn count_overflow(&mut self) {
        let overflowed = self.socket.overflowed();
        if overflowed == 0 {
            return;
        }
        add(&mut self.counts.refused, QUEUE_FULL, overflowed);
        let log = self.refusals.entry(QUEUE_FULL).or_default();
        if log.limiter.due(Instant::now(), REFUSAL_INTERVAL).is_some() {
            warn!(
                "datagrams arrive at the heartbeat port faster than the manager reads them: {} were lost \
                 since the start ({QUEUE_FULL})",
                self.counts.refused[QUEUE_FULL]
            );
        }
    }

    fn handle_datagram(&mut self, datagram: &[u8], path: DatagramPath, now: Instant) -> Received {
        if heartbeat::is_connection_reply(datagram) {
            return match self
                .authenticator
                .verify_connection_reply(datagram, path.from, now)
            {
                Ok((reply, key)) => Received::ConnectionReply(ReceivedConnectionReply {
                    reply,
                    agent: AgentAddress { path, key },
                }),
                Err(refusal) => {
                    self.refuse(refusal.name(), &refusal, path, now);
                    Received::Handled
                }
            };
        }
        let verified = match self.authenticator.verify(datagram, path.from, now) {
            Ok(verified) => verified,
            Err(Refused {
                refusal: Refusal::Ping,
                reply: Some(pong),
                sender,
            }) => {
                self.authenticator.record_refused(path.from, now);
                return Received::Ping(ReceivedPing { path, pong, sender });
            }
            // It is not counted as a refused heartbeat, because no heartbeat is lost.
            Err(Refused { refusal, .. }) if heartbeat::is_ping(datagram) => {
                debug!("no pong to {}: {refusal}", path.from);
                self.authenticator.record_refused(path.from, now);
                return Received::Handled;
            }
            Err(Refused { refusal, reply, .. }) => {
                if let Some(challenge) = reply {
                    self.socket.reply(path, &challenge);
                }
                self.refuse(refusal.name(), &refusal, path, now);
                return Received::Handled;
            }
        };
        // The first datagram of the 2018 format has no report; the second one has.
        let Some(mut report) = verified.decoded.report() else {
            return Received::Handled;
        };
        report.signed = verified.signature.is_some();
        Received::Heartbeat(Box::new(ReceivedHeartbeat {
            report,
            at: now,
            path,
            verified,
        }))
    }

    /// Sends a pong. `is_unknown` says that no service has the worker or would accept it.
    pub fn reply_to_ping(&self, ping: &ReceivedPing, is_unknown: bool) {
        let pong = match &ping.sender {
            Some(sender) if is_unknown => &sender.if_unknown,
            _ => &ping.pong,
        };
        self.socket.reply(ping.path, pong);
    }

    /// Sends a connection query to an agent. It removes the clients that do not fit into one datagram from the query.
    ///
    /// # Errors
    ///
    /// Says that the query names no client, or that the agent's key is no longer known.
    pub fn send_query(
        &self,
        agent: AgentAddress,
        query: &mut ConnectionQuery,
    ) -> Result<(), Refusal> {
        let key = match agent.key {
            Some(id) => {
                let key = self.authenticator.keys().find(id);
                Some(key.ok_or(Refusal::UnknownKey { key: id })?)
            }
            None => None,
        };
        self.socket.reply(agent.path, &query.encode(key)?);
        Ok(())
    }

    /// Refuses a connection reply that belongs to no query.
    pub fn refuse_connection_reply(&mut self, received: &ReceivedConnectionReply) {
        let (refusal, path) = (Refusal::Unsolicited, received.agent.path);
        self.refuse(refusal.name(), &refusal, path, Instant::now());
    }

    /// Acknowledges, counts and logs a heartbeat, by the outcome of the core.
    pub fn handle_outcome(&mut self, heartbeat: &ReceivedHeartbeat, outcome: HeartbeatOutcome) {
        let ReceivedHeartbeat {
            report,
            at: now,
            path,
            verified,
        } = heartbeat;
        if outcome == HeartbeatOutcome::SequenceReset
            && let Some(reply) = self.authenticator.request_new_boot(verified, path.from)
        {
            self.socket.reply(*path, &reply);
        }
        if let Some(reason) = outcome.refusal() {
            let worker = report.worker.as_str();
            let usual = self.workers.get(worker).and_then(WorkerLog::last_address);
            let usual = usual.filter(|usual| *usual != path.from.ip());
            let usual = usual.map(|address| format!(", whose heartbeats come from {address}"));
            let detail = format_args!("from worker {worker}{}", usual.unwrap_or_default());
            return self.refuse(reason, &detail, *path, *now);
        }
        self.counts.accepted += 1;
        if let Some(acknowledgement) = self
            .authenticator
            .record_accepted(verified, path.from, *now)
        {
            self.socket.reply(*path, &acknowledgement);
        }
        self.log_heartbeat(&verified.decoded, report, *path, *now);
        if verified.signature.is_none()
            && self.authenticator.authentication() == Authentication::Permissive
        {
            self.log_unsigned(&report.worker, *path, *now);
        }
    }

    /// Refuses the heartbeat of an agent that cannot join.
    pub fn refuse_join(&mut self, heartbeat: &ReceivedHeartbeat, error: &dyn fmt::Display) {
        let detail = format_args!("{} cannot join: {error}", heartbeat.report.worker);
        self.refuse("join_refused", &detail, heartbeat.path, Instant::now());
    }

    /// Refuses the heartbeat of an agent of no worker.
    pub fn refuse_unknown(&mut self, heartbeat: &ReceivedHeartbeat) {
        self.handle_outcome(heartbeat, HeartbeatOutcome::UnknownWorker);
    }

    /// Counts unsigned heartbeats by worker, and logs the workers' names from time to time.
    fn log_unsigned(&mut self, worker: &str, path: DatagramPath, now: Instant) {
        add(&mut self.counts.unsigned, worker, 1);
        if self.unsigned.due(now, UNSIGNED_INTERVAL).is_some() {
            let names: Vec<&str> = self.counts.unsigned.keys().map(String::as_str).collect();
            warn!(
                "heartbeats of these workers are unsigned: {} (the last from {})",
                names.join(", "),
                path.from
            );
        }
    }

    fn log_heartbeat(
        &mut self,
        decoded: &Decoded,
        report: &Report,
        path: DatagramPath,
        now: Instant,
    ) {
        let from = path.from;
        debug!("received from {from}: {decoded:?}");
        if !self.workers.contains_key(report.worker.as_str()) {
            let name = report.worker.as_str().into();
            self.workers.insert(name, WorkerLog::default());
        }
        let (memory, workers) = (report.memory, self.workers.len());
        let Some(log) = self.workers.get_mut(report.worker.as_str()) else {
            return;
        };
        let boot = report.sequence.map(|sequence| sequence.boot);
        let moved = log.moved_from(now, from.ip(), boot);
        self.events
            .extend(moved.map(|before| Event::HeartbeatSourceChanged {
                worker: report.worker.clone(),
                from: from.ip(),
                before,
            }));
        let heartbeats = log.sample_due(now, memory, workers);
        self.events
            .extend(heartbeats.map(|heartbeats| Event::Heartbeat {
                worker: report.worker.clone(),
                from,
                memory_available_bytes: memory.available_bytes,
                memory_total_bytes: memory.total_bytes,
                heartbeats,
            }));
    }

    fn refuse(
        &mut self,
        reason: &'static str,
        detail: &dyn fmt::Display,
        path: DatagramPath,
        now: Instant,
    ) {
        let from = path.from;
        self.authenticator.record_refused(from, now);
        add(&mut self.counts.refused, reason, 1);
        let log = self.refusals.entry(reason).or_default();
        log.last = Some((now, from));
        log.detail.clear();
        _ = write!(log.detail, "{detail}");
        let datagrams = log.limiter.due(now, REFUSAL_INTERVAL);
        self.events
            .extend(datagrams.map(|datagrams| Event::HeartbeatRefused {
                reason,
                from,
                detail: log.detail.clone(),
                datagrams,
            }));
    }
}

/// Adds to a counter. It allocates only for a new name.
fn add(counts: &mut BTreeMap<String, u64>, name: &str, more: u64) {
    match counts.get_mut(name) {
        Some(count) => *count += more,
        None => _ = counts.insert(name.to_owned(), more),
    }
}

/// Reads the keys, unless authentication is off. It may block.
///
/// # Errors
///
/// Names the file that cannot be read, and why.
pub fn read_keys_of(config: &Config) -> Result<KeyRing> {
    match config.heartbeats.authentication {
        Authentication::Off => Ok(KeyRing::default()),
        Authentication::Permissive | Authentication::Enforce => {
            let path = &config.heartbeats.keys;
            let keys = read_keys(path)?;
            if let Some(warning) = keys.warning(path) {
                warn!("{warning}");
            }
            Ok(keys)
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_core::{BootId, WorkerState};

    use super::*;
    use crate::heartbeat::{Heartbeat, MemoryReport};

    fn heartbeat(worker: &str) -> Vec<u8> {
        let heartbeat = Heartbeat {
            worker: worker.to_owned(),
            boot: BootId(1),
            seq: 1,
            interval: Duration::from_millis(100),
            memory: MemoryReport {
                available_bytes: 1,
                total_bytes: 2,
                cgroup: None,
                pressure: None,
                stale_ms: None,
            },
            state: WorkerState::Ready,
            healthy: true,
            checked: false,
            translates: Vec::new(),
            version: "0.1.0".to_owned(),
            pause: None,
            nonce: None,
        };
        heartbeat.encode().unwrap()
    }

    #[tokio::test]
    async fn figures_of_a_worker_end_with_its_configuration() {
        let now = Instant::now();
        let authentication = Authentication::Permissive;
        let mut receiver = HeartbeatReceiver {
            socket: HeartbeatSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap(),
            authenticator: Authenticator::new(authentication, false, KeyRing::default(), now)
                .unwrap(),
            counts: Heartbeats::default(),
            workers: BTreeMap::new(),
            refusals: BTreeMap::new(),
            unsigned: RateLimiter::default(),
            events: VecDeque::new(),
        };
        for number in 0..100 {
            let name = format!("worker{number}");
            let path = DatagramPath::example(1_000 + number);
            match receiver.handle_datagram(&heartbeat(&name), path, now) {
                Received::Heartbeat(it) => receiver.handle_outcome(&it, HeartbeatOutcome::Accepted),
                other => panic!("{other:?}"),
            }
            // The former worker is replaced by this one.
            receiver.retain_workers(|worker| worker == name);
        }
        assert_eq!(
            (receiver.workers.len(), receiver.counts.unsigned.len()),
            (1, 1)
        );
        assert_eq!(receiver.counts.accepted, 100);
    }
}
