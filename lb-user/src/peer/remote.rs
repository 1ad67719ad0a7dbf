//! The state of one peer: its queue, its unacknowledged frames, and its status.

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
    wire::{Advertisement, PeerRefusal},
};
use crate::keys::PeerKeys;

/// The most records in the queue of one peer: 3.4 MB, or 3 s of 10,000 connections a second.
pub const QUEUE_RECORDS: usize = 32_768;

/// Number of frames of which the delay is kept.
const DELAYS: usize = 1_024;

/// How long a machine counts as alive after it was last seen.
const ALIVE_TIMEOUT: Duration = Duration::from_millis(1_300);

/// How long packets of unknown connections are relayed to a machine whose manager does not run.
const RELAY_TIMEOUT: Duration = Duration::from_secs(60);

/// A peer's address and keys.
#[derive(Debug, Clone)]
pub struct PeerSettings {
    pub name: String,
    pub address: SocketAddr,
    pub keys: PeerKeys,
}

/// One peer. Its lock is held only briefly.
#[derive(Debug)]
pub struct RemotePeer {
    pub settings: PeerSettings,
    /// Wakes the sender.
    pub wake: Notify,
    state: Mutex<RemoteState>,
}

/// The changing state of a peer.
#[derive(Debug)]
pub struct RemoteState {
    /// The counters that views show; [`RemotePeer::status`] fills in the rest.
    pub status: PeerStatus,
    since: Instant,
    /// The peer's last advertisement.
    pub advertisement: Option<Advertisement>,
    /// The start time of the manager that sent it.
    epoch: Option<u64>,
    queue: VecDeque<FlowRecord>,
    /// How many records have left the queue.
    dequeued: u64,
    /// How many of them the peer has acknowledged.
    acknowledged: u64,
    /// Since when the first record of the queue waits.
    queued_at: Instant,
    unacknowledged: VecDeque<SentFrame>,
    delays: VecDeque<Duration>,
    /// Whether the peer needs all connections.
    pub needs_resync: bool,
    /// Whether the sender waits for acknowledgements to send more of all connections.
    pub is_transmitting: bool,
    /// Number of losses, by which a transmission detects a loss in the meantime.
    pub losses: u64,
    last_alive: Option<Instant>,
    last_session: Option<Instant>,
}

/// A frame that was sent.
#[derive(Debug, Clone, Copy)]
pub struct SentFrame {
    pub sequence: u64,
    pub bytes: usize,
    /// When it was sent.
    pub sent: Instant,
    /// When the oldest of its records was reported.
    pub reported: Instant,
    /// Whether it holds records of the queue.
    pub has_records: bool,
    /// How many records had left the queue, including those of this frame.
    pub dequeued: u64,
    /// With its acknowledgement, the peer has all connections, if the number of losses is still this.
    pub completes: Option<u64>,
}

impl PeerSettings {
    /// Whether both are the same machine with the same keys.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.name, self.address) == (&other.name, other.address)
            && self.keys.is_same_as(&other.keys)
    }
}

