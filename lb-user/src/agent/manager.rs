//! A manager to which an agent sends heartbeats: its address, its replies, its round-trip time.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_core::BootId;
use tokio::{net::UdpSocket, sync::mpsc, time::Instant};
use tracing::{debug, info, warn};

use super::lookup::Resolver;
use crate::{
    dual_stack::both_families,
    heartbeat::{Acknowledgement, ConnectionQuery, Nonce, Pong, Refusal, SIZE_LIMIT},
    keys::Key,
};

/// The manager's default UDP port.
pub const PORT: u16 = 9999;

/// The most heartbeats that wait for their acknowledgement.
const MAX_UNANSWERED: usize = 64;

/// How long a manager may send no reply before the agent logs that.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// The command that finds the cause.
const DOCTOR: &str = "memlb doctor --agent";

/// A datagram of a manager.
#[derive(Debug)]
pub(super) struct ManagerDatagram {
    /// The index of the manager.
    pub manager: usize,
    pub content: ManagerMessage,
    pub at: Instant,
}

#[derive(Debug, Clone)]
pub(super) enum ManagerMessage {
    /// With a valid signature.
    Acknowledgement(Acknowledgement),
    Pong(Pong),
    /// A connection query, or why it does not count.
    ConnectionQuery(Result<ConnectionQuery, Refusal>),
}

/// What the agent must send at once after an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowUp {
    Nothing,
    Heartbeat,
    /// A heartbeat under a new boot id: the manager has received higher numbers under this one.
    NewBoot,
}

/// A manager that gets the agent's heartbeats.
#[derive(Debug)]
pub(super) struct RemoteManager {
    name: String,
    lookup: Resolver,
    socket: Arc<UdpSocket>,
    /// Whether the socket is an IPv6 socket, which also sends IPv4.
    is_dual_stack: bool,
    failing: bool,
    /// The nonce of the next heartbeat.
    pub nonce: Option<Nonce>,
    pub round_trip: Option<Duration>,
    /// The number of the last heartbeat that it acknowledged as counted.
    pub confirmed: u64,
    /// The heartbeats without an acknowledgement, the last one first: number, nonce and time.
    sent: VecDeque<(u64, Option<Nonce>, Instant)>,
    /// Since when it is silent; `None` before the first check.
    silent_since: Option<Instant>,
    silence_logged: bool,
    /// Whether it replied that no service has this worker.
    is_unknown_to: bool,
}

