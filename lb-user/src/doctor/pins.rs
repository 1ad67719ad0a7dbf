//! The BPF file system and the pins: their manager and their layout.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use super::Finding;
use crate::{
    datapath::{
        ForeignPrograms, LayoutError, adopt,
        bpffs::{self, DEFAULT_MOUNT},
        foreign_programs, kernel,
    },
    sockets::{Holder, holder},
};

#[derive(Debug, Clone)]
pub struct PinFacts {
    pub pin_path: PathBuf,
    pub directory: PinDirectory,
    pub pinned: PinState,
    /// The manager that holds the pins.
    pub holder: Option<Holder>,
    /// Programs that are attached from other pin directories.
    pub others: Vec<ForeignPrograms>,
}

/// The state of the pin directory, which may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinDirectory {
    Writable,
    /// No BPF file system is mounted at the usual path. A manager mounts it if it may.
    Unmounted {
        may_mount: bool,
    },
    ReadOnly,
    /// This user may not write.
    Forbidden,
    /// The directory cannot hold pins, and why.
    Unsuited(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinState {
    Empty,
    /// This version's layout.
    Valid,
    /// This user may not read the pins.
    Forbidden,
    /// Another layout, and which.
    OtherLayout(String),
    /// The pins cannot be read, and why.
    Unreadable(String),
}

/// `running` is the manager that answers at the control socket. Its programs are no finding.
pub fn gather(pin_path: &Path, privileges: u64, running: Option<i32>) -> PinFacts {
    let directory = directory(pin_path, kernel::may_mount(privileges));
    let pinned = match directory {
        PinDirectory::Writable | PinDirectory::ReadOnly | PinDirectory::Forbidden => {
            pin_state(pin_path)
        }
        PinDirectory::Unmounted { .. } | PinDirectory::Unsuited(_) => PinState::Empty,
    };
    PinFacts {
        pin_path: pin_path.to_owned(),
        directory,
        pinned,
        holder: bpffs::locked_by(pin_path).and_then(holder),
        others: foreign_programs(pin_path)
            .into_iter()
            .filter(|it| {
                it.holder
                    .as_ref()
                    .is_none_or(|holder| Some(holder.pid) != running)
            })
            .collect(),
    }
}

fn directory(pin_path: &Path, may_mount: bool) -> PinDirectory {
    let usual = Path::new(DEFAULT_MOUNT);
    if pin_path.starts_with(usual) && !bpffs::is_bpffs(usual).unwrap_or(false) {
        return PinDirectory::Unmounted { may_mount };
    }
    if let Err(error) = bpffs::check(pin_path) {
        return PinDirectory::Unsuited(format!("{error:#}"));
    }
    match access(bpffs::nearest(pin_path), AccessFlags::W_OK) {
        Ok(()) => PinDirectory::Writable,
        Err(Errno::EROFS) => PinDirectory::ReadOnly,
        Err(_) => PinDirectory::Forbidden,
    }
}

fn pin_state(pin_path: &Path) -> PinState {
    match fs::read_dir(pin_path).map(|mut entries| entries.next().is_none()) {
        Ok(false) => {}
        Ok(true) => return PinState::Empty,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => return PinState::Empty,
            io::ErrorKind::PermissionDenied => return PinState::Forbidden,
            _ => {}
        },
    }
    match adopt::read(pin_path) {
        Ok(_) => PinState::Valid,
        Err(error) => match error.downcast::<LayoutError>() {
            Ok(LayoutError { found, .. }) => PinState::OtherLayout(found),
            Err(error) => PinState::Unreadable(format!("{error:#}")),
        },
    }
}

pub fn findings(facts: &PinFacts) -> Vec<Finding> {
    let others = facts.others.iter();
    let others = others.map(|it| Finding::problem("pins", it.to_string(), it.remedy()));
    [bpffs(facts), pins(facts)]
        .into_iter()
        .chain(others)
        .collect()
}

fn bpffs(facts: &PinFacts) -> Finding {
    let path = facts.pin_path.display();
    let mount = format!("mount -t bpf bpf {DEFAULT_MOUNT}");
    match &facts.directory {
        PinDirectory::Writable => {
            Finding::ok("bpffs", format!("{path} is in a BPF file system, writable"))
        }
        PinDirectory::Unmounted { may_mount: true } => Finding::warning(
            "bpffs",
            format!(
                "no BPF file system is mounted at {DEFAULT_MOUNT}: a manager run as root mounts it at \
                 its start"
            ),
            mount,
        ),
        PinDirectory::Unmounted { may_mount: false } => Finding::problem(
            "bpffs",
            format!(
                "no BPF file system is mounted at {DEFAULT_MOUNT}, and this user may not mount it"
            ),
            mount,
        ),
        PinDirectory::ReadOnly => Finding::problem(
            "bpffs",
            format!("{path} cannot be written: its file system is read-only"),
            format!("mount -o remount,rw {DEFAULT_MOUNT}"),
        ),
        PinDirectory::Forbidden => Finding::problem(
            "bpffs",
            format!("{path} cannot be written by this user"),
            "sudo memlb doctor",
        ),
        PinDirectory::Unsuited(why) => Finding::problem(
            "bpffs",
            why.clone(),
            format!("memlb manager --pin-path {DEFAULT_MOUNT}/memlb"),
        ),
    }
}

