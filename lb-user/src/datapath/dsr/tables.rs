//! The agent's access to the DSR translator's maps.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Result;
use aya::Ebpf;
use lb_common::{
    address::{Address, V6},
    dsr::is_open,
    maps::{
        self, DSR_LAYOUT_VERSION, DsrClient, FlowKey, ServiceKey, Translation, dsr_name as name,
        port_bit, port_word,
    },
};
use lb_core::Endpoint;

use crate::datapath::{
    clock::monotonic_ns,
    family::{from_mapped, mapped},
    named_map::{ArrayMap, HashTable},
    tables::service_key,
};

#[derive(Debug)]
pub struct DsrTables {
    translations: HashTable<ServiceKey, Translation>,
    ports: ArrayMap<u64>,
    clients: HashTable<FlowKey, DsrClient>,
    clients6: HashTable<FlowKey<V6>, DsrClient<V6>>,
    new_clients: HashTable<FlowKey, DsrClient>,
    new_clients6: HashTable<FlowKey<V6>, DsrClient<V6>>,
}

/// The DSR translator's entry for a client's connection with a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownClient {
    Open,
    /// No entry, or a connection that has ended or was idle for long.
    Unknown,
    /// The client uses the server's own address with this port, or another service.
    Elsewhere,
}

impl DsrTables {
    pub fn from_ebpf(ebpf: &mut Ebpf) -> Result<Self> {
        ArrayMap::from_ebpf(ebpf, name::VERSION)?.set(0, DSR_LAYOUT_VERSION)?;
        Ok(Self {
            translations: HashTable::from_ebpf(ebpf, name::TRANSLATIONS)?,
            ports: ArrayMap::from_ebpf(ebpf, name::PORTS)?,
            clients: HashTable::from_ebpf(ebpf, name::CLIENTS)?,
            clients6: HashTable::from_ebpf(ebpf, name::CLIENTS6)?,
            new_clients: HashTable::from_ebpf(ebpf, name::NEW_CLIENTS)?,
            new_clients6: HashTable::from_ebpf(ebpf, name::NEW_CLIENTS6)?,
        })
    }

    /// Translates a service's packets to this address and port.
    pub fn translate(&mut self, service: Endpoint, target: SocketAddr) -> Result<()> {
        let key = service_key(service);
        let translation = Translation {
            address: mapped(target.ip()),
            port: target.port().to_be_bytes(),
            reserved: [0; 6],
        };
        self.track_port(key.protocol, key.port, false)?;
        self.track_port(key.protocol, translation.port, false)?;
        if self.translations.get(&key) == Some(translation) {
            return Ok(());
        }
        self.translations.insert(key, translation)
    }

    /// Tracks the packets of a service's server, also while there is no route to the service. Otherwise the server
    /// would answer connections that move here with the service's address from its own address.
    pub fn track_server(&mut self, service: Endpoint, port: u16) -> Result<()> {
        self.track_port(service_key(service).protocol, port.to_be_bytes(), true)
    }

    /// Removes the translations of other services.
    pub fn retain(&mut self, services: &BTreeSet<Endpoint>) -> Result<()> {
        let wanted: BTreeSet<_> = services.iter().copied().map(service_key).collect();
        self.translations.retain(|key| wanted.contains(key))
    }

    /// Tracks a port. It stays tracked, which costs a look-up for its packets.
    fn track_port(&mut self, protocol: u8, port: [u8; 2], is_source: bool) -> Result<()> {
        let index = port_word(protocol, port, is_source);
        let known = self.ports.get(index)?;
        let word = known | port_bit(port);
        if word == known {
            return Ok(());
        }
        self.ports.set(index, word)
    }

    /// Returns the server's address to which a service is translated; `None` if it is not translated.
    pub fn target(&self, service: Endpoint) -> Option<SocketAddr> {
        let translation = self.translations.get(&service_key(service))?;
        let port = u16::from_be_bytes(translation.port);
        Some((from_mapped(translation.address), port).into())
    }

    /// Looks up a client's connection with a service that is translated to `target`.
    pub fn client(&self, service: Endpoint, target: SocketAddr, client: SocketAddr) -> KnownClient {
        match target.is_ipv4() {
            true => known([&self.clients, &self.new_clients], service, target, client),
            false => known(
                [&self.clients6, &self.new_clients6],
                service,
                target,
                client,
            ),
        }
    }

    /// Returns how many connections would break without the DSR translator.
    pub fn open_connections(&self) -> Result<usize> {
        let now = maps::coarse_time(monotonic_ns()?);
        Ok(count_open(&self.clients, now)? + count_open(&self.clients6, now)?)
    }
}

fn known<A: Address>(
    tables: [&HashTable<FlowKey<A>, DsrClient<A>>; 2],
    service: Endpoint,
    target: SocketAddr,
    client: SocketAddr,
) -> KnownClient {
    let key = service_key(service);
    let reply_key = FlowKey {
        source: A::from_mapped(&mapped(target.ip())),
        destination: A::from_mapped(&mapped(client.ip())),
        source_port: target.port().to_be_bytes(),
        destination_port: client.port().to_be_bytes(),
        protocol: key.protocol.into(),
    };
    let mut clients = tables.iter().filter_map(|table| table.get(&reply_key));
    let now = monotonic_ns().map_or(0, maps::coarse_time);
    match clients.next() {
        Some(entry) if entry.is_direct() => KnownClient::Elsewhere,
        Some(entry) if !is_open(&reply_key, &entry, now) => KnownClient::Unknown,
        Some(entry) if entry.service.mapped() == key.address && entry.port == key.port => {
            KnownClient::Open
        }
        Some(_) => KnownClient::Elsewhere,
        None => KnownClient::Unknown,
    }
}

fn count_open<A: Address>(
    clients: &HashTable<FlowKey<A>, DsrClient<A>>,
    now: u32,
) -> Result<usize> {
    let mut open = 0;
    for entry in clients.entries() {
        let (reply_key, client) = entry?;
        open += usize::from(is_open(&reply_key, &client, now));
    }
    Ok(open)
}
