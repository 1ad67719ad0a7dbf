//! Attached programs of another memlb on this machine.

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use lb_common::maps::{Backend, mode, name};
use lb_core::{Endpoint, Mode};
use procfs::process::Process;
use tracing::debug;

use super::{
    adopt, announcement,
    attach::{INGRESS, LINKS},
    bpffs,
    family::from_mapped,
    interface::{index_of, name_of},
    layout, link_info,
    named_map::ArrayMap,
    netlink_query,
};
use crate::{
    config::Config,
    config::{PortRange, Service},
    sockets::{Holder, holder},
};

/// Depth of the search below the root of a BPF file system.
const DEPTH: u32 = 4;

/// A pin directory whose programs are attached in this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignPrograms {
    pub pin_path: PathBuf,
    pub interfaces: BTreeSet<String>,
    /// Those of them at which the programs receive packets before this manager's.
    pub first_at: BTreeSet<String>,
    /// The manager that holds the pins; `None` if none runs.
    pub holder: Option<Holder>,
    /// What it serves; `None` if its maps cannot be read.
    pub services: Option<BTreeSet<Endpoint>>,
}

impl fmt::Display for ForeignPrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interfaces: Vec<&str> = self.interfaces.iter().map(String::as_str).collect();
        write!(
            f,
            "another memlb's programs are attached to {} ({}, serving {}): they steer packets {} this one's",
            interfaces.join(", "),
            self.origin(),
            self.service_list()
                .unwrap_or("nothing that can be read".to_owned()),
            match (self.first_at.len(), self.interfaces.len()) {
                (0, _) => "after",
                (first, all) if first == all => "before",
                _ => "before or after",
            }
        )
    }
}

impl ForeignPrograms {
    /// Names what it serves; `None` if that is nothing, as far as its maps can be read.
    pub fn service_list(&self) -> Option<String> {
        let services = self.services.iter().flatten();
        let services: Vec<String> = services.map(Endpoint::to_string).collect();
        (!services.is_empty()).then(|| services.join(", "))
    }

    /// Names the pins and who holds them.
    pub fn origin(&self) -> String {
        origin(&self.pin_path, self.holder.as_ref())
    }

    /// What to do about the programs. A manager that runs may be the one that should.
    pub fn remedy(&self) -> String {
        let unload = format!("memlb unload --pin-path {}", self.pin_path.display());
        match &self.holder {
            Some(_) => format!("if one manager is enough, stop the other one and {unload}"),
            None => unload,
        }
    }
}

/// Names pins and who holds them.
pub(super) fn origin(pin_path: &Path, holder: Option<&Holder>) -> String {
    let pins = pin_path.display();
    match holder {
        Some(holder) => format!("pins {pins}, held by {}", holder.with_age()),
        None => format!("pins {pins}, left of a manager that no longer runs"),
    }
}

/// Finds what is attached from other directories of pins than `pin_path`, as far as this user may see
/// them. A kernel without tcx has no such: there one manager's programs take the place of another's.
pub fn foreign_programs(pin_path: &Path) -> Vec<ForeignPrograms> {
    let own = pinned_programs(&pin_path.join(LINKS));
    let attached_here = |pin_path: PathBuf| {
        let (interfaces, first_at) = attached(&pin_path.join(LINKS), &own);
        (!interfaces.is_empty()).then(|| ForeignPrograms {
            interfaces,
            first_at,
            holder: bpffs::locked_by(&pin_path).and_then(holder),
            services: served(&pin_path).ok(),
            pin_path,
        })
    };
    let directories = pin_directories(pin_path).into_iter();
    directories.filter_map(attached_here).collect()
}

/// The directories other than `pin_path` with pinned links of programs for what arrives, in any network namespace.
pub(super) fn pin_directories(pin_path: &Path) -> Vec<PathBuf> {
    let mut seen: BTreeSet<(u64, u64)> = device_and_inode(pin_path).into_iter().collect();
    let mut found = Vec::new();
    for mount in mounts() {
        scan(&mount, DEPTH, &mut seen, &mut found);
    }
    found
}

/// What this configuration has in common with another manager that runs in this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The check of `memlb doctor` that reports it.
    pub check: &'static str,
    pub found: String,
    pub remedy: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  to do: {}", self.found, self.remedy)
    }
}

/// Finds the managers that run in this network namespace, too, and serve the same address, or send to the same
/// workers from the same ports. The maps of another layout cannot be read, and so are in no conflict.
pub fn conflicts(config: &Config) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    for programs in foreign_programs(&config.manager.pin_path) {
        let Some(holder) = &programs.holder else {
            continue;
        };
        conflicts.extend(service_conflict(config, &programs, holder));
        conflicts.extend(port_conflict(config, &programs, holder));
    }
    conflicts
}

