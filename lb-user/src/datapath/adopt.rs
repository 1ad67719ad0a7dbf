//! Reads the pins of an earlier manager for adoption.

use std::{net::SocketAddr, path::Path};

use anyhow::Result;
use lb_common::maps::{
    Backend, LAYOUT_VERSION, SPREAD, Service, ServiceKey, Settings, mode, name, state,
};
use lb_core::{AdoptedState, BackendId, Endpoint, Mode, Protocol, ServiceId};

use super::{
    family::from_mapped,
    layout,
    named_map::{ArrayMap, HashTable},
    protocol::protocol_of,
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

/// Reads the pins in `pin_path`.
pub fn read(pin_path: &Path) -> Result<Adoption> {
    if !pin_path.join(name::SETTINGS).exists() {
        return Ok(Adoption::default());
    }
    layout::check(pin_path)?;
    let selection = ArrayMap::<u32>::open(pin_path, name::SELECTION)?;
    let backends = ArrayMap::<Backend>::open(pin_path, name::BACKENDS)?;

    let mut adoption = Adoption::default();
    adoption.pinned.services = service_ids(pin_path)?;
    let adopted = &mut adoption.adopted;
    for &(service, _) in &adoption.pinned.services {
        match selection.get(service.0)? {
            0 => {}
            SPREAD => _ = adopted.spread.insert(service),
            selected => _ = adopted.selections.insert(service, BackendId(selected)),
        }
    }
    for id in 1..backends.len() {
        let backend = backends.get(id)?;
        if backend.port == 0 {
            continue;
        }
        let id = BackendId(id);
        let identity = identity(&backend, &adoption.pinned.services);
        adoption.pinned.backends.push((id, identity));
        if matches!(backend.state, state::UP | state::DRAINING) {
            adoption.pinned.keeps_flows.insert(id);
        }
        if backend.mode == mode::LOCAL {
            continue;
        }
        adopted.weights.insert(id, backend.weight);
        match backend.state {
            state::UP => adopted.up.insert(id),
            state::DRAINING => adopted.draining.insert(id),
            _ => false,
        };
    }
    Ok(adoption)
}

fn endpoint(key: &ServiceKey) -> Endpoint {
    Endpoint {
        address: SocketAddr::new(from_mapped(key.address), u16::from_be_bytes(key.port)),
        protocol: protocol_of(key.protocol).unwrap_or(Protocol::Tcp),
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

/// Reads the manager's settings as pinned.
pub fn settings(pin_path: &Path) -> Result<Settings> {
    ArrayMap::open(pin_path, name::SETTINGS)?.get(0)
}

/// Reads the ids and endpoints of the services in map `services`.
///
/// # Errors
///
/// Names the map that could not be read.
pub fn service_ids(pin_path: &Path) -> Result<Vec<(ServiceId, Endpoint)>> {
    let services = HashTable::<ServiceKey, Service>::open(pin_path, name::SERVICES)?;
    let id = |(key, service): (_, Service)| (ServiceId(service.id), endpoint(&key));
    services.entries().map(|it| it.map(id)).collect()
}

/// Returns the settings that an earlier manager of this layout version has pinned.
pub fn previous_settings(pin_path: &Path) -> Option<Settings> {
    settings(pin_path)
        .ok()
        .filter(|settings| settings.layout_version == LAYOUT_VERSION)
}
