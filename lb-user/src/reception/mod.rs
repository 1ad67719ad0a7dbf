//! Where heartbeats come in: from the socket through the gate to the core, or refused and counted.

mod socket;
mod telling;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_core::{Bytes, Core, HeartbeatOutcome, Report, Severity};
use tracing::{debug, info, warn};

use crate::{
    config::{AutoJoin, Config},
    event_log::EventLog,
    heartbeat::{self, Authentication, Decoded, Gate, Opened, Refusal, Refused},
    keys::{KeyRing, read_keys},
    manager::{Joined, Unfit},
    status::{Heartbeats, RefusedDatagram},
};
use socket::{Socket, Way};
use telling::{Happening, Heard, LastRefused, Mention};

/// How often a reason of refusal is mentioned.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// For how long it is told what was refused.
const LATELY: Duration = Duration::from_secs(60);

/// How often the workers that do not sign yet are named.
const UNSIGNED_INTERVAL: Duration = Duration::from_secs(30);

/// Datagrams taken from the socket before deadlines and questions get their turn.
const BATCH: usize = 256;

/// Why datagrams were lost that nobody has looked at.
const QUEUE_FULL: &str = "queue_full";

/// How many agents may apply at a time; others do so with their next heartbeat.
const MOST_APPLICANTS: usize = 1_024;

/// Receives heartbeats for the core.
#[derive(Debug)]
pub struct Reception {
    socket: Socket,
    gate: Gate,
    counts: Heartbeats,
    heard: BTreeMap<Arc<str>, Heard>,
    refusals: BTreeMap<&'static str, Mention>,
    last_refused: BTreeMap<&'static str, LastRefused>,
    unsigned: Mention,
    /// From where agents may join.
    doors: Vec<AutoJoin>,
    /// Where those who joined are; heard from elsewhere they are not who they were.
    joined: Joined,
    applicants: Vec<Applicant>,
    /// The workers that announced to be silent, and for how long.
    announced: BTreeMap<String, Duration>,
}

/// An agent that has proved who it is, and whom no service knows, or knows at another address.
#[derive(Debug)]
pub struct Applicant {
    way: Way,
    opened: Opened,
}

impl Applicant {
    pub fn address(&self) -> IpAddr {
        self.way.from.ip()
    }

    pub fn worker(&self) -> &str {
        self.opened.decoded.worker().unwrap_or_default()
    }
}

impl Reception {
    /// Listens where the configuration says, with the keys that it names.
    ///
    /// # Errors
    ///
    /// Says why the keys cannot be read or the socket not be opened, and what to do.
    pub async fn open(config: &Config) -> Result<Self> {
        let authentication = config.heartbeats.authentication;
        let gate = Gate::new(
            authentication,
            config.manager.legacy_heartbeats,
            read_keys_of(config)?,
            Instant::now(),
        )?;
        let socket = Socket::bind(config.manager.heartbeat_listen)?;
        Ok(Self {
            socket,
            gate,
            counts: Heartbeats {
                authentication: authentication.name().to_owned(),
                ..Heartbeats::default()
            },
            heard: BTreeMap::new(),
            refusals: BTreeMap::new(),
            last_refused: BTreeMap::new(),
            unsigned: Mention::overdue(),
            doors: doors(config),
            joined: Joined::default(),
            applicants: Vec::new(),
            announced: BTreeMap::new(),
        })
    }

    /// Takes over `[heartbeats]`, `legacy_heartbeats` and the keys that were read by it; returns what is
    /// different of the keys.
    pub fn reload(&mut self, config: &Config, keys: KeyRing) -> Vec<String> {
        let authentication = config.heartbeats.authentication;
        // Where signatures are not looked at, no key is known.
        let before = self.gate.authentication();
        let changes = match [before, authentication].contains(&Authentication::Off) {
            true => Vec::new(),
            false => self.gate.keys().changes(&keys),
        };
        self.gate
            .reconfigure(authentication, config.manager.legacy_heartbeats, keys);
        authentication
            .name()
            .clone_into(&mut self.counts.authentication);
        self.counts.unsigned.clear();
        self.doors = doors(config);
        // Who may still apply does so with the next heartbeat.
        self.applicants.clear();
        self.announce(config);
        changes
    }

