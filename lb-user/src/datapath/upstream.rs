//! Managers whose programs steer packets before they arrive at an interface of this one, from another interface.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use lb_core::Endpoint;
use tracing::debug;

use super::{
    attach::LINKS,
    bpffs,
    foreign_programs::{Conflict, attached, origin, pin_directories, served},
    interface::{InterfaceRef, index_of, name_of},
    links::PlacesBefore,
    netlink_query,
};
use crate::{
    config::{Config, Service},
    sockets::{Holder, holder},
};

/// Another manager that serves the same address where the packets to an interface of this one come by. They do not
/// arrive here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamManager {
    place: Place,
    service: Endpoint,
    pin_path: PathBuf,
    /// `None` if none runs, but its programs do.
    holder: Option<Holder>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A port of the bridge, the parent of the VLAN, the other end of the veth.
    Interface(String),
    /// The network namespace at the other end.
    Namespace,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "at {name}"),
            Self::Namespace => f.write_str("in the network namespace at its other end"),
        }
    }
}

impl UpstreamManager {
    /// Names the programs by their place.
    pub fn programs(&self) -> String {
        format!("ingress {}", self.place)
    }

    /// Names the pins and who holds them.
    pub fn origin(&self) -> String {
        origin(&self.pin_path, self.holder.as_ref())
    }
}

/// Finds among the managers with these pins those that serve one of `services` before packets arrive at `interface`, as
/// far as this user may read their pins. In another network namespace only those that run are found.
///
/// # Errors
///
/// The kernel's error when it is asked for the interfaces.
pub fn upstream_managers(
    others: &[PathBuf],
    interface: InterfaceRef<'_>,
    services: &BTreeSet<Endpoint>,
) -> Result<Vec<UpstreamManager>> {
    let places = netlink_query::links()?.places_before(interface.index);
    let mut found = Vec::new();
    for pin_path in others {
        let holder = bpffs::locked_by(pin_path).and_then(holder);
        let Some(place) = place_of(pin_path, holder.as_ref(), &places)? else {
            continue;
        };
        let served = served(pin_path).unwrap_or_default();
        if let Some(service) = served.intersection(services).next().copied() {
            found.push(UpstreamManager {
                place,
                service,
                pin_path: pin_path.clone(),
                holder,
            });
        }
    }
    Ok(found)
}

/// Which of the places has the programs of these pins.
fn place_of(
    pin_path: &Path,
    holder: Option<&Holder>,
    places: &PlacesBefore,
) -> Result<Option<Place>> {
    let (mut interfaces, _) = attached(&pin_path.join(LINKS), &BTreeSet::new());
    interfaces.retain(|it| index_of(it).is_some_and(|index| places.interfaces.contains(&index)));
    if let Some(interface) = interfaces.pop_first() {
        return Ok(Some(Place::Interface(interface)));
    }
    let Some(holder) = holder.filter(|_| !places.namespaces.is_empty()) else {
        return Ok(None);
    };
    let namespace = netlink_query::namespace_of(holder.pid)?;
    let is_there = namespace.is_some_and(|it| places.namespaces.contains(&it));
    Ok(is_there.then_some(Place::Namespace))
}

/// The managers that serve a service of this configuration before its packets arrive, for `memlb doctor`.
pub fn upstream_conflicts(config: &Config) -> Vec<Conflict> {
    let others = pin_directories(&config.manager.pin_path);
    if others.is_empty() {
        return Vec::new();
    }
    let services = config.services.iter().map(Service::endpoint).collect();
    let indices = config
        .manager
        .interfaces
        .iter()
        .filter_map(|it| index_of(it));
    let mut conflicts = Vec::new();
    for index in indices {
        let Some(name) = name_of(index) else { continue };
        let interface = InterfaceRef { index, name: &name };
        match upstream_managers(&others, interface, &services) {
            Ok(managers) => conflicts.extend(managers.iter().map(|it| conflict(it, &name))),
            Err(error) => debug!("look for managers before {name}: {error:#}"),
        }
    }
    conflicts
}

fn conflict(manager: &UpstreamManager, interface: &str) -> Conflict {
    let UpstreamManager { place, service, .. } = manager;
    Conflict {
        check: "manager",
        found: format!(
            "another memlb serves {service}, too ({}), and its packets come by {place} before they arrive at \
             {interface}",
            manager.origin()
        ),
        remedy: format!(
            "decide which manager should serve {service}; stop the other one, and memlb unload its pins"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_where_the_packets_come_by_and_whose_the_programs_are() {
        let manager = UpstreamManager {
            place: Place::Namespace,
            service: "192.0.2.1:80/tcp".parse().unwrap(),
            pin_path: "/sys/fs/bpf/memlb2".into(),
            holder: None,
        };
        let conflict = conflict(&manager, "eth1");
        assert!(
            conflict.found.contains("/sys/fs/bpf/memlb2") && conflict.found.ends_with("at eth1"),
            "{conflict}"
        );
        assert_eq!(
            manager.programs(),
            "ingress in the network namespace at its other end"
        );
        let port = Place::Interface("eth2".to_owned());
        assert_eq!(port.to_string(), "at eth2");
    }
}
