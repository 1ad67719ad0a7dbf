//! Map `source_filter`: source addresses with the only interface on which their packets may arrive.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, Result};
use aya::maps::{HashMap, MapData};
use lb_common::{
    address::V6,
    maps::{SOURCE_FILTER_ENTRIES, name},
};

use super::{Route, Routes, family::mapped};

pub struct SourceFilter(HashMap<MapData, V6, u32>);

impl SourceFilter {
    pub fn new(map: HashMap<MapData, V6, u32>) -> Self {
        Self(map)
    }

    /// Writes changed entries, and removes others.
    ///
    /// # Errors
    ///
    /// The map could not be read or written.
    pub fn replace(&mut self, wanted: &BTreeMap<V6, u32>) -> Result<()> {
        let present = self.0.iter().collect::<Result<BTreeMap<_, _>, _>>();
        let present = present.with_context(|| format!("read map {}", name::SOURCE_FILTER))?;
        for address in present.keys().filter(|it| !wanted.contains_key(*it)) {
            let removed = self.0.remove(address);
            removed.with_context(|| format!("remove an entry of map {}", name::SOURCE_FILTER))?;
        }
        for (address, interface) in wanted {
            if present.get(address) != Some(interface) {
                let written = self.0.insert(address, interface, 0);
                written
                    .with_context(|| format!("write an entry of map {}", name::SOURCE_FILTER))?;
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
    fn workers_are_at_home_where_their_route_leads() {
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
