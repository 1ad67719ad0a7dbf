//! The specification of the datapath as a simple model: a list of connections.
//!
//! It shares no code with the programs, keeps no maps and knows of no entries; only which of the
//! free ports a new connection gets is left to the program. Exchanges of datagrams are connections to
//! it, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use lb_common::{maps::state, verdict::Verdict};

use crate::{
    bench::{CLOSING_IDLE, DATAGRAM_IDLE, ESTABLISHED_IDLE, HALF_OPEN_IDLE},
    frame::{ACK, FIN, Family, RST, SYN},
    lan::Server,
    segment::Protocol,
};

/// A client, by its place in the test's list.
pub type Client = usize;

/// After this silence of a client, answers try the manager's route, too. Less, for the time that a test takes.
const CLIENT_SILENCE: Duration = Duration::from_millis(1_500);

/// For so long, packets may be under way to one that has reset its connection.
const ROUND_TRIP: Duration = Duration::from_millis(1_500);

/// For so long after a RST, a packet of the same side may be an older one.
const REORDER: Duration = Duration::from_millis(200);

/// How often unanswered datagrams go to another worker.
const DATAGRAM_RETRIES: u8 = 3;

#[derive(Clone, Debug)]
pub struct Model {
    now: Duration,
    ports: RangeInclusive<u16>,
    clients: Vec<(Family, Protocol)>,
    servers: Vec<ModelServer>,
    /// By family.
    selected: BTreeMap<Family, u32>,
    /// The workers that a refused or repeated SYN may go to.
    workers: Vec<Server>,
    pub connections: Vec<Connection>,
}

/// A server, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct ModelServer {
    pub server: Server,
    pub family: Family,
    pub reach: Reach,
    pub state: u8,
}

/// How a server's packets come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// From a port of the manager, which the answers come to.
    Translated,
    /// On the manager itself.
    Here,
    /// As the client sent them; the answers are never seen.
    Directly,
    /// From the client's own address and port, which the answers come to by way of the manager.
    Routed,
}

#[derive(Clone, Debug)]
pub struct Connection {
    pub client: Client,
    pub server: Server,
    pub reach: Reach,
    protocol: Protocol,
    /// The manager's port towards the worker, if it takes one.
    pub port: Option<u16>,
    pub established: bool,
    /// When the client sent its last SYN, or unanswered datagram.
    begun: Duration,
    retries: u8,
    /// Whether its SYN may be sent again.
    keeps_syn: bool,
    /// The servers that have refused it.
    refused_by: Vec<Server>,
    /// Whether the server has accepted, as far as that can be seen.
    answered: bool,
    progress: Progress,
    from_client: Side,
    from_server: Side,
}

/// How far the two sides have gone on since the first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    None,
    /// The client has; whether it had received more than the handshake.
    Client {
        advanced: bool,
    },
    /// The worker has answered again.
    Worker,
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    has_finished: bool,
    has_reset: bool,
    last_seen: Duration,
}

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Passes(Verdict),
    /// To the server of this connection.
    Goes(Server, Option<u16>),
    /// To this client, from this server.
    Comes(Client, Server),
    /// Replaced by the client's SYN, to this server, from one of these ports if it needs one.
    Retries {
        client: Client,
        server: Server,
        ports: BTreeSet<u16>,
    },
    /// As the first of a connection to this server, from one of these ports if it needs one.
    Opens {
        server: Server,
        ports: BTreeSet<u16>,
        retries: u8,
    },
}

impl Model {
    pub fn new(
        ports: RangeInclusive<u16>,
        clients: Vec<(Family, Protocol)>,
        servers: Vec<ModelServer>,
        selected: BTreeMap<Family, u32>,
        workers: Vec<Server>,
    ) -> Self {
        Self {
            now: Duration::ZERO,
            ports,
            clients,
            servers,
            selected,
            workers,
            connections: Vec::new(),
        }
    }

    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    pub fn select(&mut self, family: Family, backend: u32) {
        self.selected.insert(family, backend);
    }

    pub fn state(&mut self, server: Server, to: u8) {
        let spot = self.servers.iter_mut().find(|spot| spot.server == server);
        spot.unwrap().state = to;
    }

