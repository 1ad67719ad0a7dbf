//! Sends records to a peer: connects, defines references, sends, and waits for acknowledgements.

use std::{
    convert::Infallible,
    io::{self, ErrorKind},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::maps::FlowRecord;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    PeerState,
    dictionary::OutgoingDictionary,
    hub::Hub,
    kernel::Scan,
    orders::Outbox,
    remote::{RemotePeer, SentFrame},
    session::{self, FrameReader, Session, SessionError},
    topology::Topology,
    wire::{Advertisement, FrameSigner, Message, Record, Resync, Scope},
};

/// How long a machine may take to answer a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);

/// Pause between a failed attempt and the next one, and the same after a session that was shorter.
const RETRY: Duration = Duration::from_millis(200);

/// The same after a refusal, whose cause an operator must remove.
const RETRY_REFUSED: Duration = Duration::from_secs(2);

/// How long an acknowledgement may take.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// The most time between two frames.
const PING_INTERVAL: Duration = Duration::from_millis(200);

/// How often timeouts and intervals are checked.
const TICK: Duration = Duration::from_millis(50);

/// The most records of a frame.
const FRAME_RECORDS: usize = 512;

/// The most unacknowledged bytes with which the transmission of all connections continues, so that it does not delay
/// new records.
const WINDOW: usize = 256 * 1024;

/// Pause between an incomplete transmission and the next one.
const TRANSMISSION_RETRY: Duration = Duration::from_secs(1);

/// Connects to a peer and sends records; never returns.
pub async fn run(hub: Arc<Hub>, peer: usize, mut outbox: Outbox) {
    let remote = hub.remote(peer);
    let mut reported = String::new();
    loop {
        let begun = Instant::now();
        let Err(error) = attempt(&hub, remote, &mut outbox).await;
        let peer_state = match &error {
            SessionError::Refused(_) | SessionError::Unanswered => PeerState::Refused,
            _ => PeerState::Connecting,
        };
        let reason = error.to_string();
        let was_connected = {
            let mut state = remote.lock();
            if let SessionError::Refused(refusal) = &error {
                state.count_refusal(refusal);
            }
            let was_connected = state.is_connected();
            state.disconnected(peer_state, reason.clone());
            was_connected
        };
        hub.update_tables(Instant::now());
        if reported != reason || was_connected {
            let name = &remote.settings.name;
            warn!("peer {name} at {}: {reason}", remote.settings.address);
            reported = reason;
        }
        match peer_state {
            // The next attempt shows whether the machine is alive.
            _ if was_connected && begun.elapsed() >= RETRY => {}
            PeerState::Refused => sleep(RETRY_REFUSED).await,
            _ => sleep(RETRY).await,
        }
    }
}

/// Connects once, and sends until the session ends.
async fn attempt(
    hub: &Hub,
    remote: &RemotePeer,
    outbox: &mut Outbox,
) -> Result<Infallible, SessionError> {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(remote.settings.address)).await;
    let connected = connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    let answers = match &connected {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    };
    match answers {
        true => remote.lock().set_alive(Instant::now(), false),
        false => remote.lock().set_unresponsive(),
    }
    hub.update_tables(Instant::now());
    let stream = connected?;
    let hello = hub.hello().map_err(io::Error::other)?;
    let (keys, name) = (&remote.settings.keys, &remote.settings.name);
    let session = session::connect(stream, &hello, keys, name).await?;
    run_session(hub, remote, outbox, session, hello.advertisement).await
}

async fn run_session(
    hub: &Hub,
    remote: &RemotePeer,
    outbox: &mut Outbox,
    session: Session,
    advertised: Advertisement,
) -> Result<Infallible, SessionError> {
    let Session {
        hello,
        protocol,
        frames,
        writer,
        signer,
    } = session;
    let (name, version) = (&hello.name, &hello.version);
    info!("peer {name}: connected; it runs memlb {version}, protocol {protocol}");
    {
        let mut state = remote.lock();
        state.connected(protocol);
        state.status.version.clone_from(version);
        state.set_alive(Instant::now(), true);
        state.handle_hello_reply(hello.epoch, &hello.advertisement);
    }
    hub.update_tables(Instant::now());
    outbox.restart();
    let mut transmitter = Transmitter {
        hub,
        remote,
        topology: hub.topology.clone(),
        advertised,
        dictionary: OutgoingDictionary::default(),
        signer,
        records: Vec::new(),
        out: Vec::new(),
        sent: Vec::new(),
        dequeued: remote.lock().reported(),
        transmission: None,
        refreshed: Instant::now(),
        not_before: Instant::now(),
        last_sent: Instant::now(),
    };
    transmitter.dictionary.set_topology(&hub.topology.borrow());
    tokio::select! {
        error = read_acknowledgements(remote, frames) => error,
        error = transmitter.run(writer, outbox) => error,
    }
}

