//! Receives peers' frames: verifies, translates, writes to the tables, acknowledges.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::maps::{Admission, FlowRecord};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::{mpsc, oneshot, watch},
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    dictionary::{IncomingDictionary, TranslationError},
    hub::Hub,
    kernel::Outcomes,
    orders::ReceivedOrders,
    remote::RemotePeer,
    session::{self, FrameReader, Session, SessionError},
    topology::Topology,
    wire::{FrameSigner, Hello, Message, PeerRefusal, Record, Resync, Scope},
};

/// The most connections that have not sent their hello. A further one displaces the oldest: the peer sends its hello at
/// once.
const MAX_PENDING_HELLOS: usize = 16;

/// How long a peer may send nothing: it sends a ping every 200 ms.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after a failed accept, for example for lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The least time between two requests for all connections.
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// The most requests in one session because a worker is not in the tables yet: this manager has not received its
/// heartbeat since the start. By default the worker is down, and in the tables, after 30 s without a heartbeat.
const UNHEARD_REQUESTS: u32 = 40;

/// Accepts connections; never returns.
pub async fn serve(hub: Arc<Hub>, listener: TcpListener, orders: mpsc::Sender<ReceivedOrders>) {
    let mut pending: VecDeque<oneshot::Sender<Infallible>> = VecDeque::new();
    let mut sessions = JoinSet::new();
    loop {
        // Reap the sessions that have ended.
        while sessions.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!("accept a connection of a peer: {error}");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        pending.retain(|it| !it.is_closed());
        if pending.len() == MAX_PENDING_HELLOS {
            pending.pop_front();
        }
        let (displace, displaced) = oneshot::channel();
        pending.push_back(displace);
        let (hub, orders) = (hub.clone(), orders.clone());
        sessions.spawn(async move {
            let accepted = tokio::select! {
                biased;
                accepted = accept(&hub, stream) => accepted,
                // The sender is dropped; it never sends.
                _ = displaced => Err(PeerRefusal::TooMany.into()),
            };
            match accepted {
                Ok((peer, session)) => receive(&hub, peer, session, orders).await,
                Err(SessionError::Refused(refusal)) => refuse(&hub, from, &refusal),
                Err(error) => debug!("{from}: {error}"),
            }
        });
    }
}

/// Counts a refused hello for the peer that has the sender's address.
fn refuse(hub: &Hub, from: SocketAddr, refusal: &PeerRefusal) {
    let ip = from.ip().to_canonical();
    let mut remotes = hub.remotes.iter();
    match remotes.find(|remote| remote.settings.address.ip() == ip) {
        Some(remote) => {
            if remote.lock().count_refusal(refusal) == 1 {
                let name = &remote.settings.name;
                warn!("peer {name}: its hello is refused: {refusal}");
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
        None if name == hub.own.name => Err(PeerRefusal::OwnName {
            name: name.to_owned(),
        }),
        None => Err(PeerRefusal::UnknownPeer {
            name: name.to_owned(),
        }),
    });
    let session = session.await?;
    let name = &session.hello.name;
    let peer = peer(name).ok_or_else(|| PeerRefusal::UnknownPeer { name: name.clone() })?;
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
        dictionary: IncomingDictionary::default(),
        hello: session.hello,
        signer: session.signer,
        out: Vec::new(),
        number: None,
        needs_resync: false,
        requested: None,
        unheard_requests: 0,
    };
    receiver.dictionary.set_topology(&hub.topology.borrow());
    let Err(error) = receiver.run(session.frames, session.writer).await;
    receiver.end(&error);
}

/// The receiving side of a session.
struct Receiver<'a> {
    hub: &'a Hub,
    peer: usize,
    remote: &'a RemotePeer,
    orders: mpsc::Sender<ReceivedOrders>,
    topology: watch::Receiver<Topology>,
    dictionary: IncomingDictionary,
    /// The peer's hello.
    hello: Hello,
    signer: FrameSigner,
    out: Vec<u8>,
    /// The session's number, after its first frame.
    number: Option<u64>,
    /// Whether this manager may lack connections that the peer has.
    needs_resync: bool,
    requested: Option<Instant>,
    /// Number of requests because of a worker that is not in the tables yet.
    unheard_requests: u32,
}

