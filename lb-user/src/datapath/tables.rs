//! The maps that the manager's main task writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use anyhow::{Context, Result};
use aya::Ebpf;
use lb_common::{
    address::V6,
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    maps::{
        self, Backend, DEFAULT_HANDSHAKES, Handshake, MAX_NAT_SOURCES, NO_PORT, Neighbour,
        PortPool, PortWord, SLOTS_PER_BUCKET, Service, ServiceKey, Traffic, mode, name, state,
    },
};
use lb_core::Endpoint;

use super::{
    capacity::{FAMILIES, is_allocated, nat_port_count},
    choice_table::ChoiceTable,
    family::mapped,
    named_map::{ArrayMap, HashTable, PerCpuMap},
    pool_layout::PoolLayout,
    protocol::protocol_number,
    source_filter::SourceFilter,
};
use crate::config::Config;

#[derive(Debug)]
pub struct Tables {
    settings: ArrayMap<maps::Settings>,
    services: HashTable<ServiceKey, Service>,
    pub selection: ArrayMap<u32>,
    pub choices: ChoiceTable,
    pub backends: ArrayMap<Backend>,
    neighbours: ArrayMap<Neighbour>,
    pub source_filter: SourceFilter,
    active: ArrayMap<u64>,
    evicted: ArrayMap<u64>,
    traffic: PerCpuMap<Traffic>,
    ports: ArrayMap<u64>,
    nat_sources: ArrayMap<V6>,
    port_pools: ArrayMap<PortPool>,
    port_words: ArrayMap<PortWord>,
    endpoints: HashTable<ServiceKey, u32>,
    /// Contents of `endpoints`.
    pools: BTreeMap<ServiceKey, u32>,
    layout: PoolLayout,
    /// The source ports of connections to workers.
    nat_ports: RangeInclusive<u16>,
    /// Used for its capacity only, like the next.
    half_open: ArrayMap<Handshake>,
    half_open6: ArrayMap<Handshake<V6>>,
}

impl Tables {
    pub fn from_ebpf(ebpf: &mut Ebpf, config: &Config) -> Result<Self> {
        let limits = &config.limits;
        let endpoints = HashTable::from_ebpf(ebpf, name::ENDPOINTS)?;
        Ok(Self {
            settings: ArrayMap::from_ebpf(ebpf, name::SETTINGS)?,
            services: HashTable::from_ebpf(ebpf, name::SERVICES)?,
            selection: ArrayMap::from_ebpf(ebpf, name::SELECTION)?,
            choices: ChoiceTable::from_ebpf(ebpf)?,
            backends: ArrayMap::from_ebpf(ebpf, name::BACKENDS)?,
            neighbours: ArrayMap::from_ebpf(ebpf, name::NEIGHBOURS)?,
            source_filter: SourceFilter::from_ebpf(ebpf)?,
            active: ArrayMap::from_ebpf(ebpf, name::ACTIVE)?,
            evicted: ArrayMap::from_ebpf(ebpf, name::EVICTED)?,
            traffic: PerCpuMap::from_ebpf(ebpf, name::TRAFFIC)?,
            ports: ArrayMap::from_ebpf(ebpf, name::PORTS)?,
            nat_sources: ArrayMap::from_ebpf(ebpf, name::NAT_SOURCES)?,
            port_pools: ArrayMap::from_ebpf(ebpf, name::PORT_POOLS)?,
            port_words: ArrayMap::from_ebpf(ebpf, name::PORT_WORDS)?,
            pools: endpoints.entries().collect::<Result<_>>()?,
            endpoints,
            layout: PoolLayout::of(config),
            nat_ports: limits.nat_ports.first..=limits.nat_ports.last,
            half_open: ArrayMap::from_ebpf(ebpf, name::HALF_OPEN)?,
            half_open6: ArrayMap::from_ebpf(ebpf, name::HALF_OPEN6)?,
        })
    }

