//! The clients of a worker that moves. They record their answers and losses.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use memlb_tests::{Namespace, wait_until};

/// Clients that hold a connection.
pub const HELD: usize = 20;
/// Between an answer to such a client and its next request, and between new connections.
pub const PACE: Duration = Duration::from_millis(50);
/// Size of a piece of bulk data. Pieces limit the throughput, so that the machine has time for the other clients.
pub const PIECE: usize = 32 * 1024;
const PIECES_EVERY: Duration = Duration::from_millis(8);
/// Like those of a telephone call.
const DATAGRAM: usize = 172;
const DATAGRAMS_EVERY: Duration = Duration::from_millis(10);
/// Interval at which a waiting client checks whether to stop.
const TURN: Duration = Duration::from_millis(100);
const NEW_CONNECTION_PATIENCE: Duration = Duration::from_secs(10);

/// The destinations of the clients.
#[derive(Debug, Clone, Copy)]
pub struct Targets {
    pub connections: SocketAddr,
    /// `None` if the balancer takes no UDP.
    pub datagrams: Option<SocketAddr>,
}

/// The records of all clients.
#[derive(Debug)]
pub struct ClientLog {
    pub held: Vec<HeldClient>,
    pub new: Vec<NewConnection>,
    pub bulk: HeldClient,
    pub datagrams: Option<Vec<Datagram>>,
}

/// The record of a client that holds a connection, and reconnects when it has lost it.
#[derive(Debug, Default)]
pub struct HeldClient {
    /// When each answer was complete.
    pub answers: Vec<Instant>,
    /// When a connection was lost.
    pub lost: Vec<Instant>,
}

/// A connection for one request.
#[derive(Debug)]
pub struct NewConnection {
    pub begun: Instant,
    /// `None` if it failed.
    pub took: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
pub struct Datagram {
    pub sent: Instant,
    /// `None` if it did not come back.
    pub round_trip: Option<Duration>,
}

/// The running clients.
#[derive(Debug)]
pub struct Clients {
    stop: Arc<AtomicBool>,
    begun: Instant,
    /// When each of the held connections was last answered, in µs since `begun`.
    answered: Vec<Arc<AtomicU64>>,
    held: Vec<JoinHandle<HeldClient>>,
    new: JoinHandle<Vec<NewConnection>>,
    bulk: JoinHandle<HeldClient>,
    datagrams: Option<JoinHandle<io::Result<Vec<Datagram>>>>,
}

impl Clients {
    /// Starts all clients in `namespace`.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn start(namespace: &Namespace, targets: Targets) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let answered: Vec<_> = (0..=HELD).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let client = |index: usize, bytes, pace| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered[index]));
            let client = Client {
                target: targets.connections,
                bytes,
                pace,
                stop,
                begun,
                answered,
            };
            thread::spawn(move || client.run())
        };
        // Threads inherit the namespace of the thread that starts them.
        namespace.enter(|| Self {
            held: (0..HELD).map(|index| client(index, 16, PACE)).collect(),
            bulk: client(HELD, PIECE, PIECES_EVERY),
            new: {
                let stop = Arc::clone(&stop);
                thread::spawn(move || open_connections(targets.connections, &stop))
            },
            datagrams: targets.datagrams.map(|target| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || send_datagrams(target, &stop))
            }),
            stop: Arc::clone(&stop),
            begun,
            answered: answered.clone(),
        })
    }

    /// Waits until every client with a connection was answered after `moment`.
    ///
    /// # Errors
    /// One of them was not answered within `deadline`.
    pub fn wait_for_answers(&self, moment: Instant, deadline: Duration) -> Result<()> {
        let after = micros(moment.saturating_duration_since(self.begun));
        let answered = || {
            self.answered
                .iter()
                .all(|it| it.load(Ordering::Relaxed) > after)
        };
        wait_until(deadline, "every client to be answered", answered).map(drop)
    }

    /// Stops the clients, and returns their records.
    ///
    /// # Errors
    /// A client failed.
    pub fn stop(self) -> Result<ClientLog> {
        self.stop.store(true, Ordering::Relaxed);
        let held = self.held.into_iter().map(join).collect::<Result<_>>()?;
        let datagrams = self.datagrams.map(|it| join(it)?.context("send datagrams"));
        Ok(ClientLog {
            held,
            new: join(self.new)?,
            bulk: join(self.bulk)?,
            datagrams: datagrams.transpose()?,
        })
    }
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a client panicked"))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Sends `bytes` repeatedly, each time after their echo has arrived.
struct Client {
    target: SocketAddr,
    bytes: usize,
    pace: Duration,
    stop: Arc<AtomicBool>,
    begun: Instant,
    answered: Arc<AtomicU64>,
}

