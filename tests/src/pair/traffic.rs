//! Clients whose connections live while managers change: each lost one is known, with its age.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    mem,
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::Socket;

use super::network::{APPLICATION_PORT, LOAD_PORT, SERVICE_ADDRESS};
use crate::{
    load::{ANSWER_BYTES, attempt, raise_open_files},
    migration::{DOWNLOAD, NEWS, PATTERN_BYTES, PATTERN_SEED, UPLOAD, verify},
    namespace::Namespace,
    transfer::random_bytes,
};

/// What [`crate::load::Server`] takes for "answer, and wait for more".
const REQUEST: &[u8] = b"w";
/// The same for "answer, and end the connection".
const LAST_REQUEST: &[u8] = b"f";
/// How long a connection may go without the answer it waits for.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connections that say nothing between two checks.
#[derive(Debug)]
pub struct Idle(Vec<TcpStream>);

impl Idle {
    /// Opens so many, from the one client address, and has each answered once.
    ///
    /// # Errors
    /// When one is refused or not answered.
    pub fn open(client: &Namespace, connections: usize) -> Result<Self> {
        raise_open_files()?;
        let open = || -> io::Result<Self> {
            let target = SocketAddr::from(SocketAddrV4::new(SERVICE_ADDRESS, LOAD_PORT));
            let streams = (0..connections).map(|_| {
                let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(stream)
            });
            streams.collect::<io::Result<_>>().map(Self)
        };
        let mut idle = client.enter(open)?.context("open idle connections")?;
        let lost = idle.check();
        ensure!(
            lost == 0,
            "{lost} of {connections} idle connections were never answered"
        );
        Ok(idle)
    }

    /// Uses every connection once, drops the broken ones, and returns how many these are.
    pub fn check(&mut self) -> usize {
        let before = self.0.len();
        let mut requested = mem::take(&mut self.0);
        requested.retain_mut(|stream| stream.write_all(REQUEST).is_ok());
        requested.retain_mut(|stream| stream.read_exact(&mut [0; ANSWER_BYTES]).is_ok());
        self.0 = requested;
        before - self.0.len()
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// A client that sends nothing but its first byte, and hears from its worker all the time.
#[derive(Debug)]
pub struct Listener(TcpStream);

impl Listener {
    /// Connects from `client`, and waits for the first bytes.
    ///
    /// # Errors
    /// When it is refused or hears nothing.
    pub fn open(client: &Namespace) -> Result<Self> {
        let target = SocketAddr::from(SocketAddrV4::new(SERVICE_ADDRESS, APPLICATION_PORT));
        let connect = || TcpStream::connect_timeout(&target, PATIENCE);
        let mut stream = client.enter(connect)?.context("connect a listener")?;
        stream.write_all(&[NEWS])?;
        let mut listener = Self(stream);
        listener.receive(PATIENCE)?;
        Ok(listener)
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn discard_received(&mut self) -> Result<()> {
        self.0.set_nonblocking(true)?;
        let read = io::copy(&mut self.0, &mut io::sink());
        self.0.set_nonblocking(false)?;
        match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("listen"),
            Ok(_) => bail!("the worker has ended the connection"),
        }
    }

    /// Waits for some more bytes.
    ///
    /// # Errors
    /// When none come within `most`, or the connection is broken.
    pub fn receive(&mut self, most: Duration) -> Result<()> {
        self.0.set_read_timeout(Some(most.max(TURN)))?;
        match self.0.read(&mut [0; PORTION]).context("listen")? {
            0 => bail!("the worker has ended the connection"),
            _ => Ok(()),
        }
    }
}

/// How long each connection of a [`Turnover`] lives, and how often it asks.
const LIFE: u32 = 3;
const INTERVAL: Duration = Duration::from_secs(1);
const EVENTS: usize = 1024;
/// After so many new connections the client looks what has become of earlier ones, also when it is late.
const BATCH: u64 = 32;

/// A connection that has come to its end.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub started: Instant,
    /// When the handshake was complete at the client.
    pub established: Option<Instant>,
    /// When the first answer was there.
    pub answered: Option<Instant>,
    pub ended: Instant,
    pub failure: Option<ErrorKind>,
}

/// A client that opens connections at a rate, each of which lives for some seconds and asks once a second. Their
/// workers end them: a client that ends first keeps each port in TIME_WAIT for a minute, and when half of its ports are
/// kept, Linux takes milliseconds to find another one.
#[derive(Debug)]
pub struct Turnover {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Record>>>>,
}

/// What became of the connections of a [`Turnover`], in the order of their ends.
#[derive(Debug)]
pub struct TurnoverReport(pub Vec<Record>);

impl Record {
    /// Returns how long before `event` the connection was established; zero if it was later, or never.
    pub fn age_at(&self, event: Instant) -> Duration {
        let age = self
            .established
            .map(|it| event.saturating_duration_since(it));
        age.unwrap_or_default()
    }
}

impl Turnover {
    /// Starts to open so many connections a second from `client`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(client: &Namespace, per_second: u32) -> Result<Self> {
        raise_open_files()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = client.spawn(move || Rotation::new()?.run(per_second, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Opens no more, waits for the last to end, and returns what became of all.
    ///
    /// # Errors
    /// When the client itself has failed.
    pub fn finish(mut self) -> Result<TurnoverReport> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the client has ended")?;
        thread
            .join()
            .map_err(|_| anyhow!("the client panicked"))?
            .map(TurnoverReport)
    }
}

impl Drop for Turnover {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl TurnoverReport {
    /// Returns the connections that were established before `event` and not at their end then.
    pub fn open_at(&self, event: Instant) -> impl Iterator<Item = &Record> {
        let was_open = move |record: &&Record| {
            record.established.is_some_and(|it| it <= event) && record.ended > event
        };
        self.0.iter().filter(was_open)
    }

