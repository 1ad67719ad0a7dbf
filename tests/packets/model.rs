//! What the datapath is meant to do, in the plainest terms: a list of connections.
//!
//! It shares no code with the programs, keeps no maps and knows of no entries; only which of the
//! free ports a new connection gets is left to the program.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use lb_common::{maps::state, verdict::Verdict};

use crate::{
    bench::{CLOSING_IDLE, ESTABLISHED_IDLE, HALF_OPEN_IDLE},
    frame::{ACK, FIN, RST, SYN},
    lan::{FALLBACK, Server, WORKER1, WORKER2},
};

/// A client, by its place in the test's list.
pub type Client = usize;

#[derive(Clone, Debug)]
pub struct Model {
    now: Duration,
    ports: RangeInclusive<u16>,
    pub selected: u32,
    states: [u8; 3],
    pub connections: Vec<Connection>,
}

#[derive(Clone, Debug)]
pub struct Connection {
    pub client: Client,
    pub server: Server,
    /// The manager's port towards the worker; the client's own towards the manager's own server.
    pub port: u16,
    pub established: bool,
    /// When the client sent its last SYN.
    begun: Duration,
    /// The sequence number of the worker's SYN-ACK.
    answer: Option<u32>,
    from_client: Side,
    from_server: Side,
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
    /// To this server, from this port.
    Goes(Server, u16),
    /// To this client, from this server.
    Comes(Client, Server),
    /// As the first of a connection to this server, from one of these ports.
    Opens(Server, BTreeSet<u16>),
}

impl Model {
    pub fn new(ports: RangeInclusive<u16>) -> Self {
        Self {
            now: Duration::ZERO,
            ports,
            selected: WORKER1.id,
            states: [state::UP; 3],
            connections: Vec::new(),
        }
    }

    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    pub fn state(&mut self, server: Server, to: u8) {
        self.states[server.id as usize - 1] = to;
    }

    /// A client sends a segment to the service.
    pub fn request(&mut self, client: Client, flags: u8, acknowledges: u32) -> Expected {
        let Some(at) = self.connections.iter().position(|one| one.client == client) else {
            return self.stranger(flags);
        };
        let connection = &self.connections[at];
        let state = self.state_of(connection.server);
        let opens = flags & (SYN | ACK | RST | FIN) == SYN;
        let is_over = connection.established && connection.has_ended()
            || self.silence(connection) > connection.patience();
        if !connection.established && is_over {
            self.connections.remove(at);
            return self.stranger(flags);
        }
        // A worker that does not answer is left for another one that can be had.
        let other = self.chosen().filter(|other| *other != connection.server);
        let is_repeated = !self.silence(connection).is_zero() && connection.answer.is_none();
        let leaves =
            !connection.established && (state != state::UP || is_repeated && other.is_some());
        if opens && (is_over || leaves) {
            self.connections.remove(at);
            return self.stranger(flags);
        }
        if state != state::UP && state != state::DRAINING {
            self.connections.remove(at);
            return Expected::Passes(Verdict::BackendDown);
        }
        let now = self.now;
        let connection = &mut self.connections[at];
        if let Some(sequence) = connection.answer
            && flags & (SYN | ACK | RST) == ACK
            && acknowledges == sequence.wrapping_add(1)
        {
            connection.established = true;
        }
        // Before the client has proved that it is there, its FIN says nothing.
        let proven = if connection.established {
            flags
        } else {
            flags & !FIN
        };
        connection.from_client.sees(proven, now);
        if opens {
            connection.begun = now;
        }
        let goes = Expected::Goes(connection.server, connection.port);
        if !connection.established && flags & RST != 0 {
            self.connections.remove(at);
        }
        goes
    }

    /// A worker sends a segment to one of the manager's ports.
    pub fn reply(&mut self, worker: Server, port: u16, flags: u8, sequence: u32) -> Expected {
        self.answer(flags, sequence, |one| one.holds(worker, port))
    }

    /// The manager's own server sends a segment to a client.
    pub fn own_reply(&mut self, client: Client, flags: u8, sequence: u32) -> Expected {
        self.answer(flags, sequence, |one| {
            one.server == FALLBACK && one.client == client
        })
    }

