//! What an earlier manager left pinned, read for adoption.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use lb_common::{
    headers::PROTOCOL_UDP,
    maps::{Backend, LAYOUT_VERSION, SPREAD, Service, ServiceKey, Settings, mode, name, state},
};
use lb_core::{AdoptedState, BackendId, Endpoint, Mode, Protocol, ServiceId};

use super::{
    family::from_mapped,
    layout::{self, open_map},
};
use crate::config::{Identity, PinnedIds};

/// The pinned ids, selections and states; empty if nothing is pinned.
#[derive(Debug, Clone, Default)]
pub struct Adoption {
    pub pinned: PinnedIds,
    pub adopted: AdoptedState,
}

impl Adoption {
    pub fn is_empty(&self) -> bool {
        self.pinned == PinnedIds::default()
    }
}

/// Reads what is pinned in `pin_path`.
pub fn read(pin_path: &Path) -> Result<Adoption> {
    if !pin_path.join(name::SETTINGS).exists() {
        return Ok(Adoption::default());
    }
    layout::check(pin_path)?;
    let selection: Array<_, u32> = array(pin_path, name::SELECTION)?;
    let backends: Array<_, Backend> = array(pin_path, name::BACKENDS)?;

    let mut adoption = Adoption::default();
    adoption.pinned.services = service_numbers(pin_path)?;
    for (ServiceId(id), _) in &adoption.pinned.services {
        let id = *id;
        let selected = selection.get(&id, 0).context("read map selection")?;
        if selected == SPREAD {
            adoption.adopted.spread.insert(ServiceId(id));
        } else if selected != 0 {
            adoption
                .adopted
                .selections
                .insert(ServiceId(id), BackendId(selected));
        }
    }
    for id in 1..backends.len() {
        let backend = backends.get(&id, 0).context("read map backends")?;
        if backend.port == 0 {
            continue;
        }
        let identity = identity(&backend, &adoption.pinned.services);
        adoption.pinned.backends.push((BackendId(id), identity));
        if matches!(backend.state, state::UP | state::DRAINING) {
            adoption.pinned.flows_go_on.insert(BackendId(id));
        }
        if backend.mode == mode::LOCAL {
            continue;
        }
        adoption
            .adopted
            .weights
            .insert(BackendId(id), backend.weight);
        match backend.state {
            state::UP => adoption.adopted.up.insert(BackendId(id)),
            state::DRAINING => adoption.adopted.draining.insert(BackendId(id)),
            _ => false,
        };
    }
    Ok(adoption)
}

fn endpoint(key: &ServiceKey) -> Endpoint {
    Endpoint {
        address: SocketAddr::new(from_mapped(key.address), u16::from_be_bytes(key.port)),
        protocol: match key.protocol {
            PROTOCOL_UDP => Protocol::Udp,
            _ => Protocol::Tcp,
        },
    }
}

/// A backend has the protocol of its service. Without the service it does not matter.
fn identity(backend: &Backend, services: &[(ServiceId, Endpoint)]) -> Identity {
    let service = services.iter().find(|(id, _)| id.0 == backend.service);
    Identity {
        endpoint: Endpoint {
            address: SocketAddr::new(from_mapped(backend.address), backend.port),
            protocol: service.map_or(Protocol::Tcp, |(_, service)| service.protocol),
        },
        mode: match backend.mode {
            mode::DSR => Mode::Dsr,
            mode::ROUTED => Mode::Routed,
            _ => Mode::Nat,
        },
        service: service.map(|(_, service)| *service),
    }
}

pub(crate) fn array<V: Pod>(pin_path: &Path, map: &str) -> Result<Array<MapData, V>> {
    Array::try_from(Map::Array(open_map(pin_path, map)?)).with_context(|| format!("open map {map}"))
}

/// Reads the manager's settings as pinned.
pub fn settings(pin_path: &Path) -> Result<Settings> {
    let settings: Array<_, Settings> = array(pin_path, name::SETTINGS)?;
    settings.get(&0, 0).context("read map settings")
}

/// Reads ids and endpoints of the open services.
///
/// # Errors
///
/// Names the map that could not be read.
pub fn service_numbers(pin_path: &Path) -> Result<Vec<(ServiceId, Endpoint)>> {
    let services: HashMap<_, ServiceKey, Service> =
        HashMap::try_from(Map::HashMap(open_map(pin_path, name::SERVICES)?))?;
    let number = |entry| {
        let (key, Service { id, .. }) = Result::context(entry, "read map services")?;
        Ok((ServiceId(id), endpoint(&key)))
    };
    services.iter().map(number).collect()
}

/// Returns the settings of an earlier manager of these pins.
pub fn previous_settings(pin_path: &Path) -> Option<Settings> {
    settings(pin_path)
        .ok()
        .filter(|settings| settings.layout_version == LAYOUT_VERSION)
}
