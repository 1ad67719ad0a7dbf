//! The map `source_filter`: addresses from which no client's packet comes, or only by one interface.

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

    /// Writes what is new, and removes what is no longer so.
    ///
    /// # Errors
    ///
    /// Says that the map could not be read or written.
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

/// What the map should hold: the manager's `own` addresses and broadcast addresses, and the workers that have a
/// route. More than fit are left out, since the map only refuses what a sender has forged.
pub fn expected_interfaces(own: &BTreeSet<IpAddr>, routes: &Routes) -> BTreeMap<V6, u32> {
    let own = own.iter().map(|address| (mapped(*address), 0));
    let workers = routes.iter().filter_map(|(address, route)| {
        // What comes through another interface beneath is met there.
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