    /// A client sends a segment to the service, which proves, or not, that it is there, and acknowledges
    /// more, or not, than the handshake.
    pub fn request(&mut self, client: Client, flags: u8, proves: bool, advanced: bool) -> Expected {
        let Some(at) = self.connections.iter().position(|one| one.client == client) else {
            return self.stranger(client, flags, 0, self.chosen(client));
        };
        let connection = &self.connections[at];
        let state = self.state_of(connection.server);
        let keeps = matches!(state, state::UP | state::DRAINING);
        let opens = self.opens(client, flags);
        let silence = self.silence(connection);
        let is_over =
            connection.established && connection.has_ended() || silence > connection.patience();
        if !connection.established && is_over {
            self.connections.remove(at);
            return self.stranger(client, flags, 0, self.chosen(client));
        }
        // A worker that does not answer is left for another one that can be had, if it can be known.
        let chosen = self.chosen(client);
        let other = chosen
            .filter(|other| other.server != connection.server)
            .or_else(|| self.next(client, connection.retries + 1, &[connection.server]));
        let tries_another = !silence.is_zero()
            && !connection.answered
            && connection.reach != Reach::Directly
            && (!connection.is_of_datagrams() || connection.retries < DATAGRAM_RETRIES)
            && other.is_some();
        let is_answered = connection.answered || connection.reach == Reach::Directly;
        let is_proven = if connection.is_of_datagrams() {
            connection.is_proven()
        } else {
            connection.established || is_answered
        };
        let is_left = !keeps || !is_proven && (state != state::UP || tries_another);
        if opens && (is_over || is_left) {
            let (retries, server) = if !is_over && state == state::UP {
                (connection.retries + 1, other)
            } else {
                (0, chosen)
            };
            self.connections.remove(at);
            return self.stranger(client, flags, retries, server);
        }
        if !keeps {
            self.connections.remove(at);
            return Expected::Passes(Verdict::BackendDown);
        }
        let now = self.now;
        let connection = &mut self.connections[at];
        let acknowledges = flags & (SYN | ACK | RST) == ACK;
        if !connection.established {
            connection.goes_on(acknowledges, proves, advanced, now);
        }
        // Before the client has proved that it is there, its end says nothing.
        let proven = if connection.established {
            flags
        } else {
            flags & !(FIN | RST)
        };
        // A guess is made of segments only that begin nothing.
        let may_be_its_own = proves || flags & SYN != 0;
        if connection.established && !may_be_its_own {
            connection.from_client.last_seen = now;
        } else {
            let Connection {
                from_client,
                from_server,
                ..
            } = connection;
            from_client.sees(from_server, proven, now);
        }
        if opens {
            connection.begun = now;
        }
        let goes = Expected::Goes(connection.server, connection.port);
        if !connection.established && flags & RST != 0 && may_be_its_own {
            self.connections.remove(at);
        }
        goes
    }

    /// A worker sends a segment to one of the manager's ports.
    pub fn reply(&mut self, worker: Server, protocol: Protocol, port: u16, flags: u8) -> Expected {
        self.answer(flags, |one| one.holds(worker, protocol, port))
    }

    /// A worker that sees its clients' addresses sends a segment to one.
    pub fn routed_reply(&mut self, worker: Server, client: Client, flags: u8) -> Expected {
        self.answer(flags, |one| one.is_routed(worker, client))
    }

    /// The manager's own server sends a segment to a client.
    pub fn own_reply(&mut self, client: Client, flags: u8) -> Expected {
        self.answer(flags, |one| {
            one.reach == Reach::Here && one.client == client
        })
    }

    fn answer(&mut self, flags: u8, is_part_of: impl Fn(&Connection) -> bool) -> Expected {
        let now = self.now;
        let Some(at) = self.connections.iter().position(is_part_of) else {
            return Expected::Passes(Verdict::NotOurs);
        };
        let connection = &self.connections[at];
        let accepts = flags & (SYN | ACK | RST) == SYN | ACK;
        let is_over = connection.has_ended() || self.silence(connection) > connection.patience();
        // What the manager's own server accepts then came to it by another way.
        let is_others = connection.reach == Reach::Here
            && connection.established
            && is_over
            && (accepts || connection.is_of_datagrams());
        if is_others || !connection.is_under_way(self) {
            self.connections.remove(at);
            return Expected::Passes(Verdict::NotOurs);
        }
        if connection.is_refused_by(flags)
            && let Some(next) = self.next_after_refusal(connection)
            && let Ok(ports) = self.ports(connection.client, next)
        {
            return Expected::Retries {
                client: connection.client,
                server: next.server,
                ports,
            };
        }
        let connection = &mut self.connections[at];
        let Connection {
            from_client,
            from_server,
            ..
        } = connection;
        from_server.sees(from_client, flags, now);
        connection.answered |= accepts || connection.is_of_datagrams();
        if let Progress::Client { .. } = connection.progress {
            connection.progress = Progress::Worker;
        }
        let comes = Expected::Comes(connection.client, connection.server);
        if !connection.established && flags & RST != 0 {
            self.connections.remove(at);
        }
        comes
    }