async fn read_acknowledgements(
    remote: &RemotePeer,
    mut frames: FrameReader,
) -> Result<Infallible, SessionError> {
    loop {
        let bytes = frames.read_more().await?;
        remote.lock().status.bytes_received += bytes as u64;
        while let Some((_, message)) = frames.next()? {
            let mut state = remote.lock();
            state.set_alive(Instant::now(), true);
            match message {
                Some(Message::Acknowledge(sequence)) => {
                    state.handle_acknowledgement(sequence, Instant::now());
                    if state.is_transmitting {
                        remote.wake.notify_one();
                    }
                }
                Some(Message::Resync(Resync::Requested)) => {
                    state.record_loss(0);
                    remote.wake.notify_one();
                }
                // No other message concerns the sender.
                _ => {}
            }
        }
    }
}

/// A transmission of all connections.
struct Transmission {
    scope: Scope,
    scan: Box<dyn Scan>,
    /// The peer's number of losses at the beginning.
    losses: u64,
}

/// The side of a session that sends records.
struct Transmitter<'a> {
    hub: &'a Hub,
    remote: &'a RemotePeer,
    topology: watch::Receiver<Topology>,
    /// The last advertisement that the peer got.
    advertised: Advertisement,
    dictionary: OutgoingDictionary,
    signer: FrameSigner,
    /// Kept for its memory.
    records: Vec<FlowRecord>,
    out: Vec<u8>,
    /// The frames in `out`.
    sent: Vec<SentFrame>,
    /// How many records have left the queue, including those of the last frame.
    dequeued: u64,
    transmission: Option<Transmission>,
    /// When the last transmission began.
    refreshed: Instant,
    /// The earliest time of the next transmission.
    not_before: Instant,
    last_sent: Instant,
}

