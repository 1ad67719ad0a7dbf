//! The state of one peer: its queue, what is not acknowledged, and what views show of it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lb_common::maps::FlowRecord;
use tokio::sync::Notify;

use super::{
    PeerState, PeerStatus,
    kernel::Outcomes,
    wire::{About, Refusal},
};
use crate::keys::PeerKeys;

/// The most records that wait for one peer: 3.4 MB, and 3 s of 10,000 connections a second.
pub const QUEUE_RECORDS: usize = 32_768;

/// Of how many frames the delay is shown.
const DELAYS: usize = 1_024;

/// How long a machine counts as living after its last sign of life.
const LIFE: Duration = Duration::from_millis(1_300);

/// How long the programs of a machine without a manager get packets of connections unknown here.
const WITHOUT_MANAGER: Duration = Duration::from_secs(60);

/// How to reach a peer and to know it.
#[derive(Debug, Clone)]
pub struct PeerSettings {
    pub name: String,
    pub address: SocketAddr,
    pub keys: PeerKeys,
}

/// One peer. Everything in it changes in short steps.
#[derive(Debug)]
pub struct RemotePeer {
    pub settings: PeerSettings,
    /// Wakes the sender.
    pub wake: Notify,
    link: Mutex<RemoteState>,
}

/// What changes of a peer.
#[derive(Debug)]
pub struct RemoteState {
    /// What is counted here is what views show; the rest is filled in when it is read.
    pub shown: PeerStatus,
    since: Instant,
    /// What the peer last said of itself.
    pub about: Option<About>,
    /// When the peer started that said it.
    epoch: Option<u64>,
    queue: VecDeque<FlowRecord>,
    /// How many records have left the queue.
    taken: u64,
    /// How many of them the peer has acknowledged.
    known: u64,
    /// Since when the first record of the queue waits.
    queued_at: Instant,
    /// Frames without acknowledgement: sequence, length, time, and whether they hold records.
    unacknowledged: VecDeque<SentFrame>,
    delays: VecDeque<Duration>,
    /// Whether the peer needs all connections.
    pub needs_all: bool,
    /// Whether the sender waits for acknowledgements to send more of all connections.
    pub is_transmitting: bool,
    /// Counts the losses, so that a transmission knows whether one happened meanwhile.
    pub losses: u64,
    last_life: Option<Instant>,
    last_session: Option<Instant>,
}

/// A frame on its way.
#[derive(Debug, Clone, Copy)]
pub struct SentFrame {
    pub sequence: u64,
    pub bytes: usize,
    pub at: Instant,
    /// Whether it holds records of the queue.
    pub matters: bool,
    /// How many records have left the queue up to its end.
    pub taken: u64,
    /// The peer has everything when it acknowledges this.
    pub completes: Option<u64>,
}

impl PeerSettings {
    /// Whether the same machine is meant, with the same keys.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.name, self.address) == (&other.name, other.address)
            && self.keys.is_same_as(&other.keys)
    }
}