    /// Writes the settings and the NAT addresses.
    pub fn write_settings(
        &mut self,
        config: &Config,
        persistent: PersistentSettings,
    ) -> Result<()> {
        let (limits, sources) = (&config.limits, &config.manager.nat_sources);
        for (first, is_v4) in [(0, true), (MAX_NAT_SOURCES, false)] {
            let of_family = sources.iter().filter(|source| source.is_ipv4() == is_v4);
            for (index, source) in (first..first + MAX_NAT_SOURCES).zip(of_family) {
                self.nat_sources.set(index, mapped(*source))?;
            }
        }
        // With another range of ports, some may be free.
        for pool in self.pools.values().copied() {
            let mut searches = self.port_pools.get(pool)?;
            for next in [&mut searches.next_free, &mut searches.next_waiting] {
                if *next == NO_PORT {
                    *next = 0;
                }
            }
            self.port_pools.set(pool, searches)?;
        }
        let nanoseconds =
            |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let settings = maps::Settings {
            layout_version: maps::LAYOUT_VERSION,
            nat_port_first: limits.nat_ports.first,
            nat_port_count: limits.nat_ports.last - limits.nat_ports.first + 1,
            established_idle_ns: nanoseconds(limits.established_idle),
            datagram_idle_ns: nanoseconds(limits.datagram_idle),
            closing_idle_ns: nanoseconds(limits.closing_idle),
            half_open_idle_ns: nanoseconds(limits.half_open_idle),
            accept_local_before: persistent.accept_local_before,
            half_open_buckets: self.half_open_buckets(),
            secret: persistent.secret,
            pool_words: self.layout.pool_words,
            source_words: self.layout.source_words,
            nat_sources: self.layout.sources,
            per_client: limits.per_client,
            direct_flows: limits.flows / 4 * 3,
            reverse_sync_shift: maps::reverse_sync_shift(limits.flows.saturating_mul(2)),
        };
        self.settings.set(0, settings)
    }

    /// The number of buckets in the handshake tables.
    fn half_open_buckets(&self) -> u32 {
        let capacities = [self.half_open.len(), self.half_open6.len()];
        let allocated = capacities.into_iter().filter(|it| is_allocated(*it));
        allocated.fold(DEFAULT_HANDSHAKES, u32::min) / SLOTS_PER_BUCKET
    }

    /// Returns the pool of NAT ports for an endpoint of a worker; creates it if necessary.
    pub fn port_pool(&mut self, endpoint: Endpoint) -> Result<u32> {
        let endpoint = service_key(endpoint);
        if let Some(pool) = self.pools.get(&endpoint) {
            return Ok(*pool);
        }
        let used: BTreeSet<u32> = self.pools.values().copied().collect();
        let free = (0..self.backends.len()).find(|pool| !used.contains(pool));
        let pool = free.context("assign a pool of NAT ports: map endpoints is full")?;
        self.endpoints.insert(endpoint, pool)?;
        self.pools.insert(endpoint, pool);
        Ok(pool)
    }

    /// Returns the number of NAT ports for one endpoint of this family.
    pub fn nat_ports(&self, is_ipv4: bool) -> u64 {
        nat_port_count(self.nat_ports.len() as u64, self.layout.sources, is_ipv4)
    }

    /// Removes the pools of endpoints without a backend. Reads every backend's entry.
    pub fn drop_unused_pools(&mut self) -> Result<()> {
        let mut used = BTreeSet::new();
        for id in 1..self.backends.len() {
            let backend = self.backends.get(id)?;
            if backend.port != 0 && backend.mode == mode::NAT {
                used.insert(backend.port_pool);
            }
        }
        let unused = self.pools.iter().filter(|(_, pool)| !used.contains(pool));
        for (endpoint, pool) in unused.map(|(it, pool)| (*it, *pool)).collect::<Vec<_>>() {
            self.endpoints.remove(&endpoint)?;
            self.pools.remove(&endpoint);
            let words = self.layout.pool_words;
            for word in pool * words..(pool + 1) * words {
                self.port_words.set(word, PortWord::default())?;
            }
            self.port_pools.set(pool, PortPool::default())?;
        }
        Ok(())
    }

