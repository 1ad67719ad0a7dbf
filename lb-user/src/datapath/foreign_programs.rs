//! Attached programs of another memlb on this machine.

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
};
use lb_common::maps::{Backend, Settings, mode, name};
use lb_core::Mode;
use procfs::process::Process;

use super::{
    adopt,
    attach::{INGRESS, LINKS},
    bpffs,
    family::from_mapped,
    interface::name_of,
    layout, link_info,
};
use crate::{
    config::{Config, PortRange},
    sockets::{Holder, holder},
};

/// Depth of the search below the root of a BPF file system.
const DEPTH: u32 = 4;

/// A pin directory whose programs are attached in this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignPrograms {
    pub pin_path: PathBuf,
    pub interfaces: BTreeSet<String>,
    /// The manager that holds the pins; `None` if none runs.
    pub holder: Option<Holder>,
}

impl fmt::Display for ForeignPrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interfaces: Vec<&str> = self.interfaces.iter().map(String::as_str).collect();
        write!(
            f,
            "another memlb's programs are attached to {} (pins {}, {}): they steer packets before or \
             after this one's",
            interfaces.join(", "),
            self.pin_path.display(),
            match &self.holder {
                Some(holder) => format!("held by {holder}"),
                None => "left of a manager that no longer runs".to_owned(),
            }
        )
    }
}

impl ForeignPrograms {
    /// The command that takes the programs out.
    pub fn remedy(&self) -> String {
        let unload = format!("memlb unload --pin-path {}", self.pin_path.display());
        match &self.holder {
            Some(holder) => format!("kill {}; {unload}", holder.pid),
            None => unload,
        }
    }
}

/// Finds what is attached from other directories of pins than `pin_path`, as far as this user may see
/// them. A kernel without tcx has no such: there one manager's programs take the place of another's.
pub fn foreign_programs(pin_path: &Path) -> Vec<ForeignPrograms> {
    let mut seen: BTreeSet<(u64, u64)> = device_and_inode(pin_path).into_iter().collect();
    let mut found = Vec::new();
    for mount in mounts() {
        scan(&mount, DEPTH, &mut seen, &mut found);
    }
    found
}

/// Another manager that sends to the same workers from the same ports: a worker cannot tell the connections of one
/// from those of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConflict {
    pub found: String,
    pub remedy: String,
}

impl fmt::Display for PortConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  to do: {}", self.found, self.remedy)
    }
}

/// Finds the managers that run in this network namespace, too, and are in conflict with this configuration.
pub fn port_conflicts(config: &Config) -> Vec<PortConflict> {
    let services = config.services.iter().filter(|it| it.mode == Mode::Nat);
    let workers: BTreeSet<SocketAddr> = services
        .flat_map(|service| service.workers.iter().map(|worker| worker.address))
        .collect();
    let foreign = foreign_programs(&config.manager.pin_path).into_iter();
    foreign
        .filter_map(|programs| port_conflict(config.limits.nat_ports, &workers, &programs))
        .collect()
}

fn port_conflict(
    ports: PortRange,
    workers: &BTreeSet<SocketAddr>,
    programs: &ForeignPrograms,
) -> Option<PortConflict> {
    let holder = programs.holder.as_ref()?;
    // The ports and workers of another layout cannot be read.
    let (theirs, their_workers) = ports_and_workers(&programs.pin_path).ok()?;
    let common = workers.intersection(&their_workers).next()?;
    let path = programs.pin_path.display();
    ports.overlaps(theirs).then(|| PortConflict {
        found: format!(
            "limits.nat_ports: {ports} overlap {theirs} of {holder} (pins {path}), which sends to {common}, \
             too: the two managers would use the same ports, and break each other's connections"
        ),
        remedy: "give each manager ports of its own, memlb manager --set limits.nat_ports=4096-18431 and \
                 18432-32767, or stop one"
            .to_owned(),
    })
}

/// From which ports a manager sends to which workers.
fn ports_and_workers(pin_path: &Path) -> Result<(PortRange, BTreeSet<SocketAddr>)> {
    layout::check(pin_path)?;
    let settings = adopt::array::<Settings>(pin_path, name::SETTINGS)?.get(&0, 0)?;
    let range = PortRange {
        first: settings.nat_port_first,
        last: settings.nat_port_first + settings.nat_port_count.saturating_sub(1),
    };
    let mut workers = BTreeSet::new();
    for backend in adopt::array::<Backend>(pin_path, name::BACKENDS)?.iter() {
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

/// What tells a directory from all others, however it is mounted.
fn device_and_inode(directory: &Path) -> Option<(u64, u64)> {
    let about = fs::metadata(directory).ok()?;
    Some((about.dev(), about.ino()))
}

fn scan(
    directory: &Path,
    depth: u32,
    seen: &mut BTreeSet<(u64, u64)>,
    found: &mut Vec<ForeignPrograms>,
) {
    if !device_and_inode(directory).is_some_and(|id| seen.insert(id)) {
        return;
    }
    let interfaces = attached(&directory.join(LINKS));
    if !interfaces.is_empty() {
        found.push(ForeignPrograms {
            pin_path: directory.to_owned(),
            interfaces,
            holder: bpffs::locked_by(directory).and_then(holder),
        });
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

/// The interfaces here at which a program of these pinned links meets what arrives. An interface of
/// another network namespace may have the same name.
fn attached(links: &Path) -> BTreeSet<String> {
    let links = fs::read_dir(links).into_iter().flatten().flatten();
    links
        .filter_map(|link| {
            let name = link.file_name().into_string().ok()?;
            let is_ingress = name.split('@').next() == Some(INGRESS);
            let index = link_info::interface_of(&link.path()).ok()??;
            let interface = is_ingress.then(|| name_of(index))??;
            let pinned = FdLink::from(PinnedLink::from_pin(link.path()).ok()?);
            let program = pinned.info().ok()?.program_id();
            let (_, here) = SchedClassifier::query_tcx(&interface, TcAttachType::Ingress).ok()?;
            here.iter()
                .any(|it| it.id() == program)
                .then_some(interface)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_whose_the_programs_are_and_how_they_go() {
        let left = ForeignPrograms {
            pin_path: "/sys/fs/bpf/memlb2".into(),
            interfaces: ["eth1".to_owned(), "eth2".to_owned()].into(),
            holder: None,
        };
        assert!(
            left.to_string()
                .contains("attached to eth1, eth2 (pins /sys/fs/bpf/memlb2, left of")
        );
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
        assert!(held.remedy().starts_with("kill 7; memlb unload "));
    }
}