    /// Returns the connections that were open at some time between the two.
    pub fn between(&self, from: Instant, until: Instant) -> Self {
        let was_open = |record: &&Record| record.started < until && record.ended >= from;
        Self(self.0.iter().filter(was_open).copied().collect())
    }

    /// Returns the ages at `event` of the connections that were open then and failed later, in ascending order.
    pub fn ages_of_lost(&self, event: Instant) -> Vec<Duration> {
        let lost = self
            .open_at(event)
            .filter(|record| record.failure.is_some());
        let mut ages: Vec<_> = lost.map(|record| record.age_at(event)).collect();
        ages.sort_unstable();
        ages
    }

    /// Returns how long after `event` a connection was answered that was begun after it.
    pub fn first_answer_after(&self, event: Instant) -> Option<Duration> {
        let begun = self.0.iter().filter(|record| record.started > event);
        let answers = begun.filter_map(|record| record.answered);
        answers.min().map(|it| it.duration_since(event))
    }

    /// Returns the longest time without an answer to a new connection, up to the last of these answers.
    pub fn longest_gap(&self) -> Duration {
        let mut answers: Vec<_> = self.0.iter().filter_map(|it| it.answered).collect();
        answers.sort_unstable();
        let gaps = answers.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    pub fn failures(&self) -> Vec<Record> {
        let failed = self.0.iter().filter(|record| record.failure.is_some());
        failed.copied().collect()
    }

    /// # Panics
    /// When a connection failed, or there was none.
    pub fn assert_no_failure(&self) {
        let failures = self.failures();
        assert!(!self.0.is_empty(), "there was no connection");
        assert!(
            failures.is_empty(),
            "{} of {} connections failed, as {:?}",
            failures.len(),
            self.0.len(),
            &failures[..failures.len().min(5)]
        );
    }
}

/// The connections of a [`Turnover`] on its thread.
struct Rotation {
    epoll: Epoll,
    connections: Vec<Option<Open>>,
    vacant: Vec<usize>,
    /// When which connection asks again, and which is given up: ascending, since all wait equally long.
    due_requests: VecDeque<(Instant, usize, u64)>,
    to_expire: VecDeque<(Instant, usize, u64)>,
    records: Vec<Record>,
    next: u64,
}

/// What an event has changed.
enum Progress {
    None,
    Answered,
    Ended,
}

struct Open {
    socket: Socket,
    number: u64,
    record: Record,
    requests: u32,
    /// How much of the current answer is missing.
    missing: usize,
}

impl Rotation {
    fn new() -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            connections: Vec::new(),
            vacant: Vec::new(),
            due_requests: VecDeque::new(),
            to_expire: VecDeque::new(),
            records: Vec::new(),
            next: 0,
        })
    }

