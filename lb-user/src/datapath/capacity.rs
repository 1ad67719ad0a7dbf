//! Capacities of the maps, and the check of pinned maps against the configuration.
//!
//! The connection tables of an address family without services have one entry, which saves tens of megabytes. They
//! are created again at the first start with a service of that family; they are empty, so no connection is lost.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result, bail};
use lb_common::maps::{
    COUNTED_CLIENTS, DEFAULT_HANDSHAKES, FLOW_EVENT_BYTES, PORTS_PER_WORD, SERVICE_CHOICES,
    SLOTS_PER_BUCKET, name,
};
use tracing::info;

use super::{layout::open_map, pool_layout::PoolLayout};
use crate::config::{Config, Limits};

/// Entries of the tables of a family without services; 0 is not allowed.
const UNALLOCATED: u32 = 1;

/// Size of the smallest ring that the kernel allows.
const PAGE_BYTES: u32 = 4_096;

/// The programs' round-robin counters; not pinned.
const ROUND_ROBIN: &str = "round_robin";

/// The connection tables of one family.
pub struct FamilyTables {
    pub family: &'static str,
    flows: &'static str,
    half_open: &'static str,
    owner_tags: &'static str,
    /// SYNs by slot of `half_open`; not pinned.
    syns: &'static str,
    has: fn(IpAddr) -> bool,
}

pub const FAMILIES: [FamilyTables; 2] = [
    FamilyTables {
        family: "IPv4",
        flows: name::FLOWS,
        half_open: name::HALF_OPEN,
        owner_tags: name::OWNER_TAGS,
        syns: "syns",
        has: |ip| ip.is_ipv4(),
    },
    FamilyTables {
        family: "IPv6",
        flows: name::FLOWS6,
        half_open: name::HALF_OPEN6,
        owner_tags: name::OWNER_TAGS6,
        syns: "syns6",
        has: |ip| ip.is_ipv6(),
    },
];

impl FamilyTables {
    /// Whether some service has an address of this family.
    pub fn are_used_by(&self, config: &Config) -> bool {
        let mut services = config.services.iter();
        services.any(|service| (self.has)(service.address.ip()))
    }
}

/// Whether a table with this capacity belongs to a family with services.
pub fn is_allocated(entries: u32) -> bool {
    entries > UNALLOCATED
}

/// Returns how many connections of mode `nat` there can be to one endpoint of a worker. `sources` are the
/// numbers of IPv4 and IPv6 source addresses; without any, the kernel's choice is the only one.
pub fn nat_port_count(ports_per_source: u64, sources: [u16; 2], is_ipv4: bool) -> u64 {
    let [v4, v6] = sources;
    let sources = if is_ipv4 { v4 } else { v6 };
    ports_per_source * u64::from(sources.max(1))
}

/// Returns the capacity of each map whose size depends on the configuration.
pub fn sizes(config: &Config) -> Vec<(&'static str, u32)> {
    let Limits {
        services,
        backends,
        flows,
        per_client,
        ..
    } = config.limits;
    let buckets = DEFAULT_HANDSHAKES / SLOTS_PER_BUCKET;
    let pool_words = PoolLayout::of(config).pool_words;
    let clients = match per_client {
        0 => UNALLOCATED,
        _ => COUNTED_CLIENTS,
    };
    let flow_event_bytes = match config.peers.is_empty() {
        true => PAGE_BYTES,
        false => FLOW_EVENT_BYTES,
    };
    let mut sizes = vec![
        (name::SERVICES, services),
        (name::SELECTION, services),
        (name::POLICIES, services),
        (name::CHOICES, services * SERVICE_CHOICES),
        (ROUND_ROBIN, services),
        (name::SERVICE_REFUSALS, services),
        (name::BACKENDS, backends),
        (name::NEIGHBOURS, backends),
        (name::TRAFFIC, backends),
        (name::ACTIVE, backends),
        (name::EVICTED, backends),
        (name::CLIENTS, clients),
        (name::FLOW_EVENTS, flow_event_bytes),
        (name::ENDPOINTS, backends),
        (name::PORT_POOLS, backends),
        (name::PORT_WORDS, backends * pool_words),
        (
            name::PORT_HANDSHAKES,
            backends * pool_words * PORTS_PER_WORD / 2,
        ),
    ];
    for tables in FAMILIES {
        let allocated = |entries| match tables.are_used_by(config) {
            true => entries,
            false => UNALLOCATED,
        };
        sizes.extend([
            // A connection has an entry for each direction.
            (tables.flows, allocated(flows.saturating_mul(2))),
            (tables.half_open, allocated(buckets * SLOTS_PER_BUCKET)),
            (tables.owner_tags, allocated(buckets)),
            (tables.syns, allocated(buckets * SLOTS_PER_BUCKET)),
        ]);
    }
    sizes
}