    fn answer(
        &mut self,
        flags: u8,
        sequence: u32,
        is_part_of: impl Fn(&Connection) -> bool,
    ) -> Expected {
        let now = self.now;
        let Some(at) = self.connections.iter().position(is_part_of) else {
            return Expected::Passes(Verdict::NotOurs);
        };
        if !self.connections[at].is_under_way(self) {
            self.connections.remove(at);
            return Expected::Passes(Verdict::NotOurs);
        }
        let connection = &mut self.connections[at];
        connection.from_server.sees(flags, now);
        if flags & (SYN | ACK | RST) == SYN | ACK && !connection.established {
            connection.answer = Some(sequence);
        }
        let comes = Expected::Comes(connection.client, connection.server);
        if !connection.established && flags & RST != 0 {
            self.connections.remove(at);
        }
        comes
    }

    /// The connection that [`Expected::Opens`] announced got its port, whose last holder is gone.
    pub fn opened(&mut self, client: Client, server: Server, port: u16) {
        self.connections.retain(|one| !one.holds(server, port));
        let begun = Side {
            last_seen: self.now,
            ..Side::default()
        };
        self.connections.push(Connection {
            client,
            server,
            port,
            established: false,
            begun: self.now,
            answer: None,
            from_client: begun,
            from_server: begun,
        });
    }

    /// How long the client's side and the server's have been silent.
    pub fn silences(&self, connection: &Connection) -> [Duration; 2] {
        [connection.from_client, connection.from_server].map(|side| self.now - side.last_seen)
    }

    /// Who gets new connections.
    fn chosen(&self) -> Option<Server> {
        let mut servers = [WORKER1, WORKER2, FALLBACK].into_iter();
        let selected = servers.find(|one| one.id == self.selected);
        selected.filter(|server| self.state_of(*server) == state::UP)
    }

    /// How many connections to a server are open.
    pub fn open(&self, server: Server) -> u64 {
        let of_server = self.connections.iter().filter(|one| one.server == server);
        of_server
            .filter(|one| one.established && !one.has_ended())
            .count() as u64
    }

    fn stranger(&self, flags: u8) -> Expected {
        if flags & (SYN | ACK | RST | FIN) != SYN {
            return Expected::Passes(Verdict::NoFlow);
        }
        match self.chosen() {
            Some(server) => {
                if server == FALLBACK {
                    return Expected::Opens(server, BTreeSet::new());
                }
                let free: BTreeSet<_> = self
                    .ports
                    .clone()
                    .filter(|port| self.is_free(server, *port))
                    .collect();
                if free.is_empty() {
                    Expected::Passes(Verdict::PortsExhausted)
                } else {
                    Expected::Opens(server, free)
                }
            }
            None => Expected::Passes(Verdict::NoBackend),
        }
    }

    fn is_free(&self, server: Server, port: u16) -> bool {
        let holder = self.connections.iter().find(|one| one.holds(server, port));
        holder.is_none_or(|one| {
            let patience = if one.has_ended() {
                CLOSING_IDLE
            } else {
                one.patience()
            };
            self.silence(one) > patience
        })
    }

    pub fn silence(&self, connection: &Connection) -> Duration {
        if !connection.established {
            return self.now - connection.begun;
        }
        let [client, server] = self.silences(connection);
        client.min(server)
    }

    fn state_of(&self, server: Server) -> u8 {
        self.states[server.id as usize - 1]
    }
}

impl Connection {
    /// Whether this is the connection that `worker` knows under the manager's `port`.
    fn holds(&self, worker: Server, port: u16) -> bool {
        worker != FALLBACK && self.server == worker && self.port == port
    }

    /// Whether packets still belong to it: an abandoned handshake is nobody's.
    pub fn is_under_way(&self, model: &Model) -> bool {
        self.established || model.silence(self) <= HALF_OPEN_IDLE
    }

    fn has_ended(&self) -> bool {
        let (one, other) = (self.from_client, self.from_server);
        one.has_reset || other.has_reset || one.has_finished && other.has_finished
    }

    fn patience(&self) -> Duration {
        if self.established {
            ESTABLISHED_IDLE
        } else {
            HALF_OPEN_IDLE
        }
    }
}

impl Side {
    fn sees(&mut self, flags: u8, now: Duration) {
        self.has_finished |= flags & FIN != 0;
        self.has_reset |= flags & RST != 0;
        self.last_seen = now;
    }
}