    /// Says of which workers no heartbeat can count, since no key is known of them.
    pub fn unheard(&self, config: &Config) -> Option<String> {
        let without = self.without_key(config);
        if self.gate.authentication() != Authentication::Enforce || without.is_empty() {
            return None;
        }
        let names: Vec<&str> = without.into_iter().collect();
        Some(format!(
            "no key is known of {}; only signed heartbeats count, so nothing will be heard of them",
            names.join(", ")
        ))
    }

    fn without_key<'a>(&self, config: &'a Config) -> BTreeSet<&'a str> {
        let workers = config.services.iter().flat_map(|service| &service.workers);
        workers
            .map(|worker| worker.name.as_str())
            .filter(|worker| self.gate.keys().of_worker(worker).next().is_none())
            .collect()
    }

    /// Says whose heartbeats are believed, and warns where that is anybody's.
    pub fn announce(&self, config: &Config) {
        let listen = config.manager.heartbeat_listen;
        let keys = self.gate.keys();
        match self.gate.authentication() {
            Authentication::Off => warn!(
                "heartbeats are not authenticated: whoever can reach UDP {listen} can steer the \
                 balancer; keep it to a trusted network, or give the workers keys (memlb keygen) and \
                 set heartbeats.authentication"
            ),
            Authentication::Permissive => warn!(
                "unsigned heartbeats still count (heartbeats.authentication = \"permissive\"): whoever \
                 can reach UDP {listen} can speak for the workers that do not sign yet"
            ),
            Authentication::Enforce => info!("only signed heartbeats count"),
        }
        if self.gate.authentication() == Authentication::Off {
            return;
        }
        info!(
            "{} keys read from {}",
            keys.len(),
            config.heartbeats.keys.display()
        );
        let without = self.without_key(config);
        if !without.is_empty() {
            let names: Vec<&str> = without.into_iter().collect();
            warn!(
                "no key is known of {}: make one with `memlb keygen --name NAME`",
                names.join(", ")
            );
        }
    }

    /// Waits until a datagram may be there.
    ///
    /// # Errors
    ///
    /// Says why the socket cannot be waited for.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Returns what was counted since the start, and what was refused lately.
    pub fn counts(&self, now: Instant) -> Heartbeats {
        let last = self.last_refused.iter();
        let lately = last.filter_map(|(reason, refused)| {
            let age = now.saturating_duration_since(refused.at);
            let refused = RefusedDatagram {
                age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                from: refused.from.to_string(),
                detail: refused.detail.clone(),
            };
            (age <= LATELY).then(|| ((*reason).to_owned(), refused))
        });
        Heartbeats {
            refused_lately: lately.collect(),
            ..self.counts.clone()
        }
    }

    /// Takes the waiting datagrams to the core, one batch at most.
    pub fn receive(&mut self, core: &mut Core, log: &EventLog) {
        let mut buffer = [0; heartbeat::SIZE_LIMIT];
        for _ in 0..BATCH {
            match self.socket.receive(&mut buffer) {
                Ok((length, way)) => {
                    self.hear(core, log, &buffer[..length], way, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error about something sent earlier, for one.
                Err(error) => debug!("receive a heartbeat: {error}"),
            }
        }
        let overflowed = self.socket.overflowed();
        if overflowed > 0 {
            self.count_refused(QUEUE_FULL, overflowed);
            self.warn_of_overflow(Instant::now());
        }
    }

    /// Warns that more came than could be read, honest heartbeats perhaps among them.
    fn warn_of_overflow(&mut self, now: Instant) {
        let mention = self.refusals.entry(QUEUE_FULL);
        let mention = mention.or_insert_with(Mention::overdue);
        if mention.due(now, REFUSAL_INTERVAL).is_some() {
            warn!(
                "more datagrams come to the heartbeat port than can be read: {} were lost since the \
                 start ({QUEUE_FULL})",
                self.counts.refused[QUEUE_FULL]
            );
        }
    }

    fn hear(&mut self, core: &mut Core, log: &EventLog, datagram: &[u8], way: Way, now: Instant) {
        let opened = match self.gate.open(datagram, way.from, now) {
            Ok(opened) => opened,
            Err(Refused {
                refusal,
                challenge,
                asker,
            }) => {
                let challenge = match asker {
                    Some(asker) if !core.knows(&asker.worker) && !self.may_join(way) => {
                        Some(asker.if_unknown)
                    }
                    _ => challenge,
                };
                if let Some(challenge) = challenge {
                    self.socket.answer(way, &challenge);
                }
                if refusal == Refusal::Ping {
                    return self.gate.refused(way.from, now);
                }
                return self.refuse(log, refusal.name(), &refusal, way, now);
            }
        };
        self.deliver(core, log, opened, way, now);
    }

    fn deliver(&mut self, core: &mut Core, log: &EventLog, opened: Opened, way: Way, now: Instant) {
        let Some(mut report) = opened.decoded.report() else {
            // The 2018 form's first datagram says nothing; the second is the heartbeat.
            return;
        };
        report.signed = opened.signature.is_some();
        // Whose address is the one it came from must be heard from there, and signed.
        if let Some(at) = self.joined.address(&report.worker)
            && (at != way.from.ip() || opened.signature.is_none())
        {
            return self.apply(log, opened, way, now);
        }
        let outcome = core.handle_heartbeat(&report, now);
        if outcome == HeartbeatOutcome::UnknownWorker {
            return self.apply(log, opened, way, now);
        }
        if outcome == HeartbeatOutcome::SequenceReset
            && let Some(answer) = self.gate.demand_new_boot(&opened, way.from)
        {
            self.socket.answer(way, &answer);
        }
        if let Some(reason) = outcome.refusal() {
            let worker = &report.worker;
            let heard = self.heard.get(worker.as_str()).and_then(Heard::from);
            let elsewhere = heard.filter(|heard| *heard != way.from.ip());
            let elsewhere = elsewhere.map(|at| format!(", which is heard from {at}"));
            let elsewhere = elsewhere.unwrap_or_default();
            let detail = format_args!("from worker {worker}{elsewhere}");
            return self.refuse(log, reason, &detail, way, now);
        }
        self.counts.accepted += 1;
        // Whoever can reach the port could keep an unsigned worker from new connections.
        if report.signed
            && let Some(pause) = opened.decoded.pause()
        {
            self.announced.insert(report.worker.clone(), pause);
        }
        if let Some(answer) = self.gate.accepted(&opened, way.from, now) {
            self.socket.answer(way, &answer);
        }
        self.mention(log, &opened.decoded, &report, way, now);
        if opened.signature.is_none() && self.gate.authentication() == Authentication::Permissive {
            self.name_unsigned(&report.worker, way, now);
        }
    }

    fn may_join(&self, way: Way) -> bool {
        self.doors.iter().any(|it| it.allows(way.from.ip()))
    }

    /// Lets an unknown worker apply, if it has signed and comes from where some may join.
    fn apply(&mut self, log: &EventLog, opened: Opened, way: Way, now: Instant) {
        let worker = opened.decoded.worker().unwrap_or_default();
        let address = way.from.ip();
        let may = opened.signature.is_some() && self.may_join(way);
        let waiting = self.applicants.iter().find(|it| it.worker() == worker);
        if may && waiting.is_some_and(|it| it.address() == address) {
            return;
        }
        if may && waiting.is_none() && self.applicants.len() < MOST_APPLICANTS {
            self.applicants.push(Applicant { way, opened });
        } else {
            let detail = format_args!("from worker {worker}");
            self.refuse(log, "unknown_worker", &detail, way, now);
        }
    }

    /// Returns the pauses that workers have announced since this was last asked.
    pub fn take_announced(&mut self) -> BTreeMap<String, Duration> {
        std::mem::take(&mut self.announced)
    }

    /// Returns who has applied and was not taken yet.
    pub fn applicants(&self) -> &[Applicant] {
        &self.applicants
    }

    /// Takes those who are at one of these addresses.
    pub fn take_applicants(&mut self, addresses: &BTreeSet<IpAddr>) -> Vec<Applicant> {
        let is_there = |applicant: &mut Applicant| addresses.contains(&applicant.address());
        self.applicants.extract_if(.., is_there).collect()
    }

    /// Takes note of who has joined, and where.
    pub fn expect(&mut self, joined: &Joined) {
        self.joined.clone_from(joined);
    }

    /// Takes in the heartbeat by which a worker joined.
    pub fn welcome(&mut self, core: &mut Core, log: &EventLog, applicant: Applicant, now: Instant) {
        let Applicant { way, opened } = applicant;
        self.deliver(core, log, opened, way, now);
    }

    /// Refuses the heartbeat of an agent that cannot join.
    pub fn turn_away(&mut self, log: &EventLog, applicant: &Applicant, why: &Unfit) {
        let detail = format_args!("{} cannot join: {why}", applicant.worker());
        self.refuse(log, "join_refused", &detail, applicant.way, Instant::now());
    }

    /// Counts the workers that do not sign yet, and names them now and then.
    fn name_unsigned(&mut self, worker: &str, way: Way, now: Instant) {
        match self.counts.unsigned.get_mut(worker) {
            Some(count) => *count += 1,
            None => {
                self.counts.unsigned.insert(worker.to_owned(), 1);
            }
        }
        if self.unsigned.due(now, UNSIGNED_INTERVAL).is_some() {
            let names: Vec<&str> = self.counts.unsigned.keys().map(String::as_str).collect();
            warn!(
                "these workers do not sign their heartbeats yet: {} (the last from {})",
                names.join(", "),
                way.from
            );
        }
    }

    fn mention(
        &mut self,
        log: &EventLog,
        decoded: &Decoded,
        report: &Report,
        way: Way,
        now: Instant,
    ) {
        let from = way.from;
        debug!("received from {from}: {decoded:?}");
        if !self.heard.contains_key(report.worker.as_str()) {
            let name = report.worker.as_str().into();
            self.heard.insert(name, Heard::default());
        }
        let (memory, workers) = (report.memory, self.heard.len());
        let Some(heard) = self.heard.get_mut(report.worker.as_str()) else {
            return;
        };
        let boot = report.sequence.map(|sequence| sequence.boot);
        if let Some(before) = heard.moved(now, from.ip(), boot) {
            tell_move(log, &report.worker, from.ip(), before);
        }
        let Some(heartbeats) = heard.due(now, memory, workers) else {
            return;
        };
        info!(
            "received {}: {} available ({heartbeats} heartbeats since the last line, from {from})",
            report.worker,
            Bytes(memory.available_bytes),
        );
        log.append(&Happening::Heartbeat {
            worker: &report.worker,
            from,
            memory_available_bytes: memory.available_bytes,
            memory_total_bytes: memory.total_bytes,
            heartbeats,
        });
    }

    fn count_refused(&mut self, reason: &'static str, datagrams: u64) {
        match self.counts.refused.get_mut(reason) {
            Some(count) => *count += datagrams,
            None => {
                self.counts.refused.insert(reason.to_owned(), datagrams);
            }
        }
    }

    fn keep_refused(
        &mut self,
        reason: &'static str,
        from: SocketAddr,
        detail: &dyn fmt::Display,
        now: Instant,
    ) {
        let last = self.last_refused.entry(reason);
        let last = last.or_insert_with(|| LastRefused {
            at: now,
            from,
            detail: String::new(),
        });
        (last.at, last.from) = (now, from);
        last.detail.clear();
        _ = write!(last.detail, "{detail}");
    }

    fn refuse(
        &mut self,
        log: &EventLog,
        reason: &'static str,
        detail: &dyn fmt::Display,
        way: Way,
        now: Instant,
    ) {
        let from = way.from;
        self.gate.refused(from, now);
        self.count_refused(reason, 1);
        self.keep_refused(reason, from, detail, now);
        let mention = self.refusals.entry(reason).or_insert_with(Mention::overdue);
        let Some(datagrams) = mention.due(now, REFUSAL_INTERVAL) else {
            return;
        };
        let message =
            format!("refused {datagrams} datagrams ({reason}), the last from {from}: {detail}");
        warn!("{message}");
        let refused = Happening::HeartbeatRefused {
            reason,
            from,
            detail: &detail.to_string(),
            datagrams,
        };
        log.publish(Severity::Warn, message, &refused);
    }
}

fn tell_move(log: &EventLog, worker: &str, from: IpAddr, before: IpAddr) {
    let message = format!(
        "{worker} is heard from {from}, and was from {before}: unless it has moved, two machines \
         have that name"
    );
    warn!("{message}");
    let moved = Happening::HeartbeatsMoved {
        worker,
        from,
        before,
    };
    log.publish(Severity::Warn, message, &moved);
}

/// From where agents may join; nobody can where signatures are not looked at.
fn doors(config: &Config) -> Vec<AutoJoin> {
    let services = config.services.iter();
    services
        .filter_map(|service| service.auto_join.clone())
        .collect()
}

/// Reads the keys, where signatures are looked at; it may block.
///
/// # Errors
///
/// Says which file cannot be read, and why.
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
