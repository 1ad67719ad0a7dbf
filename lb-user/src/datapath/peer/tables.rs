//! The maps by which the programs know the peers.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::Path};

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::{
    address::V6,
    maps::{MAX_PEER_MANAGERS, Mac, PeerLink, PeerLinks, PeerSwitch, name},
};

use crate::datapath::{adopt::array, family::mapped, layout::open_map};

/// Maps `peer_switch`, `peers` and `peer_addresses`. Only one task writes them.
pub struct PeerTables {
    switch: Array<MapData, PeerSwitch>,
    peers: HashMap<MapData, u32, PeerLinks>,
    addresses: HashMap<MapData, V6, u32>,
    written: PeerSwitch,
}

impl fmt::Debug for PeerTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTables")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl PeerTables {
    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be opened.
    pub fn open(pin_path: &Path) -> Result<Self> {
        let hash = |map| Ok::<_, anyhow::Error>(Map::HashMap(open_map(pin_path, map)?));
        let switch: Array<_, PeerSwitch> = array(pin_path, name::PEER_SWITCH)?;
        let written = switch.get(&0, 0).context("read map peer_switch")?;
        Ok(Self {
            switch,
            peers: HashMap::try_from(hash(name::PEERS)?).context("open map peers")?,
            addresses: HashMap::try_from(hash(name::PEER_ADDRESSES)?)
                .context("open map peer_addresses")?,
            written,
        })
    }

    /// Switches the records in `flow_events` on or off.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn report(&mut self, on: bool) -> Result<()> {
        self.switch(PeerSwitch {
            reports: on.into(),
            ..self.written
        })
    }

    /// Sets the living peers, each with the index of the interface on whose network it is. Packets of unknown
    /// connections go to them, also for long if one is `incomplete`: it has connections of which it has not told.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be written.
    pub fn set_links(&mut self, links: &[(u32, PeerLink)], incomplete: bool) -> Result<()> {
        let mut wanted = BTreeMap::<u32, Vec<PeerLink>>::new();
        for (interface, link) in links {
            wanted.entry(*interface).or_default().push(*link);
        }
        let present: Vec<u32> = self.peers.keys().filter_map(Result::ok).collect();
        let stale = present.into_iter().filter(|it| !wanted.contains_key(it));
        for interface in stale {
            self.peers
                .remove(&interface)
                .context("remove an entry of map peers")?;
        }
        for (interface, links) in &wanted {
            let mut value = PeerLinks::default();
            for (slot, link) in value.links.iter_mut().zip(links) {
                *slot = *link;
            }
            debug_assert!(links.len() <= MAX_PEER_MANAGERS);
            self.peers
                .insert(interface, value, 0)
                .context("write map peers")?;
        }
        self.switch(PeerSwitch {
            interfaces: wanted.len() as u16,
            incomplete: incomplete.into(),
            ..self.written
        })
    }

    /// Returns the living peers, each with the index of this manager's interface.
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
        let present: Vec<V6> = self.addresses.keys().filter_map(Result::ok).collect();
        for address in present.iter().filter(|it| !wanted.contains(it)) {
            self.addresses
                .remove(address)
                .context("remove an entry of map peer_addresses")?;
        }
        for address in wanted.iter().filter(|it| !present.contains(it)) {
            self.addresses
                .insert(address, 1, 0)
                .context("write map peer_addresses")?;
        }
        Ok(())
    }

    fn switch(&mut self, switch: PeerSwitch) -> Result<()> {
        self.switch
            .set(0, switch, 0)
            .context("write map peer_switch")?;
        self.written = switch;
        Ok(())
    }
}