/// Of two managers, the program that meets a packet first would steer it, and the other one would serve nothing.
fn service_conflict(
    config: &Config,
    programs: &ForeignPrograms,
    holder: &Holder,
) -> Option<Conflict> {
    let own_name = |name: &String| index_of(name).and_then(name_of);
    let mut interfaces = config.manager.interfaces.iter().filter_map(own_name);
    let interface = interfaces.find(|it| are_joined(it, &programs.interfaces))?;
    let mut services = config.services.iter();
    let theirs = programs.services.as_ref()?;
    let service = services.find(|it| theirs.contains(&it.endpoint()))?;
    let Service { name, address, .. } = service;
    Some(Conflict {
        check: "service",
        found: format!(
            "service {name}: {} at {interface} is served by {} already (pins {}): only one of two managers can \
             steer its packets",
            service.endpoint(),
            holder.with_age(),
            programs.pin_path.display()
        ),
        remedy: format!(
            "give this service another address or port than {address}, or stop the other manager and memlb unload \
             --pin-path {}",
            programs.pin_path.display()
        ),
    })
}

/// Whether one of `others` is `interface`, or its packets come by that one, or that one's by it.
fn are_joined(interface: &str, others: &BTreeSet<String>) -> bool {
    if others.contains(interface) {
        return true;
    }
    let Ok(links) = netlink_query::links() else {
        return false;
    };
    let passes = |from: &str, by: &str| {
        let (Some(from), Some(by)) = (index_of(from), index_of(by)) else {
            return false;
        };
        links.places_before(from).interfaces.contains(&by)
    };
    let mut others = others.iter();
    others.any(|it| passes(interface, it) || passes(it, interface))
}

/// A manager that announces a service of this configuration at one of its interfaces, although its pins cannot be read.
pub fn announced_conflict(config: &Config) -> Option<Conflict> {
    let services = config.services.iter().map(Service::endpoint).collect();
    config.manager.interfaces.iter().find_map(|interface| {
        let serving = announcement::other_serving(index_of(interface)?, &services);
        let (pid, service) = serving
            .inspect_err(|error| debug!("look for other managers: {error}"))
            .ok()??;
        let by = holder(pid).map_or_else(|| format!("process {pid}"), |it| it.with_age());
        Some(Conflict {
            check: "service",
            found: format!(
                "service {service} at {interface} is served by {by} already: only one of two managers can steer its \
                 packets"
            ),
            remedy: "give this service another address or port, or stop the other manager".to_owned(),
        })
    })
}

/// A worker cannot distinguish the connections of one manager from those of the other.
fn port_conflict(config: &Config, programs: &ForeignPrograms, holder: &Holder) -> Option<Conflict> {
    let ports = config.limits.nat_ports;
    let services = config.services.iter().filter(|it| it.mode == Mode::Nat);
    let workers: BTreeSet<SocketAddr> = services
        .flat_map(|service| service.workers.iter().map(|worker| worker.address))
        .collect();
    let (theirs, their_workers) = ports_and_workers(&programs.pin_path).ok()?;
    let common = workers.intersection(&their_workers).next()?;
    let path = programs.pin_path.display();
    ports.overlaps(theirs).then(|| Conflict {
        check: "ports",
        found: format!(
            "limits.nat_ports: {ports} overlap {theirs} of {holder} (pins {path}), which sends to {common}, \
             too: the two managers would use the same ports, and break each other's connections"
        ),
        remedy: "give each manager ports of its own, memlb manager --set limits.nat_ports=4096-18431 and \
                 18432-32767, or stop one"
            .to_owned(),
    })
}

/// Whether all programs of other managers that receive the packets of an interface first leave those of this manager's
/// services alone: two managers may share an interface, and each serves its own addresses.
pub(super) fn serve_others(pin_path: &Path, interface: &str) -> bool {
    let own = served(pin_path).unwrap_or_default();
    let programs = foreign_programs(pin_path);
    let first = programs.iter().filter(|it| it.first_at.contains(interface));
    let mut first = first.peekable();
    // A manager that is starting serves nothing yet.
    let leaves_alone = |it: &ForeignPrograms| {
        let services = it.services.as_ref();
        services.is_some_and(|services| services.is_disjoint(&own))
    };
    first.peek().is_some() && first.all(leaves_alone)
}

