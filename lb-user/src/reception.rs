//! Where heartbeats come in: the socket, what is refused and what is mentioned.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;
use tokio::net::UdpSocket;
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    core::{Bytes, Core, Report, Severity},
    event_log::EventLog,
    heartbeat::{self, Decoded},
    status::Heartbeats,
};

/// How often a worker's heartbeats are mentioned; each single one is at level debug.
const MENTION_INTERVAL: Duration = Duration::from_secs(1);

/// How often a reason of refusal is mentioned.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// Datagrams taken from the socket before deadlines and questions get their turn.
const BATCH: usize = 256;

/// Receives heartbeats for the core.
#[derive(Debug)]
pub struct Reception {
    socket: UdpSocket,
    legacy: bool,
    counts: Heartbeats,
    mentions: BTreeMap<Arc<str>, Mention>,
    refusals: BTreeMap<&'static str, Mention>,
}

impl Reception {
    /// Listens where the configuration says.
    ///
    /// # Errors
    ///
    /// Says why the socket cannot be opened, and what to do.
    pub async fn open(config: &Config) -> Result<Self> {
        Ok(Self {
            socket: bind(config.manager.heartbeat_listen).await?,
            legacy: config.manager.legacy_heartbeats,
            counts: Heartbeats::default(),
            mentions: BTreeMap::new(),
            refusals: BTreeMap::new(),
        })
    }

    /// Waits until a datagram may be there.
    ///
    /// # Errors
    ///
    /// Says why the socket cannot be waited for.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Returns what was counted since the start.
    pub fn counts(&self) -> &Heartbeats {
        &self.counts
    }

    /// Takes the waiting datagrams to the core, one batch at most.
    pub fn receive(&mut self, core: &mut Core, log: &mut EventLog) {
        let mut buffer = [0; heartbeat::SIZE_LIMIT];
        for _ in 0..BATCH {
            match self.socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => {
                    self.hear(core, log, &buffer[..length], from, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error about something sent earlier, for one.
                Err(error) => debug!("receive a heartbeat: {error}"),
            }
        }
    }

    fn hear(
        &mut self,
        core: &mut Core,
        log: &mut EventLog,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
    ) {
        let decoded = match heartbeat::decode(datagram, self.legacy) {
            Ok(decoded) => decoded,
            Err(refusal) => {
                return self.refuse(log, refusal.name(), &refusal.to_string(), from, now);
            }
        };
        let Some(report) = decoded.report() else {
            // The 2018 form's first datagram says nothing; the second is the heartbeat.
            return;
        };
        let outcome = core.handle_heartbeat(&report, now);
        match outcome.refusal() {
            Some(reason) => {
                let detail = format!("from worker {}", report.worker);
                self.refuse(log, reason, &detail, from, now);
            }
            None => {
                self.counts.accepted += 1;
                self.mention(log, &decoded, &report, from, now);
            }
        }
    }

    fn mention(
        &mut self,
        log: &mut EventLog,
        decoded: &Decoded,
        report: &Report,
        from: SocketAddr,
        now: Instant,
    ) {
        debug!("received from {from}: {decoded:?}");
        if !self.mentions.contains_key(report.worker.as_str()) {
            let name = report.worker.as_str().into();
            self.mentions.insert(name, Mention::overdue());
        }
        let mention = self.mentions.get_mut(report.worker.as_str());
        let Some(heartbeats) = mention.and_then(|mention| mention.due(now, MENTION_INTERVAL))
        else {
            return;
        };
        let memory = report.memory;
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

    fn refuse(
        &mut self,
        log: &mut EventLog,
        reason: &'static str,
        detail: &str,
        from: SocketAddr,
        now: Instant,
    ) {
        match self.counts.refused.get_mut(reason) {
            Some(count) => *count += 1,
            None => {
                self.counts.refused.insert(reason.to_owned(), 1);
            }
        }
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
            detail,
            datagrams,
        };
        log.publish(Severity::Warn, message, &refused);
    }
}

async fn bind(address: SocketAddrV4) -> Result<UdpSocket> {
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

/// What is said of datagrams in the event log.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Happening<'a> {
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
}

/// How often something happened since it was last mentioned.
#[derive(Debug)]
struct Mention {
    at: Option<Instant>,
    unmentioned: u64,
}

impl Mention {
    /// Returns one that is due at its first occurrence.
    fn overdue() -> Self {
        Self {
            at: None,
            unmentioned: 0,
        }
    }

    /// Counts one more; says how many are to be mentioned now, if it is time.
    fn due(&mut self, now: Instant, interval: Duration) -> Option<u64> {
        self.unmentioned += 1;
        let due = self
            .at
            .is_none_or(|at| now.saturating_duration_since(at) >= interval);
        due.then(|| {
            self.at = Some(now);
            std::mem::take(&mut self.unmentioned)
        })
    }
}
