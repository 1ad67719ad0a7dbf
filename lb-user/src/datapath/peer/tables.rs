//! The maps that tell the programs which peers exist.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use anyhow::Result;
use lb_common::{
    address::V6,
    maps::{MAX_PEER_MANAGERS, Mac, PeerLink, PeerLinks, PeerSwitch, name},
};

use crate::datapath::{
    family::mapped,
    named_map::{ArrayMap, HashTable},
};

/// Maps `peer_switch`, `peers` and `peer_addresses`. Only one task writes them.
#[derive(Debug)]
pub struct PeerTables {
    switch: ArrayMap<PeerSwitch>,
    peers: HashTable<u32, PeerLinks>,
    addresses: HashTable<V6, u32>,
    written: PeerSwitch,
}

impl PeerTables {
    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be opened.
    pub fn open(pin_path: &Path) -> Result<Self> {
        let switch = ArrayMap::open(pin_path, name::PEER_SWITCH)?;
        Ok(Self {
            written: switch.get(0)?,
            switch,
            peers: HashTable::open(pin_path, name::PEERS)?,
            addresses: HashTable::open(pin_path, name::PEER_ADDRESSES)?,
        })
    }

    /// Switches the programs' records in `flow_events` on or off.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_reporting(&mut self, on: bool) -> Result<()> {
        self.switch(PeerSwitch {
            reports: on.into(),
            ..self.written
        })
    }

    /// Sets the peers that are alive, each with the index of the interface on whose network it is. The programs relay
    /// packets of unknown connections to them, also for long if one is `incomplete`: it has not reported all
    /// connections.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be written.
    pub fn set_links(&mut self, links: &[(u32, PeerLink)], incomplete: bool) -> Result<()> {
        let mut wanted = BTreeMap::<u32, Vec<PeerLink>>::new();
        for (interface, link) in links {
            wanted.entry(*interface).or_default().push(*link);
        }
        self.peers.retain(|it| wanted.contains_key(it))?;
        for (interface, links) in &wanted {
            let mut value = PeerLinks::default();
            for (slot, link) in value.links.iter_mut().zip(links) {
                *slot = *link;
            }
            debug_assert!(links.len() <= MAX_PEER_MANAGERS);
            self.peers.insert(*interface, value)?;
        }
        self.switch(PeerSwitch {
            interfaces: wanted.len() as u16,
            incomplete: incomplete.into(),
            ..self.written
        })
    }

    /// Returns the peers that are alive, each with the index of this manager's interface.
    pub fn links(&self) -> Vec<(u32, PeerLink)> {
        let entries = self.peers.iter().filter_map(Result::ok);
        let links =
            entries.flat_map(|(interface, value)| value.links.map(|link| (interface, link)));
        links.filter(|(_, link)| link.mac != Mac::NONE).collect()
    }

    /// Sets the NAT addresses of this manager and its peers: a packet to one of their NAT ports belongs to a connection
    /// that some manager knows.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be written.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let wanted: Vec<V6> = addresses.iter().map(|it| mapped(*it)).collect();
        self.addresses.retain(|it| wanted.contains(it))?;
        let mut wanted = wanted.into_iter();
        wanted.try_for_each(|address| self.addresses.insert(address, 1))
    }

    fn switch(&mut self, switch: PeerSwitch) -> Result<()> {
        self.switch.set(0, switch)?;
        self.written = switch;
        Ok(())
    }
}
