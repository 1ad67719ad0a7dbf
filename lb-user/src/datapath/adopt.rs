//! What an earlier manager left pinned: checked for its layout, read for adoption.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use lb_common::{
    address::V6,
    headers::PROTOCOL_UDP,
    maps::{
        Backend, Flow, FlowKey, Handshake, LAYOUT_VERSION, Neighbour, OwnerTags, PortPool,
        PortWord, SPREAD, Service, ServiceKey, Settings, TraceConfig, TraceCounts, Traffic, mode,
        name, state,
    },
};
use lb_core::{AdoptedState, BackendId, Endpoint, Mode, Protocol, ServiceId};

use super::{bpffs::open_map, family::from_mapped};
use crate::config::{Identity, Pinned};

/// The numbers, selections and states in force; empty where nothing was pinned.
#[derive(Debug, Clone, Default)]
pub struct Adoption {
    pub pinned: Pinned,
    pub adopted: AdoptedState,
}

impl Adoption {
    pub fn is_empty(&self) -> bool {
        self.pinned == Pinned::default()
    }
}

/// The pins belong to another version of memlb.
#[derive(Debug, thiserror::Error)]
#[error(
    "the maps pinned at {path} have layout {found}, and this memlb has layout {LAYOUT_VERSION}. \
     Either start the memlb that made them, or remove them (open connections end): \
     memlb unload --pin-path {path}"
)]
pub struct LayoutError {
    pub path: PathBuf,
    pub found: String,
}

/// Reads what is pinned in `pin_path`.
pub fn read(pin_path: &Path) -> Result<Adoption> {
    if !pin_path.join(name::SETTINGS).exists() {
        return Ok(Adoption::default());
    }
    check_layout(pin_path)?;
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

/// A backend's protocol is its service's; of one that is no longer there it does not matter.
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

pub(super) fn check_layout(pin_path: &Path) -> Result<()> {
    let refuse = |found: String| LayoutError {
        path: pin_path.to_owned(),
        found,
    };
    let expected: BTreeMap<&str, (usize, usize)> = [
        (name::SETTINGS, (4, size_of::<Settings>())),
        (
            name::SERVICES,
            (size_of::<ServiceKey>(), size_of::<Service>()),
        ),
        (name::SELECTION, (4, 4)),
        (name::BACKENDS, (4, size_of::<Backend>())),
        (name::NEIGHBOURS, (4, size_of::<Neighbour>())),
        (name::SOURCE_FILTER, (size_of::<V6>(), 4)),
        (name::TRAFFIC, (4, size_of::<Traffic>())),
        (name::FLOWS, (size_of::<FlowKey>(), size_of::<Flow>())),
        (
            name::FLOWS6,
            (size_of::<FlowKey<V6>>(), size_of::<Flow<V6>>()),
        ),
        (name::HALF_OPEN, (4, size_of::<Handshake>())),
        (name::HALF_OPEN6, (4, size_of::<Handshake<V6>>())),
        (name::OWNER_TAGS, (4, size_of::<OwnerTags>())),
        (name::OWNER_TAGS6, (4, size_of::<OwnerTags>())),
        (name::ENDPOINTS, (size_of::<ServiceKey>(), 4)),
        (name::PORT_POOLS, (4, size_of::<PortPool>())),
        (name::PORT_WORDS, (4, size_of::<PortWord>())),
        (name::PORT_HANDSHAKES, (4, 4)),
        (name::NAT_SOURCES, (4, size_of::<V6>())),
        (name::TRACE, (4, size_of::<TraceConfig>())),
        (name::TRACE_COUNTS, (4, size_of::<TraceCounts>())),
    ]
    .into();
    // The version stands in the first word of `settings`, whatever its size.
    let settings = open_map(pin_path, name::SETTINGS)?;
    let info = settings.info().context("look at map settings")?;
    if info.value_size() as usize == size_of::<Settings>() {
        let version = Array::<_, Settings>::try_from(Map::Array(settings))?
            .get(&0, 0)
            .context("read map settings")?
            .layout_version;
        // 0: a manager ended between making the map and writing it.
        if version != LAYOUT_VERSION && version != 0 {
            return Err(refuse(version.to_string()).into());
        }
    }
    for (map, (key, value)) in expected {
        let path = pin_path.join(map);
        if !path.exists() {
            continue;
        }
        let info = open_map(pin_path, map)?
            .info()
            .with_context(|| format!("look at map {map}"))?;
        let found = (info.key_size() as usize, info.value_size() as usize);
        if found != (key, value) {
            return Err(refuse(format!(
                "of another version (map {map} has {} + {} bytes an entry, not {key} + {value})",
                found.0, found.1
            ))
            .into());
        }
    }
    Ok(())
}

pub(super) fn array<V: Pod>(pin_path: &Path, map: &str) -> Result<Array<MapData, V>> {
    Array::try_from(Map::Array(open_map(pin_path, map)?)).with_context(|| format!("open map {map}"))
}

/// Reads the manager's settings as pinned.
pub fn settings(pin_path: &Path) -> Result<Settings> {
    let settings: Array<_, Settings> = array(pin_path, name::SETTINGS)?;
    settings.get(&0, 0).context("read map settings")
}

/// Reads the numbers of the services that are open, with their endpoints.
///
/// # Errors
///
/// Names the map that could not be read.
pub fn service_numbers(pin_path: &Path) -> Result<Vec<(ServiceId, Endpoint)>> {
    let services: HashMap<_, ServiceKey, Service> =
        HashMap::try_from(Map::HashMap(open_map(pin_path, name::SERVICES)?))?;
    let number = |entry| {
        let (key, Service { id }) = Result::context(entry, "read map services")?;
        Ok((ServiceId(id), endpoint(&key)))
    };
    services.iter().map(number).collect()
}

/// Returns the settings of the earlier manager of these pins, if there was one.
pub fn earlier_settings(pin_path: &Path) -> Option<Settings> {
    settings(pin_path)
        .ok()
        .filter(|settings| settings.layout_version == LAYOUT_VERSION)
}
