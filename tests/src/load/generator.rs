//! A client that opens connections on one thread and measures how long each takes.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    mem,
    net::SocketAddrV4,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{
    Ending, Sources, Tally,
    attempt::{Attempt, AttemptPhase, Progress, connect, reset},
};

/// How long a connection may take from its first SYN to its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many may be on their way at once, at a rate, and while connections are opened to be held.
const MOST_AT_A_RATE: usize = 15_000;
const MOST_TO_BE_HELD: usize = 256;
/// How long it may take to open those that are held.
const OPENING: Duration = Duration::from_secs(60);
/// How long held connections are watched.
const HELD: Duration = Duration::from_secs(1);
/// How long after its time the last connection at a rate may begin.
const LATE: Duration = Duration::from_millis(500);
/// After so many attempts the generator looks what has become of earlier ones.
const BATCH: u64 = 32;
const EVENTS: usize = 1024;

/// What shall be generated.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// Taken in turn.
    pub targets: &'a [SocketAddrV4],
    pub sources: Sources,
    pub ending: Ending,
    /// Set by someone who wants this to end early.
    pub stop: &'a AtomicBool,
}

/// Opens connections from the namespace its methods are called in.
#[derive(Debug)]
pub struct Generator<'a> {
    load: Load<'a>,
    epoll: Epoll,
    attempts: Vec<Option<Attempt>>,
    vacant: Vec<usize>,
    /// The open attempts in the order of their start, among others that have ended.
    pending: VecDeque<(usize, u32)>,
    /// The next connection's number, and the distance to the one after it.
    next: u32,
    stride: u32,
    open: usize,
    /// Whether answered connections stay open.
    holds: bool,
    held: usize,
    tally: Tally,
}

impl<'a> Generator<'a> {
    /// Makes the generator of that number `shard` among so many, which share the load's addresses.
    ///
    /// # Errors
    /// When the kernel refuses an epoll instance.
    pub fn new(load: Load<'a>, shard: u32, shards: u32) -> Result<Self> {
        Ok(Self {
            load,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            attempts: Vec::new(),
            vacant: Vec::new(),
            pending: VecDeque::new(),
            next: shard,
            stride: shards,
            open: 0,
            holds: false,
            held: 0,
            tally: Tally::default(),
        })
    }

    /// Opens so many connections a second for `duration`, and waits until the last has ended.
    ///
    /// # Errors
    /// When it is interrupted.
    pub fn at_rate(&mut self, per_second: u32, duration: Duration) -> Result<Tally> {
        let whole = (duration.as_secs_f64() * f64::from(per_second)) as u64;
        let (begun, mut started) = (Instant::now(), 0);
        while started < whole {
            let elapsed = begun.elapsed();
            if elapsed > duration + LATE {
                // More than the machine can do.
                self.tally.skipped += whole - started;
                break;
            }
            let due = 1 + (elapsed.as_secs_f64() * f64::from(per_second)) as u64;
            let batch = BATCH.min(due.min(whole) - started);
            for _ in 0..batch {
                if self.open < MOST_AT_A_RATE {
                    self.start();
                } else {
                    self.tally.skipped += 1;
                }
            }
            started += batch;
            self.poll(u8::from(started == due))?;
        }
        self.finish()
    }

    /// Opens so many connections, as fast as they are answered, and keeps them open.
    ///
    /// # Errors
    /// When it is interrupted.
    pub fn hold(&mut self, connections: u32) -> Result<Tally> {
        self.holds = true;
        let begun = Instant::now();
        for number in 0..connections {
            while self.open >= MOST_TO_BE_HELD {
                self.poll(1)?;
            }
            if begun.elapsed() > OPENING {
                self.tally.skipped += u64::from(connections - number);
                break;
            }
            self.start();
            if u64::from(number).is_multiple_of(BATCH) {
                self.poll(0)?;
            }
        }
        while self.open > 0 {
            self.poll(1)?;
        }
        let watched = Instant::now();
        while watched.elapsed() < HELD {
            self.poll(1)?;
        }
        self.finish()
    }

    /// Resets every connection that is held.
    pub fn reset_held(&mut self) {
        for attempt in self.attempts.iter().flatten() {
            reset(&attempt.socket);
        }
        self.attempts.clear();
        self.vacant.clear();
        self.pending.clear();
        (self.open, self.held) = (0, 0);
    }

    fn finish(&mut self) -> Result<Tally> {
        while self.open > 0 {
            self.poll(1)?;
        }
        self.pending.clear();
        Ok(mem::take(&mut self.tally))
    }

    fn start(&mut self) {
        let number = self.next;
        self.next = number.wrapping_add(self.stride);
        self.tally.attempts += 1;
        let target = self.load.targets[number as usize % self.load.targets.len()];
        let begun = connect(self.load.sources.address(number), target).and_then(|attempt| {
            let slot = self.vacant.pop().unwrap_or(self.attempts.len());
            let changes = EpollFlags::EPOLLIN
                | EpollFlags::EPOLLOUT
                | EpollFlags::EPOLLRDHUP
                | EpollFlags::EPOLLET;
            self.epoll
                .add(&attempt.0, EpollEvent::new(changes, slot as u64))?;
            Ok((slot, attempt))
        });
        match begun {
            Ok((slot, (socket, started))) => {
                let attempt = Attempt {
                    socket,
                    number,
                    started,
                    phase: AttemptPhase::Connecting,
                };
                if slot == self.attempts.len() {
                    self.attempts.push(None);
                }
                self.attempts[slot] = Some(attempt);
                self.pending.push_back((slot, number));
                self.open += 1;
            }
            Err(error) => self.tally.fail(error.kind()),
        }
    }

    /// Handles what has happened, after at most so many milliseconds.
    fn poll(&mut self, timeout_ms: u8) -> Result<()> {
        if self.load.stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout_ms) {
            Err(nix::Error::EINTR) => 0,
            other => other?,
        };
        let now = Instant::now();
        for event in &events[..count] {
            let slot = event.data() as usize;
            if let Some(attempt) = &mut self.attempts[slot] {
                let progress = attempt.advance(self.load.ending, self.holds, now, &mut self.tally);
                self.handle_progress(slot, progress);
            }
        }
        self.expire(now);
        Ok(())
    }

    fn handle_progress(&mut self, slot: usize, progress: io::Result<Progress>) {
        match progress {
            Ok(Progress::None) => return,
            Ok(Progress::Held) => {
                self.open -= 1;
                self.held += 1;
                return;
            }
            Ok(Progress::Lost) => {
                self.held -= 1;
                self.tally.lost += 1;
            }
            Ok(Progress::Ended) => self.open -= 1,
            Err(error) => {
                self.open -= 1;
                self.tally.fail(error.kind());
            }
        }
        self.attempts[slot] = None;
        self.vacant.push(slot);
    }

    /// Gives up the attempts that have taken too long.
    fn expire(&mut self, now: Instant) {
        while let Some((slot, number)) = self.pending.front().copied() {
            let attempt = self.attempts[slot].as_ref();
            let open = attempt.filter(|it| it.number == number && it.phase != AttemptPhase::Held);
            if open.is_some_and(|it| now.duration_since(it.started) < PATIENCE) {
                return;
            }
            self.pending.pop_front();
            if let Some(attempt) = open {
                reset(&attempt.socket);
                self.handle_progress(slot, Err(ErrorKind::TimedOut.into()));
            }
        }
    }
}