impl Client {
    fn run(&self) -> HeldClient {
        let mut log = HeldClient::default();
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let stream = match connection.take() {
                Some(stream) => Ok(stream),
                None => connect(self.target, Duration::from_secs(1)),
            };
            let Ok(mut stream) = stream else {
                thread::sleep(PACE);
                continue;
            };
            match self.request(&mut stream) {
                Ok(true) => {
                    let now = Instant::now();
                    log.answers.push(now);
                    let since = now.saturating_duration_since(self.begun);
                    self.answered.store(micros(since), Ordering::Relaxed);
                    connection = Some(stream);
                }
                Ok(false) => break,
                Err(_) => log.lost.push(Instant::now()),
            }
            thread::sleep(self.pace.saturating_sub(began.elapsed()));
        }
        log
    }

    /// Returns false if the end comes before the answer.
    fn request(&self, stream: &mut TcpStream) -> io::Result<bool> {
        let request = vec![b'e'; self.bytes];
        let mut answer = vec![0; self.bytes];
        let (mut written, mut read) = (0, 0);
        while read < self.bytes {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if written < self.bytes {
                match stream.write(&request[written..]) {
                    Ok(some) => written += some,
                    Err(error) if is_timeout(&error) => continue,
                    Err(error) => return Err(error),
                }
            }
            match stream.read(&mut answer[read..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(some) => read += some,
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if answer == request {
            Ok(true)
        } else {
            Err(ErrorKind::InvalidData.into())
        }
    }
}

fn connect(target: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TURN))?;
    stream.set_write_timeout(Some(TURN))?;
    Ok(stream)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn open_connections(target: SocketAddr, stop: &AtomicBool) -> Vec<NewConnection> {
    let mut log = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answered = request_once(target).is_ok();
        log.push(NewConnection {
            begun,
            took: answered.then(|| begun.elapsed()),
        });
        thread::sleep(PACE.saturating_sub(begun.elapsed()));
    }
    log
}

/// Opens a connection for one request.
pub fn request_once(target: SocketAddr) -> io::Result<()> {
    let mut stream = connect(target, NEW_CONNECTION_PATIENCE)?;
    stream.set_read_timeout(Some(NEW_CONNECTION_PATIENCE))?;
    stream.write_all(b"new")?;
    stream.read_exact(&mut [0; 3])
}

fn send_datagrams(target: SocketAddr, stop: &AtomicBool) -> io::Result<Vec<Datagram>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    let mut log: Vec<Datagram> = Vec::new();
    let mut ended = None;
    let mut next = Instant::now();
    // After the last one, time for its way back.
    while ended.is_none_or(|at: Instant| at.elapsed() < TURN * 2) {
        let now = Instant::now();
        if stop.load(Ordering::Relaxed) {
            ended.get_or_insert(now);
        } else if now >= next {
            let mut datagram = [0; DATAGRAM];
            let number = u32::try_from(log.len()).unwrap_or(u32::MAX);
            datagram[..4].copy_from_slice(&number.to_be_bytes());
            // An ICMP error about an earlier one is not this one's.
            _ = socket.send(&datagram).or_else(|_| socket.send(&datagram));
            log.push(Datagram {
                sent: now,
                round_trip: None,
            });
            next += DATAGRAMS_EVERY;
        }
        let mut answer = [0; DATAGRAM];
        while let Ok(DATAGRAM) = socket.recv(&mut answer) {
            let number = answer.first_chunk().map_or(0, |it| u32::from_be_bytes(*it));
            if let Some(entry) = log.get_mut(number as usize) {
                entry.round_trip.get_or_insert_with(|| entry.sent.elapsed());
            }
        }
        thread::sleep(Duration::from_micros(500));
    }
    Ok(log)
}
