//! Other managers upstream of an interface: their programs steer packets before these arrive at it, at a bridge's port,
//! a VLAN's parent or the other end of a veth.

use std::{collections::BTreeSet, fmt};

use anyhow::Result;
use lb_core::Endpoint;
use tracing::debug;

use super::{
    foreign_programs::{Conflict, ForeignPrograms, other_managers},
    interface::{index_of, name_of},
    links::UpstreamLocations,
    netlink_query,
};
use crate::config::{Config, Service};

/// Another manager that serves the same address upstream of an interface. Its packets do not arrive here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamManager<'a> {
    location: UpstreamLocation,
    service: Endpoint,
    programs: &'a ForeignPrograms,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum UpstreamLocation {
    /// A port of the bridge, the parent of the VLAN, the other end of the veth.
    Interface(String),
    /// The network namespace at the other end.
    Namespace,
}

impl fmt::Display for UpstreamLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "at {name}"),
            Self::Namespace => f.write_str("in the network namespace at its other end"),
        }
    }
}

impl UpstreamManager<'_> {
    /// Names the programs by their location.
    pub fn programs(&self) -> String {
        format!("ingress {}", self.location)
    }

    /// Names the pins and the process that holds them.
    pub fn origin(&self) -> String {
        self.programs.origin()
    }
}

/// Finds among `managers` those that serve one of `services` at one of `locations`. In another network namespace, only
/// managers that run are found.
///
/// # Errors
///
/// The kernel's error when it is asked for a network namespace.
pub fn upstream_managers<'a>(
    managers: &'a [ForeignPrograms],
    locations: &UpstreamLocations,
    services: &BTreeSet<Endpoint>,
) -> Result<Vec<UpstreamManager<'a>>> {
    let mut found = Vec::new();
    for programs in managers {
        let mut served = programs.services.iter().flatten();
        if let Some(service) = served.find(|it| services.contains(it))
            && let Some(location) = location_of(programs, locations)?
        {
            found.push(UpstreamManager {
                location,
                service: *service,
                programs,
            });
        }
    }
    Ok(found)
}

/// Which of the locations has these programs.
fn location_of(
    programs: &ForeignPrograms,
    locations: &UpstreamLocations,
) -> Result<Option<UpstreamLocation>> {
    let is_upstream =
        |it: &&String| index_of(it).is_some_and(|index| locations.interfaces.contains(&index));
    if let Some(interface) = programs.interfaces.iter().find(is_upstream) {
        return Ok(Some(UpstreamLocation::Interface(interface.clone())));
    }
    let holder = programs.holder.as_ref();
    let Some(holder) = holder.filter(|_| !locations.namespaces.is_empty()) else {
        return Ok(None);
    };
    let namespace = netlink_query::namespace_of(holder.pid)?;
    let is_there = namespace.is_some_and(|it| locations.namespaces.contains(&it));
    Ok(is_there.then_some(UpstreamLocation::Namespace))
}

/// The managers that serve a service of this configuration upstream of one of its interfaces, for `memlb doctor`.
pub fn upstream_conflicts(config: &Config) -> Vec<Conflict> {
    let managers = other_managers(&config.manager.pin_path);
    if managers.is_empty() {
        return Vec::new();
    }
    let services = config.services.iter().map(Service::endpoint).collect();
    let interfaces = config.manager.interfaces.iter();
    let found = netlink_query::links().and_then(|links| {
        let mut conflicts = Vec::new();
        for index in interfaces.filter_map(|it| index_of(it)) {
            let Some(name) = name_of(index) else { continue };
            let upstream = upstream_managers(&managers, &links.upstream_of(index), &services)?;
            conflicts.extend(upstream.iter().map(|it| conflict(it, &name)));
        }
        Ok(conflicts)
    });
    found.unwrap_or_else(|error| {
        debug!("find managers upstream of this one: {error:#}");
        Vec::new()
    })
}

fn conflict(manager: &UpstreamManager<'_>, interface: &str) -> Conflict {
    let UpstreamManager {
        location, service, ..
    } = manager;
    Conflict {
        check: "manager",
        found: format!(
            "another memlb also serves {service} ({}), {location}, which the packets pass before they arrive at \
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
    fn names_the_location_and_the_owner_of_the_programs() {
        let programs = ForeignPrograms {
            pin_path: "/sys/fs/bpf/memlb2".into(),
            interfaces: BTreeSet::new(),
            first_at: BTreeSet::new(),
            holder: None,
            services: None,
        };
        let manager = UpstreamManager {
            location: UpstreamLocation::Namespace,
            service: "192.0.2.1:80/tcp".parse().unwrap(),
            programs: &programs,
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
        let port = UpstreamLocation::Interface("eth2".to_owned());
        assert_eq!(port.to_string(), "at eth2");
    }
}