impl RemoteManager {
    /// Opens a socket for the manager of this name or address; its datagrams go to `received`. A socket of its own
    /// separates them from those of another manager with the same key.
    ///
    /// # Errors
    ///
    /// Says why there is no socket.
    pub async fn new(
        name: &str,
        index: usize,
        key: Option<&Key>,
        received: mpsc::Sender<ManagerDatagram>,
    ) -> Result<Self> {
        let name = with_port(name)?;
        let socket = open_socket()?;
        // The runtime regards a new socket as not writable.
        socket.writable().await.context("wait for a UDP socket")?;
        let is_dual_stack = socket.local_addr().is_ok_and(|own| own.is_ipv6());
        let socket = Arc::new(socket);
        tokio::spawn(listen(Arc::clone(&socket), key.cloned(), index, received));
        Ok(Self {
            lookup: Resolver::start(&name),
            name,
            socket,
            is_dual_stack,
            failing: false,
            nonce: None,
            round_trip: None,
            confirmed: 0,
            sent: VecDeque::new(),
            silent_since: None,
            silence_logged: false,
            is_unknown_to: false,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until its name resolves to another address.
    pub async fn address_changed(&mut self) {
        self.lookup.changed().await;
    }

    /// Resolves the name again, as after a suspension.
    pub fn refresh_address(&self) {
        self.lookup.refresh();
    }

    /// Sends one heartbeat; returns whether it was sent. A heartbeat that cannot be sent is lost.
    pub fn send(&mut self, seq: u64, datagram: &[u8]) -> bool {
        let Some(to) = self.lookup.address() else {
            // At the start, the lookup still runs. It logs its failure itself.
            debug!("heartbeat to {}: its address is not known yet", self.name);
            return false;
        };
        let sent = self.socket.try_send_to(datagram, self.socket_address(to));
        let was_sent = sent.is_ok();
        match (sent, self.failing) {
            (Ok(_), failing) => {
                self.sent.truncate(MAX_UNANSWERED - 1);
                self.sent.push_front((seq, self.nonce, Instant::now()));
                if failing {
                    self.failing = false;
                    info!("heartbeats to {} can be sent again", self.name);
                }
            }
            (Err(error), false) => {
                self.failing = true;
                warn!(
                    "heartbeats to {} cannot be sent, trying again: {error}",
                    self.name
                );
            }
            (Err(error), true) => debug!("heartbeat to {}: {error}", self.name),
        }
        was_sent
    }

    /// Returns the address in the socket's family.
    fn socket_address(&self, manager: SocketAddr) -> SocketAddr {
        match manager.ip() {
            IpAddr::V4(ip) if self.is_dual_stack => (ip.to_ipv6_mapped(), manager.port()).into(),
            _ => manager,
        }
    }

    /// Handles an acknowledgement; returns what the agent must send at once.
    ///
    /// An acknowledgement of an unknown heartbeat, or of one that was acknowledged before, is old or a replay.
    pub fn handle_acknowledgement(
        &mut self,
        acknowledgement: Acknowledgement,
        at: Instant,
        boot: BootId,
    ) -> FollowUp {
        let Acknowledgement {
            heartbeat,
            nonce,
            fresh,
            new_boot,
        } = acknowledgement;
        let known = |(seq, ..): &(u64, _, _)| *seq == heartbeat.number;
        let Some(index) = self.sent.iter().position(known) else {
            return FollowUp::Nothing;
        };
        if heartbeat.boot != boot {
            return FollowUp::Nothing;
        }
        let (_, carried, sent) = self.sent[index];
        // Earlier heartbeats will not be acknowledged any more.
        self.sent.truncate(index);
        self.nonce = Some(nonce);
        self.round_trip = Some(at.saturating_duration_since(sent));
        self.mark_reachable(at, "acknowledges heartbeats");
        if fresh {
            self.confirmed = heartbeat.number;
        }
        match fresh {
            _ if new_boot => FollowUp::NewBoot,
            // Otherwise the agent would send forever to a manager that refuses its own nonce.
            false if carried != Some(nonce) => FollowUp::Heartbeat,
            _ => FollowUp::Nothing,
        }
    }

    /// Sends a datagram that is no heartbeat. A datagram that cannot be sent is lost.
    pub fn send_other(&self, datagram: &[u8]) {
        if let Some(to) = self.lookup.address()
            && let Err(error) = self.socket.try_send_to(datagram, self.socket_address(to))
        {
            debug!("send to {}: {error}", self.name);
        }
    }

    /// Handles a pong.
    pub fn handle_pong(&mut self, pong: Pong, worker: &str, at: Instant, boot: BootId) {
        if pong.ping.boot != boot {
            return;
        }
        self.mark_reachable(at, "answers");
        let was = std::mem::replace(&mut self.is_unknown_to, pong.is_unknown);
        match (was, pong.is_unknown) {
            (false, true) => warn!(
                "{} has no worker named {worker} and refuses its heartbeats (unknown_worker): is \
                 --name right, and is the worker in its configuration?",
                self.name
            ),
            (true, false) => info!("{} has a worker named {worker} now", self.name),
            _ => {}
        }
    }

    fn mark_reachable(&mut self, at: Instant, how: &str) {
        self.silent_since = Some(at);
        if std::mem::take(&mut self.silence_logged) {
            info!("{} {how}", self.name);
        }
    }

    /// Logs once that a manager does not reply.
    pub fn warn_if_silent(&mut self, key: Option<&Key>, now: Instant) {
        let since = *self.silent_since.get_or_insert(now);
        if self.silence_logged || now.saturating_duration_since(since) <= SILENCE_TIMEOUT {
            return;
        }
        self.silence_logged = true;
        match key {
            Some(key) => warn!(
                "{} does not acknowledge: is it running and reachable, with authentication on, and \
                 does it know key {} of {}? {DOCTOR} examines it",
                self.name,
                key.id(),
                key.worker()
            ),
            None => warn!(
                "{} does not answer: is the address right, does the manager run, does a firewall drop \
                 UDP, or does it accept only signed heartbeats (--key)? {DOCTOR} examines it",
                self.name
            ),
        }
    }
}

/// Opens a socket for both families, or for IPv4 on a machine without IPv6.
fn open_socket() -> Result<UdpSocket> {
    let any = (Ipv6Addr::UNSPECIFIED, 0).into();
    let socket = both_families(any).or_else(|_| {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        std::net::UdpSocket::bind(any)
    });
    let socket = socket.context("open a UDP socket")?;
    let context = "register a UDP socket with the runtime";
    socket.set_nonblocking(true).context(context)?;
    UdpSocket::from_std(socket).context(context)
}

/// Receives the manager's datagrams; with a key, only those with a valid signature.
async fn listen(
    socket: Arc<UdpSocket>,
    key: Option<Key>,
    manager: usize,
    received: mpsc::Sender<ManagerDatagram>,
) {
    let mut buffer = [0; SIZE_LIMIT];
    loop {
        let length = match socket.recv(&mut buffer).await {
            Ok(length) => length,
            // For example an ICMP error about an earlier heartbeat.
            Err(error) => {
                debug!("receive a datagram of the manager: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let datagram = &buffer[..length];
        let content = match (ConnectionQuery::decode(datagram, key.as_ref()), &key) {
            (Some(query), _) => Ok(ManagerMessage::ConnectionQuery(query)),
            (None, Some(key)) => {
                Acknowledgement::decode(datagram, key).map(ManagerMessage::Acknowledgement)
            }
            (None, None) => Pong::decode(datagram, None).map(ManagerMessage::Pong),
        };
        match content {
            Ok(content) => {
                let datagram = ManagerDatagram {
                    manager,
                    content,
                    at: Instant::now(),
                };
                if received.send(datagram).await.is_err() {
                    return;
                }
            }
            Err(refusal) => debug!("a datagram of the manager is not valid: {refusal}"),
        }
    }
}

/// Adds the default port to an address or a name without one, and brackets to an IPv6 address.
///
/// # Errors
///
/// Says that the text is neither an address nor a name.
pub fn with_port(name: &str) -> Result<String> {
    if let Ok(ip) = name.trim_matches(['[', ']']).parse::<Ipv6Addr>() {
        return Ok(SocketAddr::from((ip, PORT)).to_string());
    }
    if let Ok(address) = name.parse::<SocketAddr>()
        && address.port() > 0
    {
        return Ok(address.to_string());
    }
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().unwrap_or(0)),
        None => (name, PORT),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    ensure!(
        port > 0 && !host.is_empty() && host.chars().all(plain),
        "{name:?} is not a manager's address: expected an address or a name, with a port if it is not {PORT}: \
         192.168.56.101, [2001:db8::1]:9999 or manager.example:9999"
    );
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_core::Sequence;

    #[test]
    fn adds_the_port_where_none_is_given() {
        assert_eq!(with_port("192.168.56.101").unwrap(), "192.168.56.101:9999");
        assert_eq!(with_port("manager:1234").unwrap(), "manager:1234");
        for (given, full) in [
            ("2001:db8::1", "[2001:db8::1]:9999"),
            ("[2001:db8::1]", "[2001:db8::1]:9999"),
            ("[2001:db8::1]:1234", "[2001:db8::1]:1234"),
            ("[fe80::1%3]:1234", "[fe80::1%3]:1234"),
        ] {
            assert_eq!(with_port(given).unwrap(), full);
        }
        for bad in [
            "",
            ":9999",
            "manager:",
            "manager:0",
            "manager:99999",
            "[::1]:0",
            "[::1]:",
            "a b",
        ] {
            assert!(with_port(bad).is_err(), "{bad}");
        }
    }

    fn acknowledgement(boot: u64, number: u64, nonce: u64, fresh: bool) -> Acknowledgement {
        Acknowledgement {
            heartbeat: Sequence {
                boot: BootId(boot),
                number,
            },
            nonce: Nonce(nonce),
            fresh,
            new_boot: false,
        }
    }

    #[tokio::test]
    async fn accepts_each_answer_once_and_only_to_what_it_sent() {
        let boot = BootId(7);
        let (answers, _) = mpsc::channel(1);
        // No server is needed there.
        let mut manager = RemoteManager::new("127.0.0.1:9", 0, None, answers)
            .await
            .unwrap();
        let later = |by| Instant::now() + Duration::from_millis(by);
        for seq in 1..=3 {
            manager.send(seq, b"heartbeat");
        }
        let mut follows = |answer| manager.handle_acknowledgement(answer, later(5), boot);
        assert_eq!(follows(acknowledgement(7, 4, 1, false)), FollowUp::Nothing);
        assert_eq!(follows(acknowledgement(8, 2, 1, false)), FollowUp::Nothing);
        assert_eq!(manager.nonce, None);

        // A challenge is answered at once.
        assert_eq!(
            manager.handle_acknowledgement(acknowledgement(7, 2, 1, false), later(5), boot),
            FollowUp::Heartbeat
        );
        assert_eq!(manager.nonce, Some(Nonce(1)));
        assert!(
            manager
                .round_trip
                .is_some_and(|time| time < Duration::from_secs(1))
        );
        // Replayed, or overtaken by a later one, it says nothing.
        assert_eq!(
            manager.handle_acknowledgement(acknowledgement(7, 2, 2, false), later(5), boot),
            FollowUp::Nothing
        );
        assert_eq!(
            manager.handle_acknowledgement(acknowledgement(7, 1, 2, false), later(5), boot),
            FollowUp::Nothing
        );
        assert_eq!(manager.nonce, Some(Nonce(1)));

        manager.send(4, b"heartbeat");
        assert_eq!(
            manager.handle_acknowledgement(acknowledgement(7, 4, 2, true), later(5), boot),
            FollowUp::Nothing
        );
        assert_eq!(manager.nonce, Some(Nonce(2)));
        // No endless exchange with a manager that does not know its own nonce.
        manager.send(5, b"heartbeat");
        assert_eq!(
            manager.handle_acknowledgement(acknowledgement(7, 5, 2, false), later(5), boot),
            FollowUp::Nothing
        );

        // A demand for a new boot id is followed once, and only where it answers this boot.
        manager.send(6, b"heartbeat");
        let demand = |boot, number| Acknowledgement {
            new_boot: true,
            ..acknowledgement(boot, number, 3, false)
        };
        for (answer, next) in [
            (demand(8, 6), FollowUp::Nothing),
            (demand(7, 7), FollowUp::Nothing),
            (demand(7, 6), FollowUp::NewBoot),
            (demand(7, 6), FollowUp::Nothing),
        ] {
            assert_eq!(manager.handle_acknowledgement(answer, later(5), boot), next);
        }
    }
}
