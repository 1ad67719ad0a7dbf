//! Sends a peer what happens to connections here: connects, explains, sends, and waits for acknowledgements.

use std::{
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::maps::FlowRecord;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    PeerState,
    dictionary::Outgoing,
    hub::Hub,
    kernel::Scan,
    orders::Outbox,
    remote::{RemotePeer, SentFrame},
    session::{self, FrameReader, Session, SessionError},
    topology::Topology,
    wire::{About, FrameSigner, Message, Record, Resync, Scope},
};

/// How long a machine may take to answer a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);

/// How long after a failed try the next one begins.
const RETRY: Duration = Duration::from_millis(200);

/// The same after a refusal, which an operator must repair.
const RETRY_REFUSED: Duration = Duration::from_secs(2);

/// How long an acknowledgement may be missing.
const SILENCE: Duration = Duration::from_secs(1);

/// How often the peer hears something.
const PING: Duration = Duration::from_millis(200);

/// How often the sender looks at the time.
const TICK: Duration = Duration::from_millis(50);

/// The most records of a frame.
const FRAME_RECORDS: usize = 512;

/// Bytes on the way beyond which the transmission of all connections waits, so that new ones need not.
const WINDOW: usize = 256 * 1024;

/// How long after an incomplete transmission the next one begins.
const PAUSE: Duration = Duration::from_secs(1);

/// Connects to a peer for ever.
pub async fn run(hub: Arc<Hub>, peer: usize, mut outbox: Outbox) {
    let remote = hub.remote(peer);
    let mut reported = String::new();
    loop {
        let error = attempt(&hub, remote, &mut outbox).await;
        let state = match &error {
            SessionError::Refused(_) | SessionError::Unanswered => PeerState::Refused,
            _ => PeerState::Connecting,
        };
        let reason = error.to_string();
        let was_connected = {
            let mut link = remote.lock();
            if let SessionError::Refused(refusal) = &error {
                link.refused(refusal);
            }
            let was_connected = link.is_connected();
            link.disconnected(state, reason.clone());
            was_connected
        };
        hub.update_tables(Instant::now());
        if reported != reason || was_connected {
            let name = &remote.settings.name;
            warn!("peer {name} at {}: {reason}", remote.settings.address);
            reported = reason;
        }
        match (state, was_connected) {
            // The next try shows whether the machine lives.
            (_, true) => {}
            (PeerState::Refused, false) => sleep(RETRY_REFUSED).await,
            (_, false) => sleep(RETRY).await,
        }
    }
}

/// Connects once, and sends until that ends.
async fn attempt(hub: &Hub, remote: &RemotePeer, outbox: &mut Outbox) -> SessionError {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(remote.settings.address)).await;
    let connected = connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    let answers = match &connected {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    };
    match answers {
        true => remote.lock().set_living(Instant::now(), false),
        false => remote.lock().set_silent(),
    }
    hub.update_tables(Instant::now());
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => return error.into(),
    };
    let hello = match hub.hello() {
        Ok(hello) => hello,
        Err(error) => return std::io::Error::other(error).into(),
    };
    let keys = &remote.settings.keys;
    match session::connect(stream, &hello, keys, &remote.settings.name).await {
        Ok(session) => converse(hub, remote, outbox, session, hello.about).await,
        Err(error) => error,
    }
}

async fn converse(
    hub: &Hub,
    remote: &RemotePeer,
    outbox: &mut Outbox,
    session: Session,
    sent_about: About,
) -> SessionError {
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
        let mut link = remote.lock();
        link.connected(protocol);
        link.shown.version.clone_from(version);
        link.set_living(Instant::now(), true);
        link.handle_hello_reply(hello.epoch, &hello.about);
    }
    hub.update_tables(Instant::now());
    outbox.restart();
    let mut transmitter = Transmitter {
        hub,
        remote,
        topology: hub.topology.clone(),
        sent_about,
        dictionary: Outgoing::default(),
        signer,
        out: Vec::new(),
        sent: Vec::new(),
        taken: remote.lock().reported(),
        transmission: None,
        refreshed: Instant::now(),
        begin_after: Instant::now(),
        last_sent: Instant::now(),
    };
    transmitter.dictionary.set_topology(&hub.topology.borrow());
    tokio::select! {
        error = read_acknowledgements(remote, frames) => error,
        error = transmitter.run(writer, outbox) => error,
    }
}

async fn read_acknowledgements(remote: &RemotePeer, mut frames: FrameReader) -> SessionError {
    loop {
        match frames.fill().await {
            Ok(bytes) => remote.lock().shown.bytes_received += bytes as u64,
            Err(error) => return error,
        }
        loop {
            let message = match frames.next() {
                Ok(Some((_, message))) => message,
                Ok(None) => break,
                Err(refusal) => return refusal.into(),
            };
            let mut link = remote.lock();
            link.set_living(Instant::now(), true);
            match message {
                Some(Message::Acknowledge(sequence)) => {
                    link.handle_acknowledgement(sequence, Instant::now());
                    if link.is_transmitting {
                        remote.wake.notify_one();
                    }
                }
                Some(Message::Resync(Resync::Requested)) => {
                    link.record_loss(0);
                    remote.wake.notify_one();
                }
                // Nothing else concerns the side that sends records.
                _ => {}
            }
        }
    }
}

/// All connections on their way.
struct Transmission {
    scope: Scope,
    scan: Box<dyn Scan>,
    /// Of the peer's link at the beginning.
    losses: u64,
}