    /// Whether a worker's segment refuses a connection whose SYN can be sent again.
    pub fn is_refusal(&self, flags: u8, is_part_of: impl Fn(&Connection) -> bool) -> bool {
        let about = self.connections.iter().find(|one| is_part_of(one));
        about.is_some_and(|one| one.is_refused_by(flags) && one.is_under_way(self))
    }

    /// The worker that a refused SYN goes to.
    fn next_after_refusal(&self, connection: &Connection) -> Option<ModelServer> {
        let mut tried = connection.refused_by.clone();
        tried.push(connection.server);
        self.next(connection.client, 0, &tried)
            .filter(|next| next.reach != Reach::Directly)
    }

    /// The first worker from this rank on that is up and has not been tried.
    fn next(&self, client: Client, rank: u8, tried: &[Server]) -> Option<ModelServer> {
        let (family, _) = self.clients[client];
        let of_family: Vec<_> = self
            .workers
            .iter()
            .map(|worker| self.server(*worker))
            .filter(|spot| spot.family == family)
            .collect();
        let ranked = of_family.iter().cycle().skip(rank.into());
        let mut ranked = ranked.take(of_family.len()).copied();
        ranked.find(|spot| spot.state == state::UP && !tried.contains(&spot.server))
    }

    /// The SYN that [`Expected::Retries`] announced took this port.
    pub fn retried(&mut self, client: Client, server: Server, port: Option<u16>) {
        let (now, reach) = (self.now, self.server(server).reach);
        let (_, protocol) = self.clients[client];
        if let Some(port) = port {
            self.connections
                .retain(|one| !one.holds(server, protocol, port));
        }
        let mut connections = self.connections.iter_mut();
        let one = connections.find(|one| one.client == client).unwrap();
        one.refused_by.push(one.server);
        (one.server, one.reach, one.port, one.begun) = (server, reach, port, now);
    }

    /// A router tells of a problem with a packet of the service to a client.
    pub fn clients_side_complains(&self, client: Client) -> Expected {
        let about = self.connections.iter().find(|one| one.client == client);
        self.error(about, |one| Expected::Goes(one.server, one.port))
    }

    /// A worker, or a router, tells of a problem with a packet from one of the manager's ports.
    pub fn workers_side_complains(
        &self,
        worker: Server,
        protocol: Protocol,
        port: u16,
    ) -> Expected {
        let mut connections = self.connections.iter();
        let about = connections.find(|one| one.holds(worker, protocol, port));
        self.error(about, |one| Expected::Comes(one.client, one.server))
    }

    /// The same where the worker sees its clients' addresses.
    pub fn routed_side_complains(&self, worker: Server, client: Client) -> Expected {
        let mut connections = self.connections.iter();
        let about = connections.find(|one| one.is_routed(worker, client));
        self.error(about, |one| Expected::Comes(one.client, one.server))
    }

    fn error(
        &self,
        about: Option<&Connection>,
        goes_on: impl Fn(&Connection) -> Expected,
    ) -> Expected {
        match about.filter(|one| one.is_under_way(self)) {
            None => Expected::Passes(Verdict::NotOurs),
            Some(one) => match self.state_of(one.server) {
                state::UP | state::DRAINING => goes_on(one),
                _ => Expected::Passes(Verdict::BackendDown),
            },
        }
    }

