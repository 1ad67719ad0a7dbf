//! The status from the pinned maps, for display while no manager runs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use lb_common::maps::{Backend, SPREAD, mode, name, state};
use lb_core::{BackendId, Endpoint, MANAGER, NO_BACKEND, ServiceId};
use serde::Serialize;

use crate::{
    config::Config,
    datapath::{
        BackendTraffic, PeerTables, Stats, adopt, from_mapped, name_of, named_map::ArrayMap,
    },
};

/// The steering state of the packet programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PinnedStatus {
    pub pin_path: PathBuf,
    pub services: Vec<PinnedService>,
    /// The peers to which packets of unknown connections are relayed.
    pub peers: Vec<PinnedPeer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PinnedPeer {
    pub interface: String,
    /// The peer's link address there.
    pub mac: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PinnedService {
    /// From the configuration, by address, because the maps have no names.
    pub name: Option<String>,
    pub address: String,
    pub protocol: String,
    /// Whether new connections are spread over the backends that are up.
    pub is_spread: bool,
    pub backends: Vec<PinnedBackend>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PinnedBackend {
    pub name: Option<String>,
    pub backend_id: u32,
    pub address: String,
    /// `up`, `down`, `draining` or `unknown`.
    pub state: String,
    pub is_selected: bool,
    #[serde(flatten)]
    pub traffic: BackendTraffic,
}

impl PinnedStatus {
    /// Reads the pins, with names from `config`; `None` if there are no pins.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read, or says that the pins have another layout.
    pub fn read(pin_path: &Path, config: Option<&Config>) -> Result<Option<Self>> {
        let adoption = adopt::read(pin_path)?;
        if adoption.is_empty() {
            return Ok(None);
        }
        let stats = Stats::read_totals(pin_path)?;
        let backends = ArrayMap::<Backend>::open(pin_path, name::BACKENDS)?;
        let selection = ArrayMap::<u32>::open(pin_path, name::SELECTION)?;
        let mut services = Vec::new();
        for (ServiceId(id), endpoint) in &adoption.pinned.services {
            let selected = selection.get(*id)?;
            let mut found = Vec::new();
            for (BackendId(backend_id), _) in &adoption.pinned.backends {
                let backend = backends.get(*backend_id)?;
                if backend.service != *id {
                    continue;
                }
                let traffic = stats.backends.get(backend_id).copied();
                let is_selected = match selected {
                    SPREAD => backend.state == state::UP && backend.mode != mode::LOCAL,
                    selected => selected == *backend_id,
                };
                found.push(PinnedBackend {
                    name: backend_name(&backend, *endpoint, config),
                    backend_id: *backend_id,
                    address: address(&backend),
                    state: state_name(backend.state).to_owned(),
                    is_selected,
                    traffic: traffic.unwrap_or_default(),
                });
            }
            services.push(PinnedService {
                name: configured(*endpoint, config).map(|it| it.name.clone()),
                address: endpoint.address.to_string(),
                protocol: endpoint.protocol.to_string(),
                is_spread: selected == SPREAD,
                backends: found,
            });
        }
        services.sort_by(|one, other| one.address.cmp(&other.address));
        Ok(Some(Self {
            pin_path: pin_path.to_owned(),
            services,
            peers: peers(pin_path)?,
        }))
    }
}

fn peers(pin_path: &Path) -> Result<Vec<PinnedPeer>> {
    let links = PeerTables::open(pin_path)?.links();
    let peers = links.into_iter().map(|(interface, link)| PinnedPeer {
        interface: name_of(interface).unwrap_or_else(|| format!("interface {interface}")),
        mac: link.mac.bytes().map(|byte| format!("{byte:02x}")).join(":"),
    });
    Ok(peers.collect())
}

impl PinnedService {
    /// The backend of new connections, by name, or by address if it has no name.
    pub fn selected(&self) -> String {
        if self.is_spread {
            return "all that are up".to_owned();
        }
        let selected = self.backends.iter().find(|it| it.is_selected);
        let name = |it: &PinnedBackend| it.name.clone().unwrap_or_else(|| it.address.clone());
        selected.map_or_else(|| NO_BACKEND.to_owned(), name)
    }
}

fn configured(endpoint: Endpoint, config: Option<&Config>) -> Option<&crate::config::Service> {
    let mut services = config?.services.iter();
    services.find(|it| it.endpoint() == endpoint)
}

fn backend_name(backend: &Backend, endpoint: Endpoint, config: Option<&Config>) -> Option<String> {
    if backend.mode == mode::LOCAL {
        return Some(MANAGER.to_owned());
    }
    let mut workers = configured(endpoint, config)?.workers.iter();
    let worker = workers.find(|it| it.address.to_string() == address(backend));
    worker.map(|it| it.name.clone())
}

fn address(backend: &Backend) -> String {
    std::net::SocketAddr::new(from_mapped(backend.address), backend.port).to_string()
}

fn state_name(state: u8) -> &'static str {
    match state {
        state::UP => "up",
        state::DOWN => "down",
        state::DRAINING => "draining",
        _ => "unknown",
    }
}
