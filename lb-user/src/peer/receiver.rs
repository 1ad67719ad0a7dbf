//! Receives what peers send: checks, translates, writes to the tables, acknowledges.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::maps::{Admission, FlowRecord};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::{Semaphore, mpsc, watch},
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    dictionary::{Incoming, Untranslated},
    hub::Hub,
    kernel::Outcomes,
    orders::ReceivedOrders,
    remote::RemotePeer,
    session::{self, Session, SessionError},
    topology::Topology,
    wire::{FrameSigner, Hello, Message, Record, Refusal, Resync, Scope},
};

/// The most connections that have not sent their hello.
const MAX_PENDING_HELLOS: usize = 16;

/// How long a peer may be silent: it sends something every 200 ms.
const SILENCE: Duration = Duration::from_secs(1);

/// How long a failure to accept a connection may last, as a lack of descriptors does.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often all connections are asked for again.
const REQUEST_AGAIN: Duration = Duration::from_secs(1);

/// How often, in one session, they are asked for because a worker is not in the tables yet: it is not heard since this
/// manager started. By default it counts as down, and is in the tables, after 30 s without a heartbeat.
const UNHEARD_REQUESTS: u32 = 40;

/// Accepts connections for ever.
pub async fn serve(hub: Arc<Hub>, listener: TcpListener, orders: mpsc::Sender<ReceivedOrders>) {
    let pending = Arc::new(Semaphore::new(MAX_PENDING_HELLOS));
    let mut sessions = JoinSet::new();
    loop {
        // Those that have ended.
        while sessions.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!("accept a peer's connection: {error}");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = pending.clone().try_acquire_owned() else {
            refuse(&hub, from, &Refusal::TooMany);
            continue;
        };
        let (hub, orders) = (hub.clone(), orders.clone());
        sessions.spawn(async move {
            let accepted = accept(&hub, stream).await;
            drop(permit);
            match accepted {
                Ok((peer, session)) => receive(&hub, peer, session, orders).await,
                Err(SessionError::Refused(refusal)) => refuse(&hub, from, &refusal),
                Err(error) => debug!("{from}: {error}"),
            }
        });
    }
}

/// Counts a refused hello for the peer with the sender's address.
fn refuse(hub: &Hub, from: SocketAddr, refusal: &Refusal) {
    let ip = from.ip().to_canonical();
    let mut remotes = hub.remotes.iter();
    match remotes.find(|remote| remote.settings.address.ip() == ip) {
        Some(remote) => {
            let is_first = {
                let mut link = remote.lock();
                link.refused(refusal);
                link.shown.refused_frames.get(refusal.name()) == Some(&1)
            };
            if is_first {
                warn!(
                    "peer {}: its hello is refused: {refusal}",
                    remote.settings.name
                );
            }
        }
        None => debug!("{from}: {refusal}"),
    }
}

async fn accept(hub: &Hub, stream: TcpStream) -> Result<(usize, Session), SessionError> {
    let hello = hub.hello().map_err(std::io::Error::other)?;
    let peer = |name: &str| {
        let mut remotes = hub.remotes.iter();
        remotes.position(|remote| remote.settings.name == name)
    };
    let session = session::accept(stream, &hello, |name| match peer(name) {
        Some(peer) => Ok(&hub.remote(peer).settings.keys),
        None if name == hub.own.name => Err(Refusal::OwnName {
            name: name.to_owned(),
        }),
        None => Err(Refusal::UnknownPeer {
            name: name.to_owned(),
        }),
    });
    let session = session.await?;
    let name = &session.hello.name;
    let peer = peer(name).ok_or_else(|| Refusal::UnknownPeer { name: name.clone() })?;
    Ok((peer, session))
}

async fn receive(hub: &Hub, peer: usize, session: Session, orders: mpsc::Sender<ReceivedOrders>) {
    let remote = hub.remote(peer);
    let mut receiver = Receiver {
        hub,
        peer,
        remote,
        orders,
        topology: hub.topology.clone(),
        dictionary: Incoming::default(),
        hello: session.hello,
        signer: session.signer,
        out: Vec::new(),
        number: None,
        wants_all: false,
        requested: None,
        unheard_requests: 0,
    };
    receiver.dictionary.set_topology(&hub.topology.borrow());
    let mut frames = session.frames;
    let mut writer = session.writer;
    let error = loop {
        match timeout(SILENCE, frames.fill()).await {
            Ok(Ok(bytes)) => remote.lock().shown.bytes_received += bytes as u64,
            Ok(Err(error)) => break error,
            Err(_) => break SessionError::Silent,
        }
        let mut last = None;
        let ended = loop {
            match frames.next() {
                Ok(Some((sequence, message))) => {
                    last = Some(sequence);
                    if let Err(error) = receiver.handle(message).await {
                        break Some(error);
                    }
                }
                Ok(None) => break None,
                Err(refusal) => break Some(refusal.into()),
            }
        };
        if let Some(error) = ended {
            break error;
        }
        if let Err(error) = receiver.acknowledge(last, &mut writer).await {
            break error;
        }
    };
    receiver.end(&error);
}

/// One session's receiving side.
struct Receiver<'a> {
    hub: &'a Hub,
    peer: usize,
    remote: &'a RemotePeer,
    orders: mpsc::Sender<ReceivedOrders>,
    topology: watch::Receiver<Topology>,
    dictionary: Incoming,
    /// What the peer said of itself at the beginning.
    hello: Hello,
    signer: FrameSigner,
    out: Vec<u8>,
    /// Of this session among the peer's, after its first frame.
    number: Option<u64>,
    /// Whether connections may be missing that the peer has.
    wants_all: bool,
    requested: Option<Instant>,
    /// How many times because of a worker that is not in the tables yet.
    unheard_requests: u32,
}

