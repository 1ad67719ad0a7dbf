//! State that the tasks of the replication share.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_common::maps::{FlowRecord, PeerLink};
use tokio::sync::watch;
use tracing::warn;

use super::{
    carried::CarriedConnections,
    kernel::{Kernel, Outcomes, Scan},
    remote::RemotePeer,
    topology::Topology,
    wire::{Hello, PROTOCOLS},
};

/// The index of an interface of this manager, and link addresses.
type InterfaceLink = (u32, PeerLink);

/// This manager's identity, and its refresh interval.
#[derive(Debug, Clone)]
pub struct LocalManager {
    pub name: String,
    /// When it started, in milliseconds since 1970.
    pub epoch: u64,
    /// The interval of refreshes, in which all carried connections are sent again.
    pub refresh: Duration,
}

/// Shared by all tasks of the replication.
#[derive(Debug)]
pub struct Hub {
    pub own: LocalManager,
    /// Of the peers at the start of the replication.
    pub remotes: Arc<[RemotePeer]>,
    pub topology: watch::Receiver<Topology>,
    tables: Mutex<SharedTables>,
    /// The number of the newest incoming session of each peer.
    incoming: Vec<AtomicU64>,
}

#[derive(Debug)]
struct SharedTables {
    kernel: Box<dyn Kernel>,
    carried: CarriedConnections,
    /// As last written: the peers that are alive, and whether one is incomplete.
    links: (Vec<InterfaceLink>, bool),
    addresses: BTreeSet<IpAddr>,
}

impl Hub {
    pub fn new(
        own: LocalManager,
        remotes: Arc<[RemotePeer]>,
        topology: watch::Receiver<Topology>,
        kernel: Box<dyn Kernel>,
    ) -> Self {
        Self {
            incoming: remotes.iter().map(|_| AtomicU64::new(0)).collect(),
            remotes,
            own,
            topology,
            tables: Mutex::new(SharedTables {
                kernel,
                carried: CarriedConnections::default(),
                links: (Vec::new(), false),
                addresses: BTreeSet::new(),
            }),
        }
    }

    pub fn remote(&self, peer: usize) -> &RemotePeer {
        &self.remotes[peer]
    }

    /// Queues records of this manager's connections for all peers. They have waited since `since`.
    pub fn publish(&self, records: &[FlowRecord], since: Instant) {
        let remotes = self.remotes.iter();
        remotes.for_each(|remote| remote.push(records, since));
    }

    /// Records that events of the kernel were lost.
    pub fn record_loss(&self, records: u64) {
        for remote in &*self.remotes {
            remote.lock().record_loss(records);
            remote.wake.notify_one();
        }
    }

    /// Returns a new hello.
    ///
    /// # Errors
    ///
    /// The kernel returns no random number.
    pub fn hello(&self) -> Result<Hello> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).context("draw a nonce")?;
        Ok(Hello {
            protocols: (*PROTOCOLS.start(), *PROTOCOLS.end()),
            nonce,
            echoed_nonce: [0; 16],
            epoch: self.own.epoch,
            name: self.own.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            advertisement: self.topology.borrow().advertisement(),
        })
    }

    /// Begins an incoming session of a peer that started at `epoch`, which ends the peer's older ones. Returns its
    /// number.
    pub fn begin_incoming(&self, peer: usize, epoch: u64) -> u64 {
        self.tables().carried.begin_session(peer as u16, epoch);
        self.incoming[peer].fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn is_newest(&self, peer: usize, session: u64) -> bool {
        self.incoming[peer].load(Ordering::Relaxed) == session
    }

    /// Writes connections of a peer to the tables.
    ///
    /// # Errors
    ///
    /// Says why they were not written.
    pub fn admit(&self, peer: usize, records: &[FlowRecord]) -> Result<Outcomes> {
        let mut outcomes = Outcomes::new();
        let mut tables = self.tables();
        tables.kernel.admit(records, &mut outcomes)?;
        for record in records {
            tables.carried.record(peer as u16, record);
        }
        Ok(outcomes)
    }

    /// Ends a refresh of a peer, and removes the connections that it no longer carries.
    ///
    /// # Errors
    ///
    /// Says why nothing was removed.
    pub fn end_refresh(&self, peer: usize) -> Result<Outcomes> {
        let mut outcomes = Outcomes::new();
        let mut tables = self.tables();
        let forgotten = tables.carried.end_refresh(peer as u16);
        if !forgotten.is_empty() {
            tables.kernel.admit(&forgotten, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    /// Begins to read all connections.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read.
    pub fn scan(&self) -> Result<Box<dyn Scan>> {
        self.tables().kernel.scan()
    }

    /// Returns the time of the tables in ticks.
    ///
    /// # Errors
    ///
    /// The clock cannot be read.
    pub fn now_ticks(&self) -> Result<u32> {
        self.tables().kernel.now_ticks()
    }

    /// Writes the peers that are alive and the NAT addresses to the maps, if they have changed.
    pub fn update_tables(&self, now: Instant) {
        let topology = self.topology.borrow();
        let mut addresses: BTreeSet<IpAddr> = topology.nat_sources.iter().copied().collect();
        let mut links = Vec::new();
        let mut incomplete = false;
        for remote in &*self.remotes {
            let mut state = remote.lock();
            let Some(advertisement) = state.advertisement.clone() else {
                continue;
            };
            state.status.configuration_matches = Some(advertisement.digest == topology.digest);
            state
                .status
                .nat_sources
                .clone_from(&advertisement.nat_sources);
            addresses.extend(&advertisement.nat_sources);
            if !state.is_alive(now) {
                continue;
            }
            incomplete |= !state.status.received_complete;
            for (mac, own) in advertisement.interfaces.iter().zip(&topology.interfaces) {
                if *mac != [0; 6] && own.index != 0 {
                    let (mac, own_mac) = ((*mac).into(), own.mac);
                    links.push((own.index, PeerLink { mac, own_mac }));
                }
            }
        }
        drop(topology);
        self.tables().write((links, incomplete), addresses);
    }

    fn tables(&self) -> MutexGuard<'_, SharedTables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedTables {
    /// Writes what has changed. A failed write is repeated at the next change or tick.
    fn write(&mut self, links: (Vec<InterfaceLink>, bool), addresses: BTreeSet<IpAddr>) {
        if addresses != self.addresses {
            let list: Vec<IpAddr> = addresses.iter().copied().collect();
            match self.kernel.set_addresses(&list) {
                Ok(()) => self.addresses = addresses,
                Err(error) => warn!("write the NAT addresses of peers: {error:#}"),
            }
        }
        if links != self.links {
            match self.kernel.set_links(&links.0, links.1) {
                Ok(()) => self.links = links,
                Err(error) => warn!("write the peers that are alive: {error:#}"),
            }
        }
    }
}