impl Receiver<'_> {
    async fn run(
        &mut self,
        mut frames: FrameReader,
        mut writer: OwnedWriteHalf,
    ) -> Result<Infallible, SessionError> {
        loop {
            let filled = timeout(TIMEOUT, frames.read_more()).await;
            let bytes = filled.map_err(|_| SessionError::Silent)??;
            self.remote.lock().status.bytes_received += bytes as u64;
            let mut last = None;
            while let Some((sequence, message)) = frames.next()? {
                last = Some(sequence);
                self.handle(message).await?;
            }
            self.acknowledge(last, &mut writer).await?;
        }
    }

    async fn handle(&mut self, message: Option<Message>) -> Result<(), SessionError> {
        self.check_newest()?;
        self.remote.lock().set_alive(Instant::now(), true);
        if self.topology.has_changed().unwrap_or(false) {
            let topology = self.topology.borrow_and_update().clone();
            self.needs_resync |= self.dictionary.set_topology(&topology);
        }
        match message {
            Some(Message::Records(records)) => {
                self.admit(&records)?;
                // Let other tasks of the thread run between two frames.
                yield_now().await;
            }
            Some(Message::Backends(names)) => {
                names
                    .into_iter()
                    .for_each(|it| self.dictionary.define_backend(it));
            }
            Some(Message::Endpoints(names)) => {
                for (reference, endpoint) in names {
                    self.dictionary.define_endpoint(reference, endpoint);
                }
            }
            Some(Message::Resync(step)) => self.handle_resync(step),
            Some(Message::Advertisement(advertisement)) => {
                self.remote.lock().advertisement = Some(advertisement);
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
            // A ping, or a frame of a later version.
            Some(Message::Ping | Message::Acknowledge(_)) | None => {}
        }
        Ok(())
    }

    /// Ends this session if the peer has begun a newer one.
    fn check_newest(&mut self) -> Result<(), SessionError> {
        let number = match self.number {
            Some(number) => number,
            None => {
                let number = self.hub.begin_incoming(self.peer, self.hello.epoch);
                self.number = Some(number);
                // The first valid frame proves that the hello is not replayed.
                let mut state = self.remote.lock();
                state.status.received_complete = false;
                state.handle_hello(self.hello.epoch, &self.hello.advertisement);
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
                Err(TranslationError::Backend) => {
                    *outcomes.entry("unknown_backend").or_default() += 1;
                }
                Err(TranslationError::Interface) => {
                    *outcomes.entry("unknown_interface").or_default() += 1;
                }
                Err(TranslationError::Reference) => {
                    return Err(PeerRefusal::Malformed { kind: 1 }.into());
                }
            }
        }
        match self.hub.admit(self.peer, &flows) {
            Ok(admitted) => {
                let is_unheard = admitted.contains_key(Admission::UnknownBackend.name());
                if is_unheard && !self.needs_resync && self.unheard_requests < UNHEARD_REQUESTS {
                    self.needs_resync = true;
                    self.unheard_requests += 1;
                }
                for (outcome, count) in admitted {
                    *outcomes.entry(outcome).or_default() += count;
                }
            }
            Err(error) => {
                let name = &self.remote.settings.name;
                warn!("write connections of peer {name}: {error:#}");
                *outcomes.entry("failed").or_default() += flows.len() as u64;
                self.needs_resync = true;
            }
        }
        self.remote.lock().count(records.len(), outcomes);
        Ok(())
    }

    fn handle_resync(&mut self, step: Resync) {
        match step {
            Resync::Finished(scope) => {
                match self.hub.end_refresh(self.peer) {
                    Ok(outcomes) => self.remote.lock().count(0, outcomes),
                    Err(error) => {
                        warn!("remove connections that the peer no longer carries: {error:#}");
                    }
                }
                if scope == Scope::Full && !self.needs_resync {
                    self.remote.lock().status.received_complete = true;
                }
            }
            Resync::Partial(Scope::Full) => self.remote.lock().status.received_complete = false,
            Resync::Partial(Scope::Carried) | Resync::Begun(_) | Resync::Requested => {}
        }
    }

    /// Acknowledges the applied frames, and requests all connections if some are missing.
    async fn acknowledge(
        &mut self,
        last: Option<u64>,
        writer: &mut OwnedWriteHalf,
    ) -> Result<(), SessionError> {
        if let Some(sequence) = last {
            Message::Acknowledge(sequence).sign(&mut self.signer, &mut self.out);
        }
        let may_request = self
            .requested
            .is_none_or(|at| at.elapsed() > REQUEST_INTERVAL);
        if self.needs_resync && may_request {
            (self.needs_resync, self.requested) = (false, Some(Instant::now()));
            self.remote.lock().status.received_complete = false;
            Message::Resync(Resync::Requested).sign(&mut self.signer, &mut self.out);
        }
        if self.out.is_empty() {
            return Ok(());
        }
        let written = timeout(TIMEOUT, writer.write_all(&self.out)).await;
        written.map_err(|_| SessionError::Silent)??;
        self.remote.lock().status.bytes_sent += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    fn end(&self, error: &SessionError) {
        let mut state = self.remote.lock();
        if let SessionError::Refused(refusal) = error {
            state.count_refusal(refusal);
        }
        if let Some(number) = self.number
            && self.hub.is_newest(self.peer, number)
        {
            state.status.received_complete = false;
        }
        drop(state);
        let name = &self.remote.settings.name;
        match error {
            SessionError::Refused(refusal) => warn!("peer {name}: {refusal}"),
            error => debug!("records of peer {name}: {error}"),
        }
    }
}
