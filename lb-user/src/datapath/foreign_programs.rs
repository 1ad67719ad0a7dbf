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
    attach::INGRESS,
    bpffs::{self, LINKS},
    family::from_mapped,
    interface::{index_of, name_of},
    layout, link_info,
    named_map::ArrayMap,
    netlink_query,
};
use crate::{
    config::{Config, PortRange, Service},
    sockets::{Holder, holder},
};

/// Depth of the search below the root of a BPF file system.
const DEPTH: u32 = 4;

/// The programs of another pin directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignPrograms {
    pub pin_path: PathBuf,
    /// The interfaces of this network namespace to which they are attached.
    pub interfaces: BTreeSet<String>,
    /// Those of them at which they receive packets before this manager's programs.
    pub first_at: BTreeSet<String>,
    /// The manager that holds the pins; `None` if none runs.
    pub holder: Option<Holder>,
    /// The services in its maps; `None` if they cannot be read.
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
    /// Lists its services; `None` if there are none, or its maps cannot be read.
    pub fn service_list(&self) -> Option<String> {
        let services = self.services.iter().flatten();
        let services: Vec<String> = services.map(Endpoint::to_string).collect();
        (!services.is_empty()).then(|| services.join(", "))
    }

    /// Names the pins and the process that holds them.
    pub fn origin(&self) -> String {
        let pins = self.pin_path.display();
        match &self.holder {
            Some(holder) => format!("pins {pins}, held by {}", holder.with_age()),
            None => format!("pins {pins}, left of a manager that no longer runs"),
        }
    }

    /// What the operator can do about the programs. A manager that runs may be the intended one.
    pub fn remedy(&self) -> String {
        let unload = format!("memlb unload --pin-path {}", self.pin_path.display());
        match &self.holder {
            Some(_) => format!("if one manager is enough, stop the other one and {unload}"),
            None => unload,
        }
    }
}

/// Finds the programs that are attached in this network namespace from other pin directories than `pin_path`, as far as
/// this user may read them. There are none on kernels without tcx, where one manager's programs replace another's.
pub fn foreign_programs(pin_path: &Path) -> Vec<ForeignPrograms> {
    let mut programs = other_managers(pin_path);
    programs.retain(|it| !it.interfaces.is_empty());
    programs
}

/// Finds the pin directories other than `pin_path` with links of ingress programs, in any network namespace, as far as
/// this user may read them.
pub(super) fn other_managers(pin_path: &Path) -> Vec<ForeignPrograms> {
    let mut seen: BTreeSet<(u64, u64)> = device_and_inode(pin_path).into_iter().collect();
    let mut directories = Vec::new();
    for mount in mounts() {
        scan(&mount, DEPTH, &mut seen, &mut directories);
    }
    let own = pinned_programs(&pin_path.join(LINKS));
    let programs = directories.into_iter().map(|pin_path| {
        let (interfaces, first_at) = attached(&pin_path.join(LINKS), &own);
        ForeignPrograms {
            interfaces,
            first_at,
            holder: bpffs::locked_by(&pin_path).and_then(holder),
            services: served(&pin_path).ok(),
            pin_path,
        }
    });
    programs.collect()
}

/// A conflict of this configuration with another manager that runs in this network namespace.
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

/// Finds conflicts with other managers that run in this network namespace: they serve the same address, or send to the
/// same workers from the same ports. Maps of another layout cannot be read, and are not reported.
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

/// The program that receives a packet first would steer it, and the other manager would get none.
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

/// Whether one of `others` is `interface`, or is upstream or downstream of it.
fn are_joined(interface: &str, others: &BTreeSet<String>) -> bool {
    if others.contains(interface) {
        return true;
    }
    let Ok(links) = netlink_query::links() else {
        return false;
    };
    let is_upstream = |one: &str, of: &str| {
        let (Some(one), Some(of)) = (index_of(one), index_of(of)) else {
            return false;
        };
        links.upstream_of(of).interfaces.contains(&one)
    };
    let mut others = others.iter();
    others.any(|it| is_upstream(interface, it) || is_upstream(it, interface))
}

/// Finds a manager that announces a service of this configuration at one of its interfaces. Its pins may be unreadable.
pub fn announced_conflict(config: &Config) -> Option<Conflict> {
    let services = config.services.iter().map(Service::endpoint).collect();
    config.manager.interfaces.iter().find_map(|interface| {
        let serving = announcement::other_serving(index_of(interface)?, &services);
        let (pid, service) = serving
            .inspect_err(|error| debug!("find other managers: {error}"))
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

/// A worker cannot distinguish the connections of two managers that use the same ports.
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

/// Reads the endpoints of a manager's services from its pins.
pub(super) fn served(pin_path: &Path) -> Result<BTreeSet<Endpoint>> {
    layout::check(pin_path)?;
    let services = adopt::service_ids(pin_path)?;
    Ok(services.into_iter().map(|(_, endpoint)| endpoint).collect())
}

/// Reads from a manager's pins its NAT ports and the workers that it sends to in mode `nat`.
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

/// Identifies a directory independently of its mount.
fn device_and_inode(directory: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(directory).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Adds the pin directories at and below a directory to `found`.
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

/// The interfaces of this network namespace to which an ingress program of these pinned links is attached, and those of
/// them at which it runs before the programs with the ids `own`. An interface of another network namespace may have the
/// same name.
fn attached(links: &Path, own: &BTreeSet<u32>) -> (BTreeSet<String>, BTreeSet<String>) {
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

/// The ids of the ingress programs of these pinned links.
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