    /// The connection that [`Expected::Opens`] announced got its port, whose last holder is gone.
    pub fn opened(&mut self, client: Client, server: Server, port: Option<u16>, retries: u8) {
        let (_, protocol) = self.clients[client];
        let reach = self.server(server).reach;
        if let Some(port) = port {
            self.connections
                .retain(|one| !one.holds(server, protocol, port));
        }
        let begun = Side {
            last_seen: self.now,
            ..Side::default()
        };
        // What is never seen cannot be waited for.
        let unseen = reach == Reach::Directly;
        self.connections.push(Connection {
            client,
            server,
            reach,
            protocol,
            port,
            established: false,
            begun: self.now,
            retries,
            keeps_syn: protocol == Protocol::Tcp && reach != Reach::Directly,
            refused_by: Vec::new(),
            answered: unseen && protocol == Protocol::Udp,
            progress: Progress::None,
            from_client: begun,
            from_server: Side {
                has_finished: unseen,
                ..begun
            },
        });
    }

    /// Whether the client at this port has been silent for so long that answers may take another way to it.
    pub fn waits_for_client(&self, is_it: impl Fn(&Connection) -> bool) -> bool {
        let about = self.connections.iter().find(|one| is_it(one));
        about.is_some_and(|one| self.silences(one)[0] > CLIENT_SILENCE)
    }

    /// Forgets connections to a server whose ports a newcomer may take and, by `has_lost`, was looking
    /// at when it took another one.
    pub fn gave_way(
        &mut self,
        server: Server,
        protocol: Protocol,
        has_lost: impl Fn(&Connection) -> bool,
    ) {
        let free: BTreeSet<_> = self
            .ports
            .clone()
            .filter(|port| self.is_free(server, protocol, *port))
            .collect();
        self.connections.retain(|one| {
            let is_in_the_way =
                one.established && free.iter().any(|port| one.holds(server, protocol, *port));
            !(is_in_the_way && has_lost(one))
        });
    }

    /// How long the client's side and the server's have been silent.
    pub fn silences(&self, connection: &Connection) -> [Duration; 2] {
        [connection.from_client, connection.from_server].map(|side| self.now - side.last_seen)
    }

    /// Who gets a client's new connections.
    fn chosen(&self, client: Client) -> Option<ModelServer> {
        let (family, _) = self.clients[client];
        let mut servers = self.servers.iter().copied();
        servers
            .find(|spot| spot.family == family && spot.server.id == self.selected[&family])
            .filter(|spot| spot.state == state::UP)
    }

    /// How many connections to a server are open.
    pub fn open(&self, server: Server) -> u64 {
        let of_server = self.connections.iter().filter(|one| one.server == server);
        of_server
            .filter(|one| one.established && !one.has_ended())
            .count() as u64
    }

    fn opens(&self, client: Client, flags: u8) -> bool {
        let (_, protocol) = self.clients[client];
        protocol == Protocol::Udp || flags & (SYN | ACK | RST | FIN) == SYN
    }

    fn stranger(
        &self,
        client: Client,
        flags: u8,
        retries: u8,
        server: Option<ModelServer>,
    ) -> Expected {
        if !self.opens(client, flags) {
            return Expected::Passes(Verdict::NoFlow);
        }
        let Some(spot) = server else {
            return Expected::Passes(Verdict::NoBackend);
        };
        match self.ports(client, spot) {
            Err(verdict) => Expected::Passes(verdict),
            Ok(ports) => Expected::Opens {
                server: spot.server,
                ports,
                retries,
            },
        }
    }

    /// The ports that a new connection of a client may take towards a server; none where it needs none.
    fn ports(&self, client: Client, spot: ModelServer) -> Result<BTreeSet<u16>, Verdict> {
        let mut ports = BTreeSet::new();
        if spot.reach == Reach::Translated {
            let (_, protocol) = self.clients[client];
            let free = self.ports.clone();
            ports.extend(free.filter(|port| self.is_free(spot.server, protocol, *port)));
            if ports.is_empty() {
                ports.extend(self.port_of_oldest_handshake(spot.server, protocol));
            }
            if ports.is_empty() {
                return Err(Verdict::PortsExhausted);
            }
        }
        Ok(ports)
    }

    fn port_of_oldest_handshake(&self, server: Server, protocol: Protocol) -> Option<u16> {
        let of_server = |one: &&Connection| one.server == server && one.protocol == protocol;
        let handshakes = self.connections.iter().filter(|one| !one.established);
        let oldest = handshakes.filter(of_server).min_by_key(|one| one.begun);
        oldest.and_then(|one| one.port)
    }