impl RemotePeer {
    pub fn new(settings: PeerSettings) -> Self {
        let status = PeerStatus {
            name: settings.name.clone(),
            address: settings.address.to_string(),
            ..PeerStatus::default()
        };
        Self {
            settings,
            wake: Notify::new(),
            state: Mutex::new(RemoteState {
                status,
                since: Instant::now(),
                advertisement: None,
                epoch: None,
                queue: VecDeque::new(),
                dequeued: 0,
                acknowledged: 0,
                queued_at: Instant::now(),
                unacknowledged: VecDeque::new(),
                delays: VecDeque::with_capacity(DELAYS),
                needs_resync: false,
                is_transmitting: false,
                losses: 0,
                last_alive: None,
                last_session: None,
            }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, RemoteState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues records that have waited since `since`, if the peer is connected.
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
        self.status.state == PeerState::Connected
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

    /// Records that the peer lacks records, or may lack some. All connections are then sent again.
    pub fn record_loss(&mut self, records: u64) {
        self.status.lost_records += records;
        self.status.complete = false;
        self.needs_resync = true;
        self.losses += 1;
    }

    /// Moves at most `most` records of the queue to `into`. Returns since when they have waited, and how many records
    /// have left the queue.
    pub fn dequeue(&mut self, most: usize, into: &mut Vec<FlowRecord>) -> (Instant, u64) {
        let count = most.min(self.queue.len());
        into.extend(self.queue.drain(..count));
        self.dequeued += count as u64;
        (self.queued_at, self.dequeued)
    }

    /// How many records were queued for the peer in all.
    pub fn reported(&self) -> u64 {
        self.dequeued + self.queue.len() as u64
    }

    /// Handles the hello of a listener. If the same manager has sent an advertisement in its own session, that is
    /// newer.
    pub fn handle_hello_reply(&mut self, epoch: u64, advertisement: &Advertisement) {
        if self.epoch != Some(epoch) {
            self.handle_hello(epoch, advertisement);
        }
    }

    /// Handles the hello of a connector, which begins a session.
    pub fn handle_hello(&mut self, epoch: u64, advertisement: &Advertisement) {
        self.epoch = Some(epoch);
        self.advertisement = Some(advertisement.clone());
    }

    /// Returns a sentence that says what keeps the peer from continuing every connection among the first `reported`
    /// records, or from serving new ones with as many backends as this manager (`serving`).
    pub fn missing(&self, reported: u64, serving: u16) -> Option<String> {
        let PeerStatus { name, reason, .. } = &self.status;
        if !self.is_connected() {
            let reason = reason.as_deref().unwrap_or("it has not answered yet");
            return Some(format!("{name} is not connected: {reason}"));
        }
        if !self.status.complete {
            return Some(format!("{name} does not know all connections yet"));
        }
        let theirs = self.advertisement.as_ref().map_or(0, |it| it.serving);
        if theirs < serving {
            return Some(format!(
                "{name} has {theirs} usable backends, and this manager {serving}: it has no heartbeat of every worker \
                 yet, or no route to one, or one fails there (memlb status on that machine)"
            ));
        }
        let missing = reported.saturating_sub(self.acknowledged);
        (missing > 0).then(|| format!("{name} has not acknowledged {missing} records"))
    }

    /// Empties the queue. The next session begins with all connections, which include the queued records.
    fn clear_queue(&mut self) {
        self.dequeued = self.reported();
        self.queue = VecDeque::new();
        self.unacknowledged.clear();
    }

    /// Starts a session, at whose beginning all connections are sent.
    pub fn connected(&mut self, protocol: u16) {
        self.enter(PeerState::Connected, None);
        self.clear_queue();
        self.status.protocol = Some(protocol);
        self.record_loss(0);
    }

    /// Ends a session, or an attempt to begin one.
    pub fn disconnected(&mut self, state: PeerState, reason: String) {
        self.enter(state, Some(reason));
        self.clear_queue();
        self.status.complete = false;
    }

    fn enter(&mut self, state: PeerState, reason: Option<String>) {
        if self.status.state != state {
            self.status.state = state;
            self.since = Instant::now();
        }
        self.status.reason = reason;
    }

    /// Records a sent frame.
    pub fn record_sent(&mut self, frame: SentFrame) {
        self.status.bytes_sent += frame.bytes as u64;
        self.unacknowledged.push_back(frame);
    }

    /// Handles an acknowledgement: the peer has applied all frames up to `sequence`.
    pub fn handle_acknowledgement(&mut self, sequence: u64, now: Instant) {
        while let Some(frame) = self.unacknowledged.front().copied() {
            if frame.sequence > sequence {
                break;
            }
            self.unacknowledged.pop_front();
            self.acknowledged = frame.dequeued;
            if frame.completes == Some(self.losses) {
                self.status.complete = true;
            }
            if frame.has_records {
                if self.delays.len() == DELAYS {
                    self.delays.pop_front();
                }
                self.delays.push_back(now - frame.reported);
            }
        }
    }

    /// Number of bytes that the peer has not acknowledged.
    pub fn bytes_in_flight(&self) -> usize {
        self.unacknowledged.iter().map(|it| it.bytes).sum()
    }

    /// When the oldest unacknowledged frame was sent.
    pub fn oldest_unacknowledged(&self) -> Option<Instant> {
        self.unacknowledged.front().map(|it| it.sent)
    }

    /// Counts the outcomes of the peer's records.
    pub fn count(&mut self, records: usize, outcomes: Outcomes) {
        self.status.records_received += records as u64;
        for (outcome, count) in outcomes {
            *self.status.intake.entry(outcome.to_owned()).or_default() += count;
        }
    }

    /// Counts a refused frame or hello; returns how many were refused for the same reason.
    pub fn count_refusal(&mut self, refusal: &PeerRefusal) -> u64 {
        let frames = &mut self.status.refused_frames;
        let count = frames.entry(refusal.name().to_owned()).or_default();
        *count += 1;
        *count
    }

    /// Records that the machine is alive, and, with `session`, its manager.
    pub fn set_alive(&mut self, now: Instant, session: bool) {
        self.last_alive = Some(now);
        if session {
            self.last_session = Some(now);
        }
    }

    /// Records that the machine does not answer.
    pub fn set_unresponsive(&mut self) {
        self.last_alive = None;
    }

    /// Whether packets of unknown connections can be relayed to the machine.
    pub fn is_alive(&self, now: Instant) -> bool {
        let within = |at: Option<Instant>, most| at.is_some_and(|at| now - at < most);
        within(self.last_alive, ALIVE_TIMEOUT) && within(self.last_session, RELAY_TIMEOUT)
    }

    fn status(&self, now: Instant) -> PeerStatus {
        let mut delays: Vec<Duration> = self.delays.iter().copied().collect();
        delays.sort_unstable();
        let share = |percent: usize| {
            let at = (delays.len() * percent / 100).min(delays.len().saturating_sub(1));
            delays.get(at).copied().map(microseconds)
        };
        let oldest = self.unacknowledged.iter().find(|it| it.has_records);
        PeerStatus {
            state_since_ms: lb_core::milliseconds(now - self.since),
            lag_us: self
                .is_connected()
                .then(|| oldest.map_or(0, |it| microseconds(now - it.reported).max(1))),
            lag_p50_us: share(50),
            lag_p99_us: share(99),
            queue_records: self.queue.len() as u64,
            ..self.status.clone()
        }
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