/// Adapts the pins of an earlier manager to this configuration. Removes maps that need another capacity, so that they
/// are created again: connection tables with one entry, states of NAT ports, counts of clients, and records for peers.
/// No port in use is lost, because the flow table decides which ports are in use.
///
/// # Errors
///
/// Names the setting that exceeds the pinned maps, and the remedy.
pub fn adapt_pins(pin_path: &Path, config: &Config) -> Result<()> {
    let pinned = |map: &str| -> Result<Option<u32>> {
        if !pin_path.join(map).exists() {
            return Ok(None);
        }
        let info = open_map(pin_path, map)?.info();
        let info = info.with_context(|| format!("read the capacity of map {map}"))?;
        Ok(Some(info.max_entries()))
    };
    for (setting, map, wanted) in [
        ("limits.services", name::SELECTION, config.limits.services),
        ("limits.backends", name::BACKENDS, config.limits.backends),
    ] {
        if let Some(room) = pinned(map)?.filter(|room| *room < wanted) {
            let path = pin_path.display();
            bail!(
                "{setting} is {wanted}, but the maps pinned at {path} have room for {room}: either \
                 set it to {room}, or remove them (open connections end): memlb unload --pin-path \
                 {path}"
            );
        }
    }
    let ports = [
        name::ENDPOINTS,
        name::PORT_POOLS,
        name::PORT_WORDS,
        name::PORT_HANDSHAKES,
    ];
    for (map, wanted) in sizes(config) {
        let removed: &[_] = match map {
            name::CLIENTS => &[name::CLIENTS],
            name::FLOW_EVENTS => &[name::FLOW_EVENTS],
            _ if ports.contains(&map) => &ports,
            _ => continue,
        };
        if pinned(map)?.is_some_and(|entries| entries != wanted) {
            removed.iter().try_for_each(|map| remove(pin_path, map))?;
        }
    }
    for tables in FAMILIES {
        let lacks = pinned(tables.half_open)?.is_some_and(|entries| !is_allocated(entries));
        if !lacks || !tables.are_used_by(config) {
            continue;
        }
        info!(
            "creating the connection tables of {} again, with their configured capacity",
            tables.family
        );
        for map in [tables.flows, tables.half_open, tables.owner_tags] {
            remove(pin_path, map)?;
        }
    }
    Ok(())
}

fn remove(pin_path: &Path, map: &str) -> Result<()> {
    let path = pin_path.join(map);
    if !path.exists() {
        return Ok(());
    }
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn sizes_of(addresses: &[&str]) -> Vec<(&'static str, u32)> {
        let service = |(number, address): (usize, &&str)| {
            format!(
                "[[service]]\nname = \"{number}\"\naddress = \"{address}:80\"\nfallback = \"reject\"\n\
                 workers = [{{ name = \"w\", address = \"{}:80\" }}]\n",
                address.replace('1', "2")
            )
        };
        let services: String = addresses.iter().enumerate().map(service).collect();
        let text = format!(
            "manager.interfaces = [\"eth1\"]\nlimits = {{ services = 100, flows = 1000 }}\n{services}"
        );
        sizes(&Config::parse(&text, "test", &Overrides::default(), None).unwrap())
    }

    fn size(sizes: &[(&str, u32)], map: &str) -> u32 {
        let found = sizes.iter().find(|(name, _)| *name == map);
        found.unwrap_or_else(|| panic!("{map}")).1
    }

    #[test]
    fn only_families_with_services_take_memory() {
        let (v4, v6) = ("10.0.0.1", "[2001:db8::1]");
        for (addresses, flows, flows6) in [
            (&[v4][..], 2000, 1),
            (&[v6], 1, 2000),
            (&[v4, v6], 2000, 2000),
        ] {
            let sizes = sizes_of(addresses);
            assert_eq!(size(&sizes, "flows"), flows, "{addresses:?}");
            assert_eq!(size(&sizes, "flows6"), flows6, "{addresses:?}");
            assert_eq!(is_allocated(size(&sizes, "half_open6")), flows6 > 1);
            assert_eq!(is_allocated(size(&sizes, "owner_tags6")), flows6 > 1);
            assert_eq!(size(&sizes, "choices"), 100 * 8_192);
        }
    }
}
