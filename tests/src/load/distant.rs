//! Clients a round trip away, by raw packets: they handle each packet only after the round trip's time,
//! since not every kernel can delay packets itself.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    mem,
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::libc::ETH_P_IP;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::Tally;
use crate::syn::{ACK, PSH, RST, SYN, Segment, raw_socket};

/// Their addresses, which must be routed to their namespace and be unused there.
pub const DISTANT_NETWORK: &str = "172.16.0.0/16";
const FIRST: u32 = 0xac10_0000;
pub const FIRST_PORT: u16 = 20_000;

const PATIENCE: Duration = Duration::from_secs(10);
/// RFC 6298, and what Linux adds to a measured round trip.
const SYN_AGAIN: Duration = Duration::from_secs(1);
const REQUEST_AGAIN: Duration = Duration::from_millis(200);
/// How long it is waited for a packet while nothing else is to be done.
const TURN: Duration = Duration::from_millis(1);
const RECEIVE_BUFFER: usize = 8 << 20;

/// Only packets to the clients' ports: the answers to a flood from their addresses would fill the queue.
const FILTER: [SockFilter; 4] = [
    // Load the half word at the TCP destination port, behind an IPv4 header without options.
    SockFilter::new(0x28, 0, 0, 22),
    // Jump if greater or equal.
    SockFilter::new(0x35, 0, 1, FIRST_PORT as u32),
    // Return as many bytes of the packet.
    SockFilter::new(0x06, 0, 0, 0xffff),
    SockFilter::new(0x06, 0, 0, 0),
];

#[derive(Debug)]
struct Client {
    started: Instant,
    phase: Phase,
    /// How often it has sent what its phase demands.
    sent: u32,
    /// The next byte it expects.
    expects: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Asked,
    Over,
}

/// What happens to a client at a certain time.
#[derive(Debug, Clone, Copy)]
enum Step {
    Receive {
        flags: u8,
        sequence: u32,
        data: bool,
    },
    /// Repeats what this phase demands, if the client is still in it.
    Repeat(Phase),
    GiveUp,
}

/// The clients, and what is going to happen to them.
#[derive(Debug)]
pub struct Distant<'a> {
    server: SocketAddrV4,
    round_trip: Duration,
    stop: &'a AtomicBool,
    sender: Socket,
    receiver: Socket,
    clients: Vec<Client>,
    /// By the time and the order in which they were planned.
    steps: BTreeMap<(Instant, u64), (usize, Step)>,
    planned: u64,
    open: usize,
    tally: Tally,
}