    fn run(mut self, per_second: u32, stop: &AtomicBool) -> Result<Vec<Record>> {
        let begun = Instant::now();
        loop {
            let stopped = stop.load(Ordering::Relaxed);
            let due = (begun.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
            if !stopped {
                let late = due.saturating_sub(self.next);
                (0..late.min(BATCH)).for_each(|_| self.start());
            }
            if stopped && self.connections.iter().all(Option::is_none) {
                return Ok(self.records);
            }
            self.poll()?;
            self.send_due_requests();
            self.expire();
        }
    }

    fn start(&mut self) {
        let number = self.next;
        self.next += 1;
        let target = SocketAddrV4::new(SERVICE_ADDRESS, LOAD_PORT);
        let slot = self.vacant.pop().unwrap_or(self.connections.len());
        let begun = attempt::connect(None::<Ipv4Addr>, target).and_then(|(socket, started)| {
            let changes = EpollFlags::EPOLLIN
                | EpollFlags::EPOLLOUT
                | EpollFlags::EPOLLRDHUP
                | EpollFlags::EPOLLET;
            self.epoll
                .add(&socket, EpollEvent::new(changes, slot as u64))?;
            Ok((socket, started))
        });
        let now = Instant::now();
        let mut record = Record {
            started: now,
            established: None,
            answered: None,
            ended: now,
            failure: None,
        };
        match begun {
            Ok((socket, started)) => {
                record.started = started;
                if slot == self.connections.len() {
                    self.connections.push(None);
                }
                self.connections[slot] = Some(Open {
                    socket,
                    number,
                    record,
                    requests: 0,
                    missing: 0,
                });
                self.to_expire.push_back((started + PATIENCE, slot, number));
            }
            Err(error) => {
                record.failure = Some(error.kind());
                self.records.push(record);
                self.vacant.push(slot);
            }
        }
    }

    fn poll(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, 1_u8) {
            Err(nix::Error::EINTR) => 0,
            other => other?,
        };
        let now = Instant::now();
        for event in &events[..count] {
            let slot = event.data() as usize;
            let Some(open) = &mut self.connections[slot] else {
                continue;
            };
            match open.advance(now) {
                Ok(Progress::None) => {}
                Ok(Progress::Answered) => {
                    self.due_requests
                        .push_back((now + INTERVAL, slot, open.number));
                }
                Ok(Progress::Ended) => self.end(slot, None),
                Err(error) => self.end(slot, Some(error.kind())),
            }
        }
        Ok(())
    }

    fn send_due_requests(&mut self) {
        let now = Instant::now();
        while let Some((_, slot, number)) = self.due_requests.pop_front_if(|it| it.0 <= now) {
            let Some(open) = self.connections[slot]
                .as_mut()
                .filter(|it| it.number == number)
            else {
                continue;
            };
            self.to_expire.push_back((now + PATIENCE, slot, number));
            if let Err(error) = open.send_request() {
                self.end(slot, Some(error.kind()));
            }
        }
    }