/// The side of a session that sends records.
struct Transmitter<'a> {
    hub: &'a Hub,
    remote: &'a RemotePeer,
    topology: watch::Receiver<Topology>,
    /// What the peer knows of this manager.
    sent_about: About,
    dictionary: Outgoing,
    signer: FrameSigner,
    out: Vec<u8>,
    /// The frames in `out`.
    sent: Vec<SentFrame>,
    /// How many records have left the queue, those of the last frame included.
    taken: u64,
    transmission: Option<Transmission>,
    /// When all connections were last sent.
    refreshed: Instant,
    /// A transmission begins not before this.
    begin_after: Instant,
    last_sent: Instant,
}

impl Transmitter<'_> {
    async fn run(&mut self, mut writer: OwnedWriteHalf, outbox: &mut Outbox) -> SessionError {
        loop {
            if let Err(error) = self.gather(outbox) {
                return std::io::Error::other(error).into();
            }
            match self.out.is_empty() {
                true => tokio::select! {
                    () = self.remote.wake.notified() => {}
                    () = outbox.changed() => {}
                    changed = self.topology.changed() => {
                        if changed.is_err() {
                            return SessionError::Closed;
                        }
                        // For the next round.
                        self.topology.mark_changed();
                    }
                    () = sleep(TICK) => {}
                },
                false => {
                    if let Err(error) = self.write(&mut writer).await {
                        return error;
                    }
                }
            }
            let waits = self.remote.lock().waits_since();
            if waits.is_some_and(|since| since.elapsed() > SILENCE) {
                return SessionError::Silent;
            }
        }
    }

    /// Makes the frames of what there is to send.
    fn gather(&mut self, outbox: &mut Outbox) -> anyhow::Result<()> {
        self.add_changed_about();
        let mut records = Vec::new();
        let taken = self.remote.lock().dequeue(FRAME_RECORDS, &mut records);
        self.add_records(&records, Some(taken))?;
        while let Some(orders) = outbox.next() {
            self.add(&Message::Orders(orders), None, None);
        }
        if records.len() < FRAME_RECORDS {
            self.transmit()?;
        }
        if self.out.is_empty() && self.last_sent.elapsed() >= PING {
            self.add(&Message::Ping, None, None);
        }
        Ok(())
    }

    /// Tells the peer what has changed since the hello.
    fn add_changed_about(&mut self) {
        if !self.topology.has_changed().unwrap_or(false) {
            return;
        }
        let topology = self.topology.borrow_and_update().clone();
        self.dictionary.set_topology(&topology);
        let about = topology.about();
        if about != self.sent_about {
            self.add(&Message::About(about.clone()), None, None);
            self.sent_about = about;
        }
    }

    /// Adds the next part of all connections, or begins with them when that is due.
    fn transmit(&mut self) -> anyhow::Result<()> {
        let (on_the_way, needs_all, losses) = {
            let link = self.remote.lock();
            (link.bytes_on_the_way(), link.needs_all, link.losses)
        };
        if self.transmission.is_none() {
            let is_due = self.refreshed.elapsed() >= self.hub.own.refresh;
            if !(needs_all || is_due) || Instant::now() < self.begin_after {
                return Ok(());
            }
            self.begin(
                if needs_all {
                    Scope::Full
                } else {
                    Scope::Carried
                },
                losses,
            )?;
        }
        if on_the_way >= WINDOW {
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
            let mut link = self.remote.lock();
            link.is_transmitting = true;
            if scope == Scope::Full {
                link.needs_all = false;
                link.shown.resyncs += 1;
            }
        }
        self.add(&Message::Resync(Resync::Begun(scope)), None, None);
        Ok(())
    }

    fn finish(&mut self, transmission: &Transmission) {
        let &Transmission { scope, losses, .. } = transmission;
        let is_complete = {
            let mut link = self.remote.lock();
            link.is_transmitting = false;
            link.losses == losses
        };
        let step = match is_complete {
            true => Resync::Finished(scope),
            false => Resync::Partial(scope),
        };
        let completes = (is_complete && scope == Scope::Full).then_some(losses);
        self.add(&Message::Resync(step), None, completes);
        self.begin_after = Instant::now() + if is_complete { Duration::ZERO } else { PAUSE };
    }

    /// Adds connections; `taken` is what [`Link::dequeue`](super::remote::Link::dequeue) returned, of those from the queue.
    fn add_records(
        &mut self,
        flows: &[FlowRecord],
        taken: Option<(Instant, u64)>,
    ) -> anyhow::Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let now = self.hub.now_ticks()?;
        let mut explained = Vec::new();
        let translate = |flow| self.dictionary.translate(flow, now, &mut explained);
        let records: Vec<Record> = flows.iter().filter_map(translate).collect();
        for message in explained {
            self.add(&message, None, None);
        }
        let since = taken.map(|(since, number)| {
            self.taken = number;
            since
        });
        self.remote.lock().shown.records_sent += records.len() as u64;
        let mut rest = records;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(FRAME_RECORDS));
            self.add(&Message::Records(rest), since, None);
            rest = later;
        }
        Ok(())
    }

    fn add(&mut self, message: &Message, since: Option<Instant>, completes: Option<u64>) {
        let begin = self.out.len();
        let sequence = message.sign(&mut self.signer, &mut self.out);
        self.sent.push(SentFrame {
            sequence,
            bytes: self.out.len() - begin,
            at: since.unwrap_or_else(Instant::now),
            matters: since.is_some(),
            taken: self.taken,
            completes,
        });
    }

    async fn write(&mut self, writer: &mut OwnedWriteHalf) -> Result<(), SessionError> {
        // Before they leave, so that no acknowledgement comes first.
        {
            let mut link = self.remote.lock();
            self.sent
                .drain(..)
                .for_each(|frame| link.record_sent(frame));
        }
        let written = timeout(SILENCE, writer.write_all(&self.out)).await;
        written.map_err(|_| SessionError::Silent)??;
        self.out.clear();
        self.last_sent = Instant::now();
        Ok(())
    }
}