/// What a manager serves.
pub(super) fn served(pin_path: &Path) -> Result<BTreeSet<Endpoint>> {
    layout::check(pin_path)?;
    let services = adopt::service_numbers(pin_path)?;
    Ok(services.into_iter().map(|(_, endpoint)| endpoint).collect())
}

/// From which ports a manager sends to which workers.
fn ports_and_workers(pin_path: &Path) -> Result<(PortRange, BTreeSet<SocketAddr>)> {
    layout::check(pin_path)?;
    let settings = adopt::settings(pin_path)?;
    let range = PortRange {
        first: settings.nat_port_first,
        last: settings.nat_port_first + settings.nat_port_count.saturating_sub(1),
    };
    let mut workers = BTreeSet::new();
    for backend in ArrayMap::<Backend>::open(pin_path, name::BACKENDS)?.values() {
        let backend = backend?;
        if backend.mode == mode::NAT && backend.port != 0 {
            workers.insert((from_mapped(backend.address), backend.port).into());
        }
    }
    Ok((range, workers))
}

fn mounts() -> Vec<PathBuf> {
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    let mounts = mounts.into_iter().flat_map(|mounts| mounts.0);
    mounts
        .filter(|mount| mount.fs_type == "bpf")
        .map(|mount| mount.mount_point)
        .collect()
}

/// Identifies a directory, however it is mounted.
fn device_and_inode(directory: &Path) -> Option<(u64, u64)> {
    let about = fs::metadata(directory).ok()?;
    Some((about.dev(), about.ino()))
}

fn scan(directory: &Path, depth: u32, seen: &mut BTreeSet<(u64, u64)>, found: &mut Vec<PathBuf>) {
    if !device_and_inode(directory).is_some_and(|id| seen.insert(id)) {
        return;
    }
    if ingress_links(&directory.join(LINKS)).next().is_some() {
        found.push(directory.to_owned());
    }
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            scan(&entry.path(), depth - 1, seen, found);
        }
    }
}

/// The interfaces here at which a program of these pinned links meets what arrives, and those of them where it does so
/// before the programs with the numbers `own`. An interface of another network namespace may have the same name.
pub(super) fn attached(links: &Path, own: &BTreeSet<u32>) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut all, mut first_at) = (BTreeSet::new(), BTreeSet::new());
    for link in ingress_links(links) {
        let attached = || {
            let index = link_info::interface_of(&link).ok()??;
            let interface = name_of(index)?;
            let program = link_info::program_of(&link).ok()??;
            let here = link_info::ingress_programs(index).ok()?;
            let theirs = here.iter().position(|id| *id == program)?;
            let ours = here.iter().position(|id| own.contains(id));
            Some((interface, ours.is_none_or(|ours| theirs < ours)))
        };
        if let Some((interface, is_first)) = attached() {
            first_at.extend(is_first.then(|| interface.clone()));
            all.insert(interface);
        }
    }
    (all, first_at)
}

/// The numbers of the programs of these pinned links.
fn pinned_programs(links: &Path) -> BTreeSet<u32> {
    let programs = ingress_links(links).map(|link| link_info::program_of(&link));
    programs.flatten().flatten().collect()
}

fn ingress_links(links: &Path) -> impl Iterator<Item = PathBuf> {
    let links = fs::read_dir(links).into_iter().flatten().flatten();
    let is_ingress = |name: &str| name.split('@').next() == Some(INGRESS);
    links
        .filter(move |link| link.file_name().to_str().is_some_and(is_ingress))
        .map(|link| link.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_owner_of_the_programs_and_the_remedy() {
        let left = ForeignPrograms {
            pin_path: "/sys/fs/bpf/memlb2".into(),
            interfaces: ["eth1".to_owned(), "eth2".to_owned()].into(),
            first_at: ["eth1".to_owned()].into(),
            holder: None,
            services: None,
        };
        let text = left.to_string();
        assert!(text.contains("attached to eth1, eth2 (pins /sys/fs/bpf/memlb2, left of"));
        assert!(text.ends_with("they steer packets before or after this one's"));
        assert_eq!(left.remedy(), "memlb unload --pin-path /sys/fs/bpf/memlb2");
        let holder = Holder {
            pid: 7,
            program: "memlb".to_owned(),
        };
        let held = ForeignPrograms {
            holder: Some(holder),
            ..left
        };
        assert!(held.to_string().contains("held by memlb (process 7)"));
        assert!(
            held.remedy()
                .starts_with("if one manager is enough, stop the other one")
        );
    }
}