    /// Gives up connections that have waited for too long for an answer.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((_, slot, number)) = self.to_expire.pop_front_if(|it| it.0 <= now) {
            let open = self.connections[slot].as_ref();
            let waits = open.filter(|it| it.number == number && it.is_waiting());
            match waits.map(|it| it.waits_since() + PATIENCE) {
                Some(due) if due <= now => self.end(slot, Some(ErrorKind::TimedOut)),
                Some(due) => self.to_expire.push_back((due, slot, number)),
                None => {}
            }
        }
    }

    fn end(&mut self, slot: usize, failure: Option<ErrorKind>) {
        let Some(mut open) = self.connections[slot].take() else {
            return;
        };
        open.record.failure = failure;
        open.record.ended = Instant::now();
        self.records.push(open.record);
        self.vacant.push(slot);
    }
}

impl Open {
    /// Goes on after an event.
    fn advance(&mut self, now: Instant) -> io::Result<Progress> {
        if self.record.established.is_none() {
            if let Some(error) = self.socket.take_error()? {
                return Err(error);
            }
            self.record.established = Some(now);
            self.send_request()?;
            return Ok(Progress::None);
        }
        let mut answer = [0; ANSWER_BYTES];
        loop {
            match self.socket.read(&mut answer) {
                Ok(0) if self.is_last() && self.missing == 0 => return Ok(Progress::Ended),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) if length < self.missing => self.missing -= length,
                Ok(_) => {
                    self.missing = 0;
                    self.record.answered.get_or_insert(now);
                    if !self.is_last() {
                        return Ok(Progress::Answered);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::None),
                Err(error) => return Err(error),
            }
        }
    }

    fn send_request(&mut self) -> io::Result<()> {
        self.requests += 1;
        self.socket.write_all(if self.is_last() {
            LAST_REQUEST
        } else {
            REQUEST
        })?;
        self.record.ended = Instant::now();
        self.missing = ANSWER_BYTES;
        Ok(())
    }

    fn is_last(&self) -> bool {
        self.requests > LIFE
    }

    fn is_waiting(&self) -> bool {
        self.record.established.is_none() || self.missing > 0 || self.is_last()
    }

    fn waits_since(&self) -> Instant {
        match self.requests {
            0 => self.record.started,
            _ => self.record.ended,
        }
    }
}

/// How many streams of each kind a [`Streams`] has.
#[derive(Debug, Clone, Copy)]
pub struct StreamCounts {
    pub downloads: usize,
    pub uploads: usize,
    /// Both ends send, as over a WebSocket.
    pub dialogues: usize,
}

/// Bytes of each download and upload in each turn, so that a stream lasts as long as it must.
const PORTION: usize = 2048;
const TURN: Duration = Duration::from_millis(20);

/// A client with steady streams, every byte of which is checked.
#[derive(Debug)]
pub struct Streams {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<StreamsReport>>>,
}

/// What became of streams.
#[derive(Debug, Clone)]
pub struct StreamsReport {
    /// What broke, with how far it had come.
    pub broken: Vec<String>,
    pub bytes: u64,
    /// The longest time in which a stream did not move.
    pub longest_pause: Duration,
}

impl StreamsReport {
    /// # Panics
    /// When a stream broke, or nothing was transferred.
    pub fn assert_no_failure(&self) {
        assert!(self.broken.is_empty(), "{:#?}", self.broken);
        assert!(self.bytes > 0, "nothing was transferred");
    }
}

impl Streams {
    /// Opens the streams from `client` and lets them run.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(client: &Namespace, counts: StreamCounts) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = client.spawn(move || run_streams(counts, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the streams, uploads with the server's confirmation.
    ///
    /// # Errors
    /// When the client itself has failed, or a stream could not be opened.
    pub fn finish(mut self) -> Result<StreamsReport> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the client has ended")?;
        thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Download,
    Upload,
    Dialogue,
}

#[derive(Debug)]
struct Stream {
    socket: TcpStream,
    kind: Kind,
    sent: u64,
    received: u64,
    moved: Instant,
    longest_pause: Duration,
    broken: Option<io::Error>,
}

