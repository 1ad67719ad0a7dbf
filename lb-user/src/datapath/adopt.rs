//! What an earlier manager left pinned: checked for its layout, read for adoption.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use lb_common::maps::{
    Backend, Flow, FlowKey, Handshake, LAYOUT_VERSION, SPREAD, Service, ServiceKey, Settings, mode,
    name, state,
};

use super::bpffs::open_map;
use crate::{
    config::Pinned,
    core::{Adopted, BackendId, ServiceId},
};

/// The numbers, selections and states in force; empty where nothing was pinned.
#[derive(Debug, Clone, Default)]
pub struct Adoption {
    pub pinned: Pinned,
    pub adopted: Adopted,
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
    let services: HashMap<_, ServiceKey, Service> =
        HashMap::try_from(Map::HashMap(open_map(pin_path, name::SERVICES)?))?;
    let selection: Array<_, u32> = array(pin_path, name::SELECTION)?;
    let backends: Array<_, Backend> = array(pin_path, name::BACKENDS)?;

    let mut adoption = Adoption::default();
    for id in 1..backends.len() {
        let backend = backends.get(&id, 0).context("read map backends")?;
        if backend.port == 0 {
            continue;
        }
        let address = SocketAddrV4::new(Ipv4Addr::from(backend.address), backend.port);
        adoption.pinned.backends.push((BackendId(id), address));
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
    for entry in services.iter() {
        let (key, Service { id }) = entry.context("read map services")?;
        let address = SocketAddrV4::new(Ipv4Addr::from(key.address), u16::from_be_bytes(key.port));
        adoption.pinned.services.push((ServiceId(id), address));
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
    Ok(adoption)
}

fn check_layout(pin_path: &Path) -> Result<()> {
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
        (name::FLOWS, (size_of::<FlowKey>(), size_of::<Flow>())),
        (name::HALF_OPEN, (4, size_of::<Handshake>())),
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

fn array<V: Pod>(pin_path: &Path, map: &str) -> Result<Array<MapData, V>> {
    Array::try_from(Map::Array(open_map(pin_path, map)?)).with_context(|| format!("open map {map}"))
}

/// The manager's settings as pinned; nothing if there are none of this layout.
fn settings(pin_path: &Path) -> Option<Settings> {
    let settings: Array<_, Settings> = array(pin_path, name::SETTINGS).ok()?;
    settings.get(&0, 0).ok()
}

/// Returns `accept_local` as it was before the first manager of these pins, if there was one.
pub fn accept_local_before(pin_path: &Path) -> Option<u32> {
    settings(pin_path)
        .filter(|settings| settings.layout_version == LAYOUT_VERSION)
        .map(|settings| settings.accept_local_before)
}