impl RemotePeer {
    pub fn new(settings: PeerSettings) -> Self {
        let shown = PeerStatus {
            name: settings.name.clone(),
            address: settings.address.to_string(),
            ..PeerStatus::default()
        };
        Self {
            settings,
            wake: Notify::new(),
            link: Mutex::new(RemoteState {
                shown,
                since: Instant::now(),
                about: None,
                epoch: None,
                queue: VecDeque::new(),
                taken: 0,
                known: 0,
                queued_at: Instant::now(),
                unacknowledged: VecDeque::new(),
                delays: VecDeque::with_capacity(DELAYS),
                needs_all: false,
                is_transmitting: false,
                losses: 0,
                last_life: None,
                last_session: None,
            }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, RemoteState> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records for the peer that wait `since` then, if it is connected.
    pub fn push(&self, records: &[FlowRecord], since: Instant) {
        if self.lock().push(records, since) {
            self.wake.notify_one();
        }
    }

    pub fn status(&self) -> PeerStatus {
        self.lock().status(Instant::now())
    }
}

impl RemoteState {
    pub fn is_connected(&self) -> bool {
        self.shown.state == PeerState::Connected
    }

    fn push(&mut self, records: &[FlowRecord], since: Instant) -> bool {
        if !self.is_connected() {
            return false;
        }
        if self.queue.is_empty() {
            self.queued_at = since;
        }
        let room = QUEUE_RECORDS - self.queue.len();
        let (fitting, lost) = records.split_at(room.min(records.len()));
        self.queue.extend(fitting);
        if !lost.is_empty() {
            self.record_loss(lost.len() as u64);
        }
        true
    }

    /// Notes that the peer lacks records, or may lack some.
    pub fn record_loss(&mut self, records: u64) {
        self.shown.lost_records += records;
        self.shown.complete = false;
        self.needs_all = true;
        self.losses += 1;
    }

    /// Moves at most `most` records of the queue to `into`. Returns since when they wait, and how many have left the
    /// queue.
    pub fn dequeue(&mut self, most: usize, into: &mut Vec<FlowRecord>) -> (Instant, u64) {
        let taken = most.min(self.queue.len());
        into.extend(self.queue.drain(..taken));
        self.taken += taken as u64;
        (self.queued_at, self.taken)
    }

    /// How many records there have been for the peer.
    pub fn reported(&self) -> u64 {
        self.taken + self.queue.len() as u64
    }

    /// Notes the hello of a peer that answers. What the same manager has said since on its own session is newer.
    pub fn handle_hello_reply(&mut self, epoch: u64, about: &About) {
        if self.epoch != Some(epoch) {
            self.handle_hello(epoch, about);
        }
    }

    /// Notes the hello of a peer that has begun a session.
    pub fn handle_hello(&mut self, epoch: u64, about: &About) {
        self.epoch = Some(epoch);
        self.about = Some(about.clone());
    }

    /// Returns what keeps the peer from carrying on every connection among the first `reported` records, and from
    /// taking new ones as this manager does with `serving` backends, in a sentence.
    pub fn missing(&self, reported: u64, serving: u16) -> Option<String> {
        let PeerStatus { name, reason, .. } = &self.shown;
        if !self.is_connected() {
            let reason = reason.as_deref().unwrap_or("it has not answered yet");
            return Some(format!("{name} is not connected: {reason}"));
        }
        if !self.shown.complete {
            return Some(format!("{name} does not know all connections yet"));
        }
        let theirs = self.about.as_ref().map_or(0, |it| it.serving);
        if theirs < serving {
            return Some(format!(
                "{name} has {theirs} usable backends, and this manager {serving}: it has not heard every worker \
                 yet, or has no route to one (memlb status on that machine)"
            ));
        }
        let missing = reported.saturating_sub(self.known);
        (missing > 0).then(|| format!("{name} has not acknowledged {missing} records"))
    }

    /// The next session begins with all connections, which the records are part of.
    fn clear_queue(&mut self) {
        self.taken = self.reported();
        self.queue = VecDeque::new();
        self.unacknowledged.clear();
    }

    /// Starts a session, after whose beginning all connections are sent.
    pub fn connected(&mut self, protocol: u16) {
        self.enter(PeerState::Connected, None);
        self.clear_queue();
        self.shown.protocol = Some(protocol);
        self.record_loss(0);
    }

    /// Ends a session, or a try to begin one.
    pub fn disconnected(&mut self, state: PeerState, reason: String) {
        self.enter(state, Some(reason));
        self.clear_queue();
        self.shown.complete = false;
    }

    fn enter(&mut self, state: PeerState, reason: Option<String>) {
        if self.shown.state != state {
            self.shown.state = state;
            self.since = Instant::now();
        }
        self.shown.reason = reason;
    }

    /// Notes what was sent.
    pub fn record_sent(&mut self, frame: SentFrame) {
        self.shown.bytes_sent += frame.bytes as u64;
        self.unacknowledged.push_back(frame);
    }

    /// Notes that the peer has applied everything up to the frame `sequence`.
    pub fn handle_acknowledgement(&mut self, sequence: u64, now: Instant) {
        while let Some(frame) = self.unacknowledged.front().copied() {
            if frame.sequence > sequence {
                break;
            }
            self.unacknowledged.pop_front();
            self.known = frame.taken;
            if frame.completes == Some(self.losses) {
                self.shown.complete = true;
            }
            if frame.matters {
                if self.delays.len() == DELAYS {
                    self.delays.pop_front();
                }
                self.delays.push_back(now - frame.at);
            }
        }
    }

    /// Bytes that the peer has not acknowledged.
    pub fn bytes_on_the_way(&self) -> usize {
        self.unacknowledged.iter().map(|it| it.bytes).sum()
    }

    /// Since when an acknowledgement is missing.
    pub fn waits_since(&self) -> Option<Instant> {
        self.unacknowledged.front().map(|it| it.at)
    }

    /// Counts what became of records of the peer.
    pub fn count(&mut self, records: usize, outcomes: Outcomes) {
        self.shown.records_received += records as u64;
        for (outcome, count) in outcomes {
            *self.shown.intake.entry(outcome.to_owned()).or_default() += count;
        }
    }

    pub fn refused(&mut self, refusal: &Refusal) {
        let frames = &mut self.shown.refused_frames;
        *frames.entry(refusal.name().to_owned()).or_default() += 1;
    }

    /// Notes a sign of life of the machine; `session`: of its manager.
    pub fn set_living(&mut self, now: Instant, session: bool) {
        self.last_life = Some(now);
        if session {
            self.last_session = Some(now);
        }
    }

    /// Notes that the machine does not answer.
    pub fn set_silent(&mut self) {
        self.last_life = None;
    }

    /// Whether the machine can be sent packets of connections that are unknown here.
    pub fn is_living(&self, now: Instant) -> bool {
        let within = |at: Option<Instant>, most| at.is_some_and(|at| now - at < most);
        within(self.last_life, LIFE) && within(self.last_session, WITHOUT_MANAGER)
    }

    fn status(&self, now: Instant) -> PeerStatus {
        let mut delays: Vec<Duration> = self.delays.iter().copied().collect();
        delays.sort_unstable();
        let share = |percent: usize| {
            let at = (delays.len() * percent / 100).min(delays.len().saturating_sub(1));
            delays.get(at).copied().map(microseconds)
        };
        let oldest = self.unacknowledged.iter().find(|it| it.matters);
        PeerStatus {
            state_since_ms: lb_core::milliseconds(now - self.since),
            lag_us: self
                .is_connected()
                .then(|| oldest.map_or(0, |it| microseconds(now - it.at).max(1))),
            lag_p50_us: share(50),
            lag_p99_us: share(99),
            queue_records: self.queue.len() as u64,
            ..self.shown.clone()
        }
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