fn run_streams(counts: StreamCounts, stop: &AtomicBool) -> Result<StreamsReport> {
    let pattern = random_bytes(PATTERN_SEED, PATTERN_BYTES);
    let mut streams = Vec::new();
    for (kind, count) in [
        (Kind::Download, counts.downloads),
        (Kind::Upload, counts.uploads),
        (Kind::Dialogue, counts.dialogues),
    ] {
        for _ in 0..count {
            streams.push(Stream::open(kind).with_context(|| format!("open a {kind:?}"))?);
        }
    }
    while !stop.load(Ordering::Relaxed) {
        for stream in &mut streams {
            stream.proceed(&pattern);
        }
        thread::sleep(TURN);
    }
    let bytes = streams.iter().map(|it| it.sent + it.received).sum();
    let longest_pause = streams.iter().map(Stream::pause).max().unwrap_or_default();
    let broken = streams.into_iter().filter_map(Stream::finish).collect();
    Ok(StreamsReport {
        broken,
        bytes,
        longest_pause,
    })
}

impl Stream {
    fn open(kind: Kind) -> io::Result<Self> {
        let target = SocketAddr::from(SocketAddrV4::new(SERVICE_ADDRESS, APPLICATION_PORT));
        let mut socket = TcpStream::connect_timeout(&target, PATIENCE)?;
        socket.set_nodelay(true)?;
        match kind {
            Kind::Download => socket.write_all(&[DOWNLOAD])?,
            Kind::Upload => socket.write_all(&[UPLOAD])?,
            // A byte that is neither of these.
            Kind::Dialogue => {
                socket.write_all(b"=")?;
                socket.read_exact(&mut [0])?;
            }
        }
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            kind,
            sent: 0,
            received: 0,
            moved: Instant::now(),
            longest_pause: Duration::ZERO,
            broken: None,
        })
    }

    fn proceed(&mut self, pattern: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        let moved = match self.kind {
            Kind::Download => self.receive(PORTION, pattern),
            Kind::Upload => self.send(PORTION, pattern),
            // What has come back; then something new, whether or not all has.
            Kind::Dialogue => self.receive(PORTION, pattern).and_then(|received| {
                let ahead = self.sent - self.received;
                match ahead < PORTION as u64 {
                    true => self.send(64, pattern).map(|_| received),
                    false => Ok(received),
                }
            }),
        };
        match moved {
            Ok(0) if self.moved.elapsed() > PATIENCE => {
                self.broken = Some(ErrorKind::TimedOut.into());
            }
            Ok(0) => {}
            Ok(_) => {
                self.longest_pause = self.pause();
                self.moved = Instant::now();
            }
            Err(error) => self.broken = Some(error),
        }
    }

    fn pause(&self) -> Duration {
        self.longest_pause.max(self.moved.elapsed())
    }

    fn receive(&mut self, most: usize, pattern: &[u8]) -> io::Result<usize> {
        let mut buffer = [0; PORTION];
        match self.socket.read(&mut buffer[..most]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.received = verify(self.received, &buffer[..length], pattern)?;
                Ok(length)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, most: usize, pattern: &[u8]) -> io::Result<usize> {
        let start = (self.sent % pattern.len() as u64) as usize;
        let end = (start + most).min(pattern.len());
        match self.socket.write(&pattern[start..end]) {
            Ok(length) => {
                self.sent += length as u64;
                Ok(length)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Ends the stream, and returns what was wrong with it.
    fn finish(mut self) -> Option<String> {
        let broken = match self.broken.take() {
            None if self.kind == Kind::Upload => self.confirm().err(),
            other => other,
        };
        let Self {
            kind,
            sent,
            received,
            ..
        } = self;
        broken
            .map(|error| format!("{kind:?} after {sent} bytes sent, {received} received: {error}"))
    }

    fn confirm(&mut self) -> io::Result<()> {
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(PATIENCE))?;
        self.socket.shutdown(Shutdown::Write)?;
        let mut count = [0; 8];
        self.socket.read_exact(&mut count)?;
        match u64::from_be_bytes(count) == self.sent {
            true => Ok(()),
            false => Err(ErrorKind::InvalidData.into()),
        }
    }
}
