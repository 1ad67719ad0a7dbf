//! The thread of the replication.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt::ReuseAddr,
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tracing::error;

use super::{
    handle::Peers,
    hub::{Hub, LocalManager},
    orders::{OrderExchange, ReceivedOrders},
    receiver,
    remote::PeerSettings,
    sender,
    tables::{KernelTables, read_events},
    topology::Topology,
};
use crate::{
    config::{Config, Peer},
    datapath::{self, FlowEvents},
    history::now_ms,
    keys::read_peer_keys,
    runtime_thread::RuntimeThread,
    sockets::tcp_holder,
};

/// The interval of refreshes, in which all carried connections are sent again.
const REFRESH: Duration = Duration::from_secs(60);

/// How often the peers' machines are checked for being alive.
const CHECK: Duration = Duration::from_millis(100);

/// The socket at which peers connect.
#[derive(Debug)]
pub struct PeerListener {
    /// Does not listen before the replication starts. Until then the kernel refuses connections, because no task would
    /// answer them.
    socket: OwnedFd,
    address: SocketAddr,
    peers: Peers,
    name: String,
}

impl PeerListener {
    /// Reads the keys of the configured peers, and binds the socket; `None` without a peer.
    ///
    /// # Errors
    ///
    /// Names the key that cannot be used, or says why the address cannot.
    pub fn bind(config: &Config) -> Result<Option<Self>> {
        if config.peers.is_empty() {
            return Ok(None);
        }
        let peers = read_peers(config)?;
        let address = config.manager.peer_listen;
        let address = address.context("a [[peer]] needs manager.peer_listen")?;
        let socket = bound_socket(address);
        Ok(Some(Self {
            socket: socket.map_err(|error| bind_error(address, error))?,
            address,
            peers: Peers::new(peers),
            name: config.manager.own_name()?,
        }))
    }

    pub fn peers(&self) -> Peers {
        self.peers.clone()
    }

    /// Returns the name of this manager.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the same socket and the same peers.
    ///
    /// # Errors
    ///
    /// There are too many open files.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone().context("clone the peers' socket")?,
            address: self.address,
            peers: self.peers.clone(),
            name: self.name.clone(),
        })
    }
}

/// Reads the keys of the configured peers.
///
/// # Errors
///
/// Names the key that cannot be used.
pub fn read_peers(config: &Config) -> Result<Vec<PeerSettings>> {
    let settings = |peer: &Peer| {
        let keys = read_peer_keys(&peer.key);
        Ok(PeerSettings {
            name: peer.name.clone(),
            address: peer.address,
            keys: keys.with_context(|| format!("read the key of peer {}", peer.name))?,
        })
    };
    config.peers.iter().map(settings).collect()
}

fn bound_socket(address: SocketAddr) -> nix::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

fn bind_error(address: SocketAddr, error: nix::Error) -> anyhow::Error {
    let error = io::Error::from(error);
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => format!("; {}", tcp_holder(address).in_use()),
        io::ErrorKind::AddrNotAvailable => "; this machine does not have that address".to_owned(),
        _ => String::new(),
    };
    anyhow::anyhow!("listen for peers at {address} (manager.peer_listen): {error}{hint}")
}

/// The resources of the replication.
#[derive(Debug)]
pub struct Replication {
    events: FlowEvents,
    tables: KernelTables,
    topology: watch::Receiver<Topology>,
    exchange: OrderExchange,
    received_orders: mpsc::Sender<ReceivedOrders>,
}

impl Replication {
    pub fn new(
        kernel: datapath::ReplicationTables,
        pin_path: &Path,
        topology: watch::Receiver<Topology>,
        exchange: OrderExchange,
        received_orders: mpsc::Sender<ReceivedOrders>,
    ) -> Self {
        Self {
            events: kernel.events,
            tables: KernelTables {
                intake: kernel.intake,
                tables: kernel.tables,
                pin_path: pin_path.to_owned(),
            },
            topology,
            exchange,
            received_orders,
        }
    }
}

/// Listens for peers, and starts the replication in a thread of its own, which ends when the result is dropped. The
/// thread also runs `orders`, the manager's task that records its orders in the exchange and applies those of peers.
///
/// # Errors
///
/// Says why the address or the thread cannot be used.
pub fn start(
    listener: PeerListener,
    replication: Replication,
    orders: impl Future<Output = ()> + Send + 'static,
) -> Result<RuntimeThread> {
    listen(&listener.socket, Backlog::MAXCONN)
        .map_err(|error| bind_error(listener.address, error))?;
    let run = || async {
        tokio::join!(run(listener, replication), orders);
    };
    RuntimeThread::start("peers", "replication", run)
}

async fn run(listener: PeerListener, replication: Replication) {
    let PeerListener {
        socket,
        peers,
        name,
        ..
    } = listener;
    let own = LocalManager {
        name,
        epoch: now_ms(),
        refresh: REFRESH,
    };
    let listener = TcpListener::from(socket);
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!("listen for peers: {error}"),
    };
    let hub = Hub::new(
        own,
        peers.remotes(),
        replication.topology,
        Box::new(replication.tables),
    );
    let hub = Arc::new(hub);
    for peer in 0..hub.remotes.len() {
        tokio::spawn(sender::run(
            hub.clone(),
            peer,
            replication.exchange.outbox(peer),
        ));
    }
    let orders = replication.received_orders;
    tokio::spawn(receiver::serve(hub.clone(), listener, orders));
    tokio::spawn(check_alive(hub.clone()));
    read_events(replication.events, hub).await;
}

async fn check_alive(hub: Arc<Hub>) {
    let mut ticks = interval(CHECK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        hub.update_tables(Instant::now());
    }
}