impl Transmitter<'_> {
    async fn run(
        &mut self,
        mut writer: OwnedWriteHalf,
        outbox: &mut Outbox,
    ) -> Result<Infallible, SessionError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_more = self.gather(outbox).map_err(io::Error::other)?;
            let is_idle = self.out.is_empty();
            if !is_idle {
                self.write(&mut writer).await?;
            }
            if is_idle || !has_more {
                tokio::select! {
                    () = self.remote.wake.notified() => {}
                    () = outbox.changed() => {}
                    changed = self.topology.changed() => {
                        if changed.is_err() {
                            return Err(SessionError::Closed);
                        }
                        // `gather` sends it.
                        self.topology.mark_changed();
                    }
                    _ = ticks.tick() => {}
                }
            }
            let waits = self.remote.lock().oldest_unacknowledged();
            if waits.is_some_and(|since| since.elapsed() > ACK_TIMEOUT) {
                return Err(SessionError::Silent);
            }
        }
    }

    /// Adds frames of what is to be sent. Returns whether there may be more.
    fn gather(&mut self, outbox: &mut Outbox) -> anyhow::Result<bool> {
        self.add_advertisement();
        let mut records = std::mem::take(&mut self.records);
        records.clear();
        let dequeued = self.remote.lock().dequeue(FRAME_RECORDS, &mut records);
        let is_drained = records.len() < FRAME_RECORDS;
        self.add_records(&records, Some(dequeued))?;
        self.records = records;
        while let Some(orders) = outbox.next() {
            self.add(&Message::Orders(orders), None, None);
        }
        if is_drained {
            self.transmit()?;
        }
        if self.out.is_empty() && self.last_sent.elapsed() >= PING_INTERVAL {
            self.add(&Message::Ping, None, None);
        }
        Ok(!is_drained || self.transmission.is_some())
    }

    /// Adds an advertisement if it has changed since the last one.
    fn add_advertisement(&mut self) {
        if !self.topology.has_changed().unwrap_or(false) {
            return;
        }
        let topology = self.topology.borrow_and_update().clone();
        self.dictionary.set_topology(&topology);
        let advertisement = topology.advertisement();
        if advertisement != self.advertised {
            self.add(&Message::Advertisement(advertisement.clone()), None, None);
            self.advertised = advertisement;
        }
    }

    /// Adds the next chunk of a transmission; begins a transmission if one is due.
    fn transmit(&mut self) -> anyhow::Result<()> {
        let (in_flight, needs_resync, losses) = {
            let state = self.remote.lock();
            (state.bytes_in_flight(), state.needs_resync, state.losses)
        };
        if self.transmission.is_none() {
            let is_due = self.refreshed.elapsed() >= self.hub.own.refresh;
            if !(needs_resync || is_due) || Instant::now() < self.not_before {
                return Ok(());
            }
            let scope = match needs_resync {
                true => Scope::Full,
                false => Scope::Carried,
            };
            self.begin(scope, losses)?;
        }
        if in_flight >= WINDOW {
            return Ok(());
        }
        let Some(mut transmission) = self.transmission.take() else {
            return Ok(());
        };
        let mut flows = Vec::new();
        let has_more = transmission.scan.next(&mut flows)?;
        if transmission.scope == Scope::Carried {
            flows.retain(|flow| flow.carried != 0);
        }
        self.add_records(&flows, None)?;
        match has_more {
            true => self.transmission = Some(transmission),
            false => self.finish(&transmission),
        }
        Ok(())
    }

    fn begin(&mut self, scope: Scope, losses: u64) -> anyhow::Result<()> {
        self.refreshed = Instant::now();
        self.transmission = Some(Transmission {
            scope,
            scan: self.hub.scan()?,
            losses,
        });
        {
            let mut state = self.remote.lock();
            state.is_transmitting = true;
            if scope == Scope::Full {
                state.needs_resync = false;
                state.status.resyncs += 1;
            }
        }
        self.add(&Message::Resync(Resync::Begun(scope)), None, None);
        Ok(())
    }

    fn finish(&mut self, transmission: &Transmission) {
        let &Transmission { scope, losses, .. } = transmission;
        let is_complete = {
            let mut state = self.remote.lock();
            state.is_transmitting = false;
            state.losses == losses
        };
        let step = match is_complete {
            true => Resync::Finished(scope),
            false => Resync::Partial(scope),
        };
        let completes = (is_complete && scope == Scope::Full).then_some(losses);
        self.add(&Message::Resync(step), None, completes);
        self.not_before = Instant::now()
            + if is_complete {
                Duration::ZERO
            } else {
                TRANSMISSION_RETRY
            };
    }

    /// Adds connections. For those from the queue, `dequeued` is the result of
    /// [`RemoteState::dequeue`](super::remote::RemoteState::dequeue).
    fn add_records(
        &mut self,
        flows: &[FlowRecord],
        dequeued: Option<(Instant, u64)>,
    ) -> anyhow::Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let now = self.hub.now_ticks()?;
        let mut definitions = Vec::new();
        let translate = |flow| self.dictionary.translate(flow, now, &mut definitions);
        let records: Vec<Record> = flows.iter().filter_map(translate).collect();
        for message in definitions {
            self.add(&message, None, None);
        }
        let since = dequeued.map(|(since, count)| {
            self.dequeued = count;
            since
        });
        self.remote.lock().status.records_sent += records.len() as u64;
        let mut rest = records;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(FRAME_RECORDS));
            self.add(&Message::Records(rest), since, None);
            rest = later;
        }
        Ok(())
    }

    /// Adds a frame. `since`: when the oldest of its records from the queue was reported.
    fn add(&mut self, message: &Message, since: Option<Instant>, completes: Option<u64>) {
        let (begin, now) = (self.out.len(), Instant::now());
        let sequence = message.sign(&mut self.signer, &mut self.out);
        self.sent.push(SentFrame {
            sequence,
            bytes: self.out.len() - begin,
            sent: now,
            reported: since.unwrap_or(now),
            has_records: since.is_some(),
            dequeued: self.dequeued,
            completes,
        });
    }

    async fn write(&mut self, writer: &mut OwnedWriteHalf) -> Result<(), SessionError> {
        // Record them before they are sent, so that an acknowledgement cannot arrive earlier.
        {
            let mut state = self.remote.lock();
            self.sent
                .drain(..)
                .for_each(|frame| state.record_sent(frame));
        }
        // No timer if the socket has room.
        let written = match writer.try_write(&self.out) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            written => written?,
        };
        if written < self.out.len() {
            let rest = timeout(ACK_TIMEOUT, writer.write_all(&self.out[written..])).await;
            rest.map_err(|_| SessionError::Silent)??;
        }
        self.out.clear();
        self.last_sent = Instant::now();
        Ok(())
    }
}