impl Receiver<'_> {
    async fn handle(&mut self, message: Option<Message>) -> Result<(), SessionError> {
        self.is_newest()?;
        self.remote.lock().set_living(Instant::now(), true);
        if self.topology.has_changed().unwrap_or(false) {
            let topology = self.topology.borrow_and_update().clone();
            self.wants_all |= self.dictionary.set_topology(&topology);
        }
        match message {
            Some(Message::Records(records)) => {
                self.admit(&records)?;
                // Other tasks of the thread go on between two frames.
                yield_now().await;
            }
            Some(Message::Backends(names)) => {
                names
                    .into_iter()
                    .for_each(|it| self.dictionary.name_backend(it));
            }
            Some(Message::Endpoints(names)) => {
                for (reference, endpoint) in names {
                    self.dictionary.name_endpoint(reference, endpoint);
                }
            }
            Some(Message::Resync(step)) => self.note_resync(step),
            Some(Message::About(about)) => {
                self.remote.lock().about = Some(about);
                self.hub.update_tables(Instant::now());
            }
            Some(Message::Orders(json)) => {
                let received = ReceivedOrders {
                    peer: self.peer,
                    json,
                };
                // Fails only when the manager ends.
                _ = self.orders.send(received).await;
            }
            // A sign of life, or what a later version sends.
            Some(Message::Ping | Message::Acknowledge(_)) | None => {}
        }
        Ok(())
    }

    /// Ends this session when the peer has begun another.
    fn is_newest(&mut self) -> Result<(), SessionError> {
        let number = match self.number {
            Some(number) => number,
            None => {
                let number = self.hub.begin_incoming(self.peer, self.hello.epoch);
                self.number = Some(number);
                // The first frame that is right shows that the hello is no recording.
                let mut link = self.remote.lock();
                link.shown.received_complete = false;
                link.handle_hello(self.hello.epoch, &self.hello.about);
                number
            }
        };
        match self.hub.is_newest(self.peer, number) {
            true => Ok(()),
            false => Err(SessionError::Closed),
        }
    }

    fn admit(&mut self, records: &[Record]) -> Result<(), SessionError> {
        let now = self.hub.now_ticks().map_err(std::io::Error::other)?;
        let mut outcomes = Outcomes::new();
        let mut flows: Vec<FlowRecord> = Vec::with_capacity(records.len());
        for record in records {
            match self.dictionary.translate(record, now) {
                Ok(flow) => flows.push(flow),
                Err(Untranslated::Backend) => *outcomes.entry("unknown_backend").or_default() += 1,
                Err(Untranslated::Interface) => {
                    *outcomes.entry("unknown_interface").or_default() += 1;
                }
                Err(Untranslated::Reference) => return Err(Refusal::Malformed { kind: 1 }.into()),
            }
        }
        match self.hub.admit(self.peer, &flows) {
            Ok(admitted) => {
                let is_unheard = admitted.contains_key(Admission::UnknownBackend.name());
                if is_unheard && !self.wants_all && self.unheard_requests < UNHEARD_REQUESTS {
                    self.wants_all = true;
                    self.unheard_requests += 1;
                }
                for (outcome, count) in admitted {
                    *outcomes.entry(outcome).or_default() += count;
                }
            }
            Err(error) => {
                warn!(
                    "connections of peer {}: {error:#}",
                    self.remote.settings.name
                );
                *outcomes.entry("failed").or_default() += flows.len() as u64;
                self.wants_all = true;
            }
        }
        self.remote.lock().count(records.len(), outcomes);
        Ok(())
    }

    fn note_resync(&mut self, step: Resync) {
        match step {
            Resync::Finished(scope) => {
                match self.hub.finish(self.peer) {
                    Ok(outcomes) => self.remote.lock().count(0, outcomes),
                    Err(error) => warn!("connections that no peer has any more: {error:#}"),
                }
                if scope == Scope::Full && !self.wants_all {
                    self.remote.lock().shown.received_complete = true;
                }
            }
            Resync::Partial(Scope::Full) => self.remote.lock().shown.received_complete = false,
            Resync::Partial(Scope::Carried) | Resync::Begun(_) | Resync::Requested => {}
        }
    }

    /// Acknowledges what is applied, and asks for all connections where some are missing.
    async fn acknowledge(
        &mut self,
        last: Option<u64>,
        writer: &mut OwnedWriteHalf,
    ) -> Result<(), SessionError> {
        if let Some(sequence) = last {
            Message::Acknowledge(sequence).sign(&mut self.signer, &mut self.out);
        }
        let may_request = self.requested.is_none_or(|at| at.elapsed() > REQUEST_AGAIN);
        if self.wants_all && may_request {
            (self.wants_all, self.requested) = (false, Some(Instant::now()));
            self.remote.lock().shown.received_complete = false;
            Message::Resync(Resync::Requested).sign(&mut self.signer, &mut self.out);
        }
        if self.out.is_empty() {
            return Ok(());
        }
        let written = timeout(SILENCE, writer.write_all(&self.out)).await;
        written.map_err(|_| SessionError::Silent)??;
        self.remote.lock().shown.bytes_sent += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    fn end(&self, error: &SessionError) {
        let mut link = self.remote.lock();
        if let SessionError::Refused(refusal) = error {
            link.refused(refusal);
        }
        if let Some(number) = self.number
            && self.hub.is_newest(self.peer, number)
        {
            link.shown.received_complete = false;
        }
        drop(link);
        let name = &self.remote.settings.name;
        match error {
            SessionError::Refused(refusal) => warn!("peer {name}: {refusal}"),
            error => debug!("records of peer {name}: {error}"),
        }
    }
}
