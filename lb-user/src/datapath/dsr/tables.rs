//! The agent's access to the DSR translator's maps.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
};
use lb_common::{
    address::{Address, V6},
    dsr::is_open,
    maps::{
        self, DSR_LAYOUT_VERSION, FlowKey, Peer, ServiceKey, Translation, dsr_name as name,
        port_bit, port_word,
    },
};
use lb_core::Endpoint;

use crate::datapath::{
    clock::monotonic_ns,
    family::{from_mapped, mapped},
    tables::service_key,
};

pub struct Tables {
    translations: HashMap<MapData, ServiceKey, Translation>,
    ports: Array<MapData, u64>,
    peers: HashMap<MapData, FlowKey, Peer>,
    peers6: HashMap<MapData, FlowKey<V6>, Peer<V6>>,
    new_peers: HashMap<MapData, FlowKey, Peer>,
    new_peers6: HashMap<MapData, FlowKey<V6>, Peer<V6>>,
}

/// What the DSR translator knows of a client's connection with a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownClient {
    Open,
    /// No entry, or a connection that has ended or was idle for long.
    Unknown,
    /// The client uses the server's own address with this port, or another service.
    Elsewhere,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl Tables {
    pub fn from_ebpf(ebpf: &mut Ebpf) -> Result<Self> {
        let mut map = |name| {
            ebpf.take_map(name)
                .with_context(|| format!("the DSR translator has no map {name}"))
        };
        let mut version: Array<_, u32> = map(name::VERSION)?.try_into()?;
        version
            .set(0, DSR_LAYOUT_VERSION, 0)
            .context("write map version")?;
        Ok(Self {
            translations: map(name::TRANSLATIONS)?.try_into()?,
            ports: map(name::PORTS)?.try_into()?,
            peers: map(name::PEERS)?.try_into()?,
            peers6: map(name::PEERS6)?.try_into()?,
            new_peers: map(name::NEW_PEERS)?.try_into()?,
            new_peers6: map(name::NEW_PEERS6)?.try_into()?,
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
        self.track_port(key.protocol, translation.port, true)?;
        if self.translations.get(&key, 0).ok() == Some(translation) {
            return Ok(());
        }
        self.translations
            .insert(key, translation, 0)
            .context("write map translations")
    }

    /// Removes the translations of other services.
    pub fn retain(&mut self, services: &BTreeSet<Endpoint>) -> Result<()> {
        let wanted: BTreeSet<_> = services.iter().copied().map(service_key).collect();
        let present: Vec<_> = self.translations.keys().filter_map(Result::ok).collect();
        for key in present.iter().filter(|key| !wanted.contains(key)) {
            self.translations
                .remove(key)
                .context("remove an entry of map translations")?;
        }
        Ok(())
    }

    /// Tracks a port. Never undone: an unused tracked port costs a look-up.
    fn track_port(&mut self, protocol: u8, port: [u8; 2], is_source: bool) -> Result<()> {
        let index = port_word(protocol, port, is_source);
        let known = self.ports.get(&index, 0).context("read map ports")?;
        let word = known | port_bit(port);
        if word == known {
            return Ok(());
        }
        self.ports.set(index, word, 0).context("write map ports")
    }

    /// Returns where the packets of a service go; nothing if it is not translated.
    pub fn target(&self, service: Endpoint) -> Option<SocketAddr> {
        let translation = self.translations.get(&service_key(service), 0).ok()?;
        let port = u16::from_be_bytes(translation.port);
        Some((from_mapped(translation.address), port).into())
    }

    /// Looks for a client's connection with a service whose packets go to `target`.
    pub fn client(&self, service: Endpoint, target: SocketAddr, client: SocketAddr) -> KnownClient {
        match target.is_ipv4() {
            true => known([&self.peers, &self.new_peers], service, target, client),
            false => known([&self.peers6, &self.new_peers6], service, target, client),
        }
    }

    /// Returns how many connections would break without the DSR translator.
    pub fn open_connections(&self) -> Result<usize> {
        let now = maps::coarse_time(monotonic_ns()?);
        Ok(open(&self.peers, now)? + open(&self.peers6, now)?)
    }
}

fn known<A: Address>(
    tables: [&HashMap<MapData, FlowKey<A>, Peer<A>>; 2],
    service: Endpoint,
    target: SocketAddr,
    client: SocketAddr,
) -> KnownClient {
    let key = service_key(service);
    let answers = FlowKey {
        source: A::from_mapped(&mapped(target.ip())),
        destination: A::from_mapped(&mapped(client.ip())),
        source_port: target.port().to_be_bytes(),
        destination_port: client.port().to_be_bytes(),
        protocol: key.protocol.into(),
    };
    let mut peers = tables
        .iter()
        .filter_map(|table| table.get(&answers, 0).ok());
    let now = monotonic_ns().map_or(0, maps::coarse_time);
    match peers.next() {
        Some(peer) if peer.is_direct() => KnownClient::Elsewhere,
        Some(peer) if !is_open(&answers, &peer, now) => KnownClient::Unknown,
        Some(peer) if peer.service.mapped() == key.address && peer.port == key.port => {
            KnownClient::Open
        }
        Some(_) => KnownClient::Elsewhere,
        None => KnownClient::Unknown,
    }
}

fn open<A: Address>(peers: &HashMap<MapData, FlowKey<A>, Peer<A>>, now: u32) -> Result<usize> {
    let mut open = 0;
    for entry in peers.iter() {
        let (key, peer) = entry.context("read map peers")?;
        open += usize::from(is_open(&key, &peer, now));
    }
    Ok(open)
}
