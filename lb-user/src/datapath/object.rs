//! The compiled kernel programs, embedded in this binary.

use std::path::Path;

use anyhow::{Context, Result};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use lb_common::maps::{MANAGER_MAPS, MapLayout, TRACE_SECTION, name};

use super::{capacity, interface::Interface};
use crate::config::Config;

/// The ELF object with all programs and maps.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("MEMLB_EBPF_OBJECT"));

/// Loads the object. Reuses pinned maps.
pub fn load(pin_path: &Path, config: &Config, interfaces: &[Interface]) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    // veth delivers XDP_TX only to a peer that runs XDP, and redirects to any peer with NAPI.
    let redirects = u8::from(
        interfaces
            .iter()
            .any(|it| it.kind.as_deref() == Some("veth")),
    );
    loader.override_global("XDP_REDIRECTS", &redirects, true);
    for MapLayout { name, .. } in MANAGER_MAPS {
        loader.map_pin_path(name, pin_path.join(name));
    }
    // A variable of the programs: a map with the name of its section.
    loader.map_pin_path(TRACE_SECTION, pin_path.join(name::TRACE));
    for (map, capacity) in capacity::sizes(config) {
        loader.map_max_entries(map, capacity);
    }
    loader
        .load(OBJECT)
        .context("load the kernel programs and their maps")
}
