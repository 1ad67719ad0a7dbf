//! Starts the replication, and passes changes to it.

use std::collections::HashMap;

use anyhow::Result;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::{
    Manager, ManagerHandle, StateFile,
    peer_orders::{self, OperatorStateWatch},
    state_files::StateFiles,
};
use crate::{
    config::Config,
    datapath::{Datapath, PeerTables, link_addresses},
    peer::{
        self, OrderExchange, OwnInterface, PeerListener, PeerSettings, Registers, Replication,
        Topology,
    },
    runtime_thread::RuntimeThread,
};

/// The most frames of orders in the queue.
const ORDERS: usize = 64;

/// The running replication.
#[derive(Debug)]
pub(super) struct RunningReplication {
    topology: watch::Sender<Topology>,
    replicator: Option<RuntimeThread>,
    listener: PeerListener,
    manager: ManagerHandle,
}

/// Starts the replication if a peer is configured; otherwise the programs report nothing.
pub(super) fn start(
    listener: Option<PeerListener>,
    config: &Config,
    datapath: &mut Datapath,
    state_files: &StateFiles,
    manager: ManagerHandle,
) -> Result<Option<RunningReplication>> {
    // A former manager may have had other peers.
    let mut tables = PeerTables::open(datapath.pin_path())?;
    tables.set_links(&[], false)?;
    tables.set_reporting(listener.is_some())?;
    let Some(listener) = listener else {
        return Ok(None);
    };
    let replication = datapath.replication_tables()?;
    let (file, registers) = StateFile::<Registers>::load(
        &config.manager.state_file.with_file_name("peers.json"),
        "the orders of all managers",
        "remove the file; peers send the orders again",
    )?;
    let (sender, topology) = watch::channel(topology(config, datapath, 0));
    // For the next start, see [`Manager::replace_peers`].
    let (next_listener, next_manager) = (listener.try_clone()?, manager.clone());
    let exchange = OrderExchange::new(registers);
    let (order_sender, received) = mpsc::channel(ORDERS);
    let in_force = OperatorStateWatch {
        overrides: state_files.overrides.contents(),
        membership: state_files.membership.contents(),
        denied: state_files.denied.contents(),
    };
    let orders = peer_orders::run(
        exchange.clone(),
        in_force,
        received,
        manager,
        listener.name().to_owned(),
        file,
    );
    let replication = Replication::new(
        replication,
        datapath.pin_path(),
        topology,
        exchange,
        order_sender,
    );
    Ok(Some(RunningReplication {
        topology: sender,
        replicator: Some(peer::start(listener, replication, orders)?),
        listener: next_listener,
        manager: next_manager,
    }))
}

impl Manager {
    /// Whether the peers are others, or have other keys, after a reload.
    pub(super) fn are_peers_changed(&self, peers: &[PeerSettings]) -> bool {
        let replication = self.replication.as_ref();
        replication.is_some_and(|it| !it.listener.peers().is_same_as(peers))
    }

    /// Starts the replication again, with other peers. All connections are sent again.
    pub(super) fn replace_peers(&mut self, peers: Vec<PeerSettings>) -> Result<()> {
        let Some(mut replication) = self.replication.take() else {
            return Ok(());
        };
        // Only one replication at a time may use the ring and the tables.
        drop(replication.replicator.take());
        replication.listener.peers().replace(peers);
        self.replication = start(
            Some(replication.listener),
            &self.configuration.effective,
            &mut self.datapath,
            &self.state_files,
            replication.manager,
        )?;
        self.update_serving();
        Ok(())
    }

    /// Passes the number of backends that can take new connections to the replication. The caller has written the maps.
    pub(super) fn update_serving(&self) {
        let Some(replication) = &self.replication else {
            return;
        };
        let serving = u16::try_from(self.core.serving_backends()).unwrap_or(u16::MAX);
        replication.listener.peers().set_serving(serving);
        replication.topology.send_if_modified(|it| {
            let is_changed = it.serving != serving;
            it.serving = serving;
            is_changed
        });
    }

    /// Passes a changed topology to the replication.
    pub(super) fn update_topology(&self) {
        if let Some(replication) = &self.replication {
            let serving = replication.topology.borrow().serving;
            let topology = topology(&self.configuration.effective, &self.datapath, serving);
            replication.topology.send_if_modified(|before| {
                let is_changed = *before != topology;
                *before = topology;
                is_changed
            });
        }
    }
}

fn topology(config: &Config, datapath: &Datapath, serving: u16) -> Topology {
    let macs = link_addresses().unwrap_or_else(|error| {
        warn!("list the link addresses of this machine: {error}");
        HashMap::new()
    });
    let interface = |(name, index): (&str, Option<u32>)| OwnInterface {
        index: index.unwrap_or_default(),
        mac: macs.get(name).copied().unwrap_or_default().into(),
    };
    Topology {
        backends: datapath.identities().collect(),
        interfaces: datapath.interfaces().map(interface).collect(),
        nat_sources: config.manager.nat_sources.clone(),
        digest: config.digest().0,
        serving,
    }
}