impl<'a> Distant<'a> {
    /// Prepares clients in the namespace of this thread.
    ///
    /// # Errors
    /// When it may not open raw sockets.
    pub fn new(server: SocketAddrV4, round_trip: Duration, stop: &'a AtomicBool) -> Result<Self> {
        let every = i32::from((ETH_P_IP as u16).to_be());
        let receiver = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(every)))
            .context("open a packet socket")?;
        receiver.set_read_timeout(Some(TURN))?;
        receiver.set_recv_buffer_size(RECEIVE_BUFFER)?;
        receiver.attach_filter(&FILTER)?;
        Ok(Self {
            server,
            round_trip,
            stop,
            sender: raw_socket()?,
            receiver,
            clients: Vec::new(),
            steps: BTreeMap::new(),
            planned: 0,
            open: 0,
            tally: Tally::default(),
        })
    }

    /// Lets so many clients a second connect for `duration`, and waits until each has got its answer or
    /// has given up.
    ///
    /// # Errors
    /// When it is interrupted, or a packet cannot be sent.
    pub fn connect(mut self, per_second: u32, duration: Duration) -> Result<Tally> {
        let whole = (duration.as_secs_f64() * f64::from(per_second)) as usize;
        let begun = Instant::now();
        while self.clients.len() < whole || self.open > 0 {
            if self.stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let due = (begun.elapsed().as_secs_f64() * f64::from(per_second)) as usize;
            while self.clients.len() < due.min(whole) {
                self.start()?;
            }
            let now = Instant::now();
            while let Some(step) = self.steps.first_entry()
                && step.key().0 <= now
            {
                let (client, step) = step.remove();
                self.advance(client, step, now)?;
            }
            self.receive()?;
        }
        Ok(mem::take(&mut self.tally))
    }

    fn start(&mut self) -> Result<()> {
        let (client, now) = (self.clients.len(), Instant::now());
        self.clients.push(Client {
            started: now,
            phase: Phase::Connecting,
            sent: 0,
            expects: 0,
        });
        self.tally.attempts += 1;
        self.open += 1;
        self.plan(now + PATIENCE, client, Step::GiveUp);
        self.send(client, now)
    }

    fn plan(&mut self, at: Instant, client: usize, step: Step) {
        self.planned += 1;
        self.steps.insert((at, self.planned), (client, step));
    }

    /// Plans what the packets that have come do to their clients.
    fn receive(&mut self) -> Result<()> {
        let mut packet = [0; 2048];
        loop {
            let length = match (&self.receiver).read(&mut packet) {
                Ok(length) => length,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error).context("receive packets"),
            };
            let Some(segment) = Segment::parse(&packet[..length]) else {
                continue;
            };
            if segment.source != self.server {
                continue;
            }
            let client = u32::from(*segment.destination.ip()).wrapping_sub(FIRST) as usize;
            if client < self.clients.len() && segment.destination == client_address(client) {
                let step = Step::Receive {
                    flags: segment.flags,
                    sequence: segment.sequence,
                    data: !segment.data.is_empty(),
                };
                self.plan(Instant::now() + self.round_trip, client, step);
            }
        }
    }

    fn advance(&mut self, number: usize, step: Step, now: Instant) -> Result<()> {
        let client = &mut self.clients[number];
        let age = now.duration_since(client.started);
        match (client.phase, step) {
            (phase, Step::Repeat(of)) if of == phase => return self.send(number, now),
            (Phase::Over, _) | (_, Step::Repeat(_)) => return Ok(()),
            (_, Step::GiveUp) => self.tally.fail(ErrorKind::TimedOut),
            (phase, Step::Receive { flags, .. }) if flags & RST != 0 => {
                self.tally.fail(match phase {
                    Phase::Connecting => ErrorKind::ConnectionRefused,
                    _ => ErrorKind::ConnectionReset,
                });
            }
            (
                Phase::Connecting,
                Step::Receive {
                    flags, sequence, ..
                },
            ) if flags & (SYN | ACK) == SYN | ACK => {
                client.phase = Phase::Asked;
                client.sent = 0;
                client.expects = sequence.wrapping_add(1);
                self.tally.established(age);
                return self.send(number, now);
            }
            (Phase::Asked, Step::Receive { data: true, .. }) => self.tally.answered(age),
            (_, Step::Receive { .. }) => return Ok(()),
        }
        self.clients[number].phase = Phase::Over;
        self.open -= 1;
        // Nothing shall be left of it anywhere.
        self.send(number, now)
    }

    /// Sends what the client's phase demands, and plans to do so again.
    fn send(&mut self, number: usize, now: Instant) -> Result<()> {
        let client = &mut self.clients[number];
        let (flags, offset, data, again): (_, _, &[u8], _) = match client.phase {
            Phase::Connecting => (SYN, 0, b"", Some(SYN_AGAIN)),
            Phase::Asked => (PSH | ACK, 1, b"w", Some(self.round_trip + REQUEST_AGAIN)),
            Phase::Over => (RST | ACK, 2, b"", None),
        };
        let segment = Segment {
            source: client_address(number),
            destination: self.server,
            sequence: (number as u32)
                .wrapping_mul(0x85eb_ca6b)
                .wrapping_add(offset),
            acknowledged: client.expects,
            flags,
            data,
        };
        let server = SockAddr::from(self.server);
        self.sender
            .send_to(&segment.packet(), &server)
            .context("send a packet")?;
        if let Some(again) = again {
            let (at, phase) = (now + again * (1 << client.sent.min(6)), client.phase);
            client.sent += 1;
            self.plan(at, number, Step::Repeat(phase));
        }
        Ok(())
    }
}

pub fn client_address(client: usize) -> SocketAddrV4 {
    let port = FIRST_PORT + (client % 40_000) as u16;
    SocketAddrV4::new(Ipv4Addr::from(FIRST + client as u32), port)
}