    fn is_free(&self, server: Server, protocol: Protocol, port: u16) -> bool {
        let mut connections = self.connections.iter();
        let holder = connections.find(|one| one.holds(server, protocol, port));
        holder.is_none_or(|one| one.has_ended() || self.silence(one) > one.patience())
    }

    pub fn silence(&self, connection: &Connection) -> Duration {
        if !connection.established {
            return self.now - connection.begun;
        }
        let [client, server] = self.silences(connection);
        client.min(server)
    }

    fn state_of(&self, server: Server) -> u8 {
        self.server(server).state
    }

    pub fn server(&self, server: Server) -> ModelServer {
        let mut servers = self.servers.iter().copied();
        servers.find(|spot| spot.server == server).unwrap()
    }
}

impl Connection {
    /// Whether this is the connection that `worker` knows under the manager's `port`.
    pub fn holds(&self, worker: Server, protocol: Protocol, port: u16) -> bool {
        self.server == worker && self.protocol == protocol && self.port == Some(port)
    }

    /// Whether this is the connection that `worker` knows under the client's own address.
    pub fn is_routed(&self, worker: Server, client: Client) -> bool {
        self.reach == Reach::Routed && self.server == worker && self.client == client
    }

    /// Whether a segment of the server refuses it, and its SYN can be sent again.
    fn is_refused_by(&self, flags: u8) -> bool {
        let refuses = flags & (RST | ACK) == RST | ACK;
        refuses && self.keeps_syn && !self.established && !self.answered
    }

    /// The client sends more before it has proved that it is there.
    fn goes_on(&mut self, acknowledges: bool, proves: bool, advanced: bool, now: Duration) {
        let is_direct = self.reach == Reach::Directly;
        let is_first = self.progress == Progress::None;
        if self.is_of_datagrams() {
            self.established = match self.progress {
                Progress::None => false,
                Progress::Client { .. } => is_direct,
                Progress::Worker => true,
            };
            if is_first && self.answered {
                self.progress = Progress::Client { advanced };
            }
        } else if !is_direct {
            self.established = acknowledges && proves && self.answered;
        } else if acknowledges && (proves || !is_first) {
            let before = Progress::Client { advanced: false };
            self.established = self.progress == before && proves && advanced;
            if is_first {
                self.progress = Progress::Client { advanced };
            }
            self.begun = now;
        }
    }

    fn is_of_datagrams(&self) -> bool {
        self.protocol == Protocol::Udp
    }

    /// Whether its next datagram is one of an established flow.
    fn is_proven(&self) -> bool {
        self.established || self.answered
    }

    /// Whether packets still belong to it: an abandoned handshake has no packets.
    pub fn is_under_way(&self, model: &Model) -> bool {
        self.established || model.silence(self) <= self.patience()
    }

    fn has_ended(&self) -> bool {
        let (one, other) = (self.from_client, self.from_server);
        one.has_reset || other.has_reset || one.has_finished && other.has_finished
    }

    fn patience(&self) -> Duration {
        match (self.established, self.protocol) {
            (false, Protocol::Tcp) if self.progress != Progress::None => ESTABLISHED_IDLE,
            (false, _) => HALF_OPEN_IDLE,
            // Whose client does not answer its worker's end has little time.
            (true, Protocol::Tcp)
                if self.from_server.has_finished && self.reach != Reach::Directly =>
            {
                CLOSING_IDLE
            }
            (true, Protocol::Tcp) => ESTABLISHED_IDLE,
            (true, Protocol::Udp) => DATAGRAM_IDLE,
        }
    }
}

impl Side {
    /// Takes note of a packet that this side sends, and that it may have sent as far as its number tells.
    fn sees(&mut self, other: &mut Self, flags: u8, now: Duration) {
        let ends = flags & (FIN | RST) != 0;
        // Another processor may have handled the RST before this packet.
        if self.has_reset && !ends && now - self.last_seen <= REORDER {
            return;
        }
        self.last_seen = now;
        if ends {
            self.has_finished |= flags & FIN != 0;
            self.has_reset |= flags & RST != 0;
            return;
        }
        // A side that continues has neither sent nor received a reset.
        self.has_reset = false;
        if now - other.last_seen > ROUND_TRIP {
            other.has_reset = false;
        }
    }
}
