//! Map `source_filter`: for each source address the only interface on which its packets may arrive.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Result;
use aya::Ebpf;
use lb_common::{
    address::V6,
    maps::{SOURCE_FILTER_ENTRIES, name},
};

use super::{Route, Routes, family::mapped, named_map::HashTable};

#[derive(Debug)]
pub struct SourceFilter(HashTable<V6, u32>);

impl SourceFilter {
    pub fn from_ebpf(ebpf: &mut Ebpf) -> Result<Self> {
        HashTable::from_ebpf(ebpf, name::SOURCE_FILTER).map(Self)
    }

    /// Writes changed entries, and removes others.
    ///
    /// # Errors
    ///
    /// The map could not be read or written.
    pub fn replace(&mut self, wanted: &BTreeMap<V6, u32>) -> Result<()> {
        self.0.retain(|address| wanted.contains_key(address))?;
        for (address, interface) in wanted {
            if self.0.get(address) != Some(*interface) {
                self.0.insert(*address, *interface)?;
            }
        }
        Ok(())
    }
}

/// The expected entries: the manager's `own` and broadcast addresses, and the workers with a route. Entries beyond
/// the map's capacity are left out: the map only excludes spoofed packets.
pub fn expected_interfaces(own: &BTreeSet<IpAddr>, routes: &Routes) -> BTreeMap<V6, u32> {
    let own = own.iter().map(|address| (mapped(*address), 0));
    let workers = routes.iter().filter_map(|(address, route)| {
        // Packets through a lower interface arrive there.
        let is_bound = |route: &&Route| !route.is_local && route.lower_interfaces.is_empty();
        let route = route.as_ref().filter(is_bound)?;
        Some((mapped(*address), route.interface))
    });
    own.chain(workers)
        .take(SOURCE_FILTER_ENTRIES as usize)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_packets_are_expected_at_the_interface_of_its_route() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let route = |interface, is_local| {
            Some(Route {
                interface,
                lower_interfaces: BTreeSet::new(),
                next_hop: ip("10.0.0.254"),
                source: ip("10.0.0.1"),
                is_local,
            })
        };
        let own = BTreeSet::from([ip("10.0.0.1"), ip("10.0.0.255")]);
        let routes = Routes::from([
            (ip("10.0.0.2"), route(7, false)),
            (ip("10.0.0.1"), route(1, true)),
            (ip("2001:db8::2"), route(8, false)),
            (ip("10.0.0.3"), None),
        ]);
        let expected = [
            ("10.0.0.1", 0),
            ("10.0.0.255", 0),
            ("10.0.0.2", 7),
            ("2001:db8::2", 8),
        ];
        let expected = expected.map(|(address, interface)| (mapped(ip(address)), interface));
        assert_eq!(expected_interfaces(&own, &routes), expected.into());
    }
}
