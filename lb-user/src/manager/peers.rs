//! How the manager starts the replication, and tells it what changes.

use std::collections::HashMap;

use anyhow::Result;
use nix::ifaddrs::getifaddrs;
use tokio::sync::watch;
use tracing::warn;

use super::{Manager, ManagerHandle, state_file::StateFile, state_files::StateFiles};
use crate::{
    config::Config,
    datapath::{Datapath, PeerTables},
    peer::{InForce, OwnInterface, PeerListener, Registers, Replication, Replicator, Topology},
};

/// The running replication.
#[derive(Debug)]
pub(super) struct Replicated {
    topology: watch::Sender<Topology>,
    _replicator: Replicator,
}

/// Starts the replication if a peer is configured; otherwise the programs report nothing.
pub(super) fn start(
    listener: Option<PeerListener>,
    config: &Config,
    datapath: &mut Datapath,
    state_files: &StateFiles,
    manager: ManagerHandle,
) -> Result<Option<Replicated>> {
    // An earlier manager may have had other peers.
    let mut tables = PeerTables::open(datapath.pin_path())?;
    tables.set_links(&[], false)?;
    tables.report(listener.is_some())?;
    let Some(listener) = listener else {
        return Ok(None);
    };
    let replication = datapath.replication()?;
    let registers = StateFile::<Registers>::load(
        &config.manager.state_file.with_file_name("peers.json"),
        "the orders of all managers",
        "remove the file; peers send the orders again",
    )?;
    let (sender, topology) = watch::channel(topology(config, datapath));
    let replication = Replication::new(
        replication,
        datapath.pin_path(),
        topology,
        InForce {
            overrides: state_files.overrides.contents(),
            membership: state_files.membership.contents(),
            denied: state_files.denied.contents(),
        },
        registers,
        manager,
    );
    Ok(Some(Replicated {
        topology: sender,
        _replicator: Replicator::start(listener, replication)?,
    }))
}

impl Manager {
    /// Tells the replication what has changed.
    pub(super) fn update_topology(&self) {
        if let Some(peers) = &self.replicated {
            let topology = topology(&self.configuration.effective, &self.datapath);
            peers.topology.send_if_modified(|before| {
                let is_changed = *before != topology;
                *before = topology;
                is_changed
            });
        }
    }
}

fn topology(config: &Config, datapath: &Datapath) -> Topology {
    let macs = link_addresses();
    let interface = |(name, index): (&str, Option<u32>)| OwnInterface {
        index: index.unwrap_or_default(),
        mac: macs.get(name).copied().unwrap_or_default().into(),
    };
    Topology {
        backends: datapath.identities().collect(),
        interfaces: datapath.interfaces().map(interface).collect(),
        nat_sources: config.manager.nat_sources.clone(),
        digest: config.digest().0,
    }
}

/// Returns the link address of each interface.
fn link_addresses() -> HashMap<String, [u8; 6]> {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            warn!("list the link addresses of this machine: {error}");
            return HashMap::new();
        }
    };
    let link = interfaces.filter_map(|it| {
        let mac = it.address?.as_link_addr()?.addr()?;
        Some((it.interface_name, mac))
    });
    link.collect()
}