fn pins(facts: &PinFacts) -> Finding {
    let path = facts.pin_path.display();
    let unload = format!("memlb unload --pin-path {path}");
    match (&facts.pinned, &facts.holder) {
        (PinState::Empty, _) => Finding::ok("pins", format!("nothing is pinned at {path} yet")),
        (PinState::Forbidden, _) => Finding::warning(
            "pins",
            format!("this user may not read the pins at {path}"),
            "sudo memlb doctor",
        ),
        (PinState::Valid, Some(holder)) => {
            Finding::ok("pins", format!("{path} is held by {holder}"))
        }
        (PinState::Valid, None) => Finding::warning(
            "pins",
            format!(
                "{path} is left of a manager that no longer runs: its programs steer by the last \
                 selection, and no process detects failures"
            ),
            format!(
                "start the manager, which adopts the pins (memlb manager); or remove them, which ends open connections: {unload}"
            ),
        ),
        (PinState::OtherLayout(found), _) => Finding::problem(
            "pins",
            format!(
                "the pins at {path} have {found}, and this memlb has layout {}: no manager of this version \
                 starts",
                lb_common::maps::LAYOUT_VERSION
            ),
            format!("{unload}    (open connections end)"),
        ),
        (PinState::Unreadable(why), _) => Finding::problem(
            "pins",
            format!("the pins at {path} cannot be read: {why}"),
            format!("sudo memlb doctor; if it is damaged: {unload}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::doctor::Severity;

    fn facts(directory: PinDirectory, pinned: PinState) -> PinFacts {
        PinFacts {
            pin_path: "/sys/fs/bpf/memlb".into(),
            directory,
            pinned,
            holder: None,
            others: Vec::new(),
        }
    }

    #[test]
    fn reports_unusable_pin_directories() {
        let unmounted = |may_mount| PinDirectory::Unmounted { may_mount };
        let (unfit, usual) = (
            PinDirectory::Unsuited("no".to_owned()),
            "--pin-path /sys/fs/bpf/memlb",
        );
        let mount = "mount -t bpf bpf /sys/fs/bpf";
        for (directory, verdict, remedy) in [
            (PinDirectory::Writable, Severity::Ok, ""),
            (unmounted(true), Severity::Warning, mount),
            (unmounted(false), Severity::Problem, mount),
            (PinDirectory::ReadOnly, Severity::Problem, "remount,rw"),
            (
                PinDirectory::Forbidden,
                Severity::Problem,
                "sudo memlb doctor",
            ),
            (unfit, Severity::Problem, usual),
        ] {
            findings(&facts(directory, PinState::Empty))[0].assert(verdict, "", remedy);
        }
    }

    #[test]
    fn reports_programs_of_another_pin_path() {
        let left = ForeignPrograms {
            pin_path: "/sys/fs/bpf/memlb2".into(),
            first_at: BTreeSet::new(),
            interfaces: ["eth1".to_owned()].into(),
            holder: None,
            services: None,
        };
        let facts = PinFacts {
            others: vec![left],
            ..facts(PinDirectory::Writable, PinState::Valid)
        };
        let remedy = "memlb unload --pin-path /sys/fs/bpf/memlb2";
        findings(&facts)[2].assert(Severity::Problem, "", remedy);
    }

    #[test]
    fn reports_the_owner_of_the_pins() {
        let left = facts(PinDirectory::Writable, PinState::Valid);
        findings(&left)[1].assert(Severity::Warning, "no longer runs", "");
        let held = PinFacts {
            holder: Some(Holder {
                pid: 7,
                program: "memlb".to_owned(),
            }),
            ..facts(PinDirectory::Writable, PinState::Valid)
        };
        assert_eq!(findings(&held)[1].severity, Severity::Ok);
        let old = PinState::OtherLayout("layout 3".to_owned());
        let remedy = "memlb unload --pin-path /sys/fs/bpf/memlb";
        findings(&facts(PinDirectory::Writable, old))[1].assert(Severity::Problem, "", remedy);
    }
}