    /// Returns the families of this configuration's services whose connection tables were created without capacity.
    pub fn missing_families(&self, config: &Config) -> Vec<&'static str> {
        let capacities = [self.half_open.len(), self.half_open6.len()];
        let lacking = FAMILIES
            .iter()
            .zip(capacities)
            .filter(|(tables, entries)| tables.are_used_by(config) && !is_allocated(*entries));
        lacking.map(|(tables, _)| tables.family).collect()
    }

    /// Tracks ports. Never undone, because a port may still have connections.
    fn track_ports(
        &mut self,
        protocol: u8,
        ports: impl IntoIterator<Item = u16>,
        is_source: bool,
    ) -> Result<()> {
        let mut words = BTreeMap::<u32, u64>::new();
        for port in ports {
            let port = port.to_be_bytes();
            *words
                .entry(maps::port_word(protocol, port, is_source))
                .or_default() |= maps::port_bit(port);
        }
        for (index, bits) in words {
            let known = self.ports.get(index)?;
            if known | bits != known {
                self.ports.set(index, known | bits)?;
            }
        }
        Ok(())
    }

    pub fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<()> {
        if matches!(backend.mode, mode::LOCAL | mode::ROUTED) {
            for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
                self.track_ports(protocol, [backend.port], true)?;
            }
        }
        self.backends.set(id, *backend)
    }

    /// Drains the backends that are no longer `wanted`, so that their connections can finish, and returns their ids.
    pub fn retire_missing(&mut self, wanted: impl Fn(u32) -> bool) -> Result<BTreeSet<u32>> {
        let mut retired = BTreeSet::new();
        for id in (1..self.backends.len()).filter(|id| !wanted(*id)) {
            let mut backend = self.backends.get(id)?;
            if backend == Backend::default() {
                continue;
            }
            let state = retired_state(&backend);
            if backend.state != state {
                backend.state = state;
                self.write_backend(id, &backend)?;
            }
            retired.insert(id);
        }
        Ok(retired)
    }

    /// Empties a backend's entry. Its id may be reused afterwards.
    pub fn clear_backend(&mut self, id: u32) -> Result<()> {
        self.write_backend(id, &Backend::default())
    }

    pub fn open_connections(&self, backend: u32) -> Result<u64> {
        let active = self.active.get(backend)?;
        Ok(active.saturating_sub(self.evicted.get(backend)?))
    }

    /// Returns a backend's counters, summed over the processors.
    pub fn traffic(&self, backend: u32) -> Result<Traffic> {
        Ok(Traffic::sum(self.traffic.get(backend)?.iter()))
    }

    /// Writes the services first and removes others afterwards, so that none is missing meanwhile.
    pub fn write_services(&mut self, services: &[(Endpoint, Service)]) -> Result<()> {
        let wanted: Vec<_> = services
            .iter()
            .map(|(endpoint, service)| (service_key(*endpoint), *service))
            .collect();
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            let keys = wanted.iter().map(|(key, _)| key);
            let of_protocol = keys.filter(|key| key.protocol == protocol);
            let ports: Vec<_> = of_protocol
                .map(|key| u16::from_be_bytes(key.port))
                .collect();
            if !ports.is_empty() {
                self.track_ports(protocol, ports, false)?;
                // The destination ports of the workers' replies.
                self.track_ports(protocol, self.nat_ports.clone(), false)?;
            }
        }
        for (key, service) in &wanted {
            self.services.insert(*key, *service)?;
        }
        self.services
            .retain(|key| wanted.iter().any(|(other, _)| other == key))
    }

    /// Clears the learned link addresses of a backend. XDP passes its packets to TC until it replies.
    pub fn clear_neighbour(&mut self, backend: u32) -> Result<()> {
        self.neighbours.set(backend, Neighbour::default())
    }
}

/// The state of a backend that is no longer configured: an up backend drains.
pub(super) fn retired_state(backend: &Backend) -> u8 {
    match backend.state {
        state::UP => state::DRAINING,
        other => other,
    }
}

/// Settings that a new manager keeps.
#[derive(Debug, Clone, Copy)]
pub struct PersistentSettings {
    pub accept_local_before: u32,
    pub secret: [u64; 2],
}

pub(super) fn service_key(endpoint: Endpoint) -> ServiceKey {
    let Endpoint { address, protocol } = endpoint;
    ServiceKey {
        address: mapped(address.ip()),
        port: address.port().to_be_bytes(),
        protocol: protocol_number(protocol),
        reserved: 0,
    }
}
