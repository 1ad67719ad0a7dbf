//! The BPF file system and what is pinned there: by whom, of which layout.

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
        bpffs::{self, USUAL_MOUNT},
        foreign_programs, kernel,
    },
    sockets::{Holder, holder},
};

#[derive(Debug, Clone)]
pub struct Facts {
    pub pin_path: PathBuf,
    pub place: Place,
    pub pinned: Pinned,
    /// The manager that holds the pins.
    pub holder: Option<Holder>,
    /// What is attached from elsewhere.
    pub others: Vec<ForeignPrograms>,
}

/// Where the pins are, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Fit,
    /// Not mounted at its usual place, where a manager mounts it by itself if it may.
    Unmounted {
        may_mount: bool,
    },
    ReadOnly,
    /// This user may not enter or write.
    Forbidden,
    /// No place for pins at all, and why.
    Unfit(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinned {
    Nothing,
    Ours,
    /// This user may not look.
    Hidden,
    /// By a memlb of another layout version.
    OtherLayout(String),
    /// It could not be looked at, and why.
    Unreadable(String),
}

/// `asked` is the manager that answers here, whatever its pins.
pub fn gather(pin_path: &Path, privileges: u64, asked: Option<i32>) -> Facts {
    let place = place(pin_path, kernel::may_mount(privileges));
    let pinned = match place {
        Place::Fit | Place::ReadOnly | Place::Forbidden => pinned(pin_path),
        Place::Unmounted { .. } | Place::Unfit(_) => Pinned::Nothing,
    };
    Facts {
        pin_path: pin_path.to_owned(),
        place,
        pinned,
        holder: bpffs::locked_by(pin_path).and_then(holder),
        others: foreign_programs(pin_path)
            .into_iter()
            .filter(|other| match &other.holder {
                Some(holder) => Some(holder.pid) != asked,
                None => true,
            })
            .collect(),
    }
}

fn place(pin_path: &Path, may_mount: bool) -> Place {
    let usual = Path::new(USUAL_MOUNT);
    if pin_path.starts_with(usual) && !bpffs::is_bpffs(usual).unwrap_or(false) {
        return Place::Unmounted { may_mount };
    }
    if let Err(error) = bpffs::check(pin_path) {
        return Place::Unfit(format!("{error:#}"));
    }
    let existing = pin_path.ancestors().find(|path| path.exists());
    match access(existing.unwrap_or(pin_path), AccessFlags::W_OK) {
        Ok(()) => Place::Fit,
        Err(Errno::EROFS) => Place::ReadOnly,
        Err(_) => Place::Forbidden,
    }
}

fn pinned(pin_path: &Path) -> Pinned {
    match fs::read_dir(pin_path).map(|mut entries| entries.next().is_none()) {
        Ok(false) => {}
        Ok(true) => return Pinned::Nothing,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => return Pinned::Nothing,
            io::ErrorKind::PermissionDenied => return Pinned::Hidden,
            _ => {}
        },
    }
    match adopt::read(pin_path) {
        Ok(_) => Pinned::Ours,
        Err(error) => match error.downcast::<LayoutError>() {
            Ok(LayoutError { found, .. }) => Pinned::OtherLayout(found),
            Err(error) => Pinned::Unreadable(format!("{error:#}")),
        },
    }
}

pub fn findings(facts: &Facts) -> Vec<Finding> {
    let others = facts.others.iter();
    let others = others.map(|it| Finding::problem("pins", it.to_string(), it.remedy()));
    [bpffs_of(facts), pins(facts)]
        .into_iter()
        .chain(others)
        .collect()
}

fn bpffs_of(facts: &Facts) -> Finding {
    let path = facts.pin_path.display();
    let mount = format!("mount -t bpf bpf {USUAL_MOUNT}");
    match &facts.place {
        Place::Fit => Finding::ok("bpffs", format!("{path} is in a BPF file system, writable")),
        Place::Unmounted { may_mount: true } => Finding::warning(
            "bpffs",
            format!(
                "no BPF file system is mounted at {USUAL_MOUNT}: a manager run as root mounts it at \
                 its start"
            ),
            mount,
        ),
        Place::Unmounted { may_mount: false } => Finding::problem(
            "bpffs",
            format!(
                "no BPF file system is mounted at {USUAL_MOUNT}, and this user may not mount it"
            ),
            mount,
        ),
        Place::ReadOnly => Finding::problem(
            "bpffs",
            format!("{path} cannot be written: its file system is read-only"),
            format!("mount -o remount,rw {USUAL_MOUNT}"),
        ),
        Place::Forbidden => Finding::problem(
            "bpffs",
            format!("{path} cannot be written by this user"),
            "sudo memlb doctor",
        ),
        Place::Unfit(why) => Finding::problem(
            "bpffs",
            why.clone(),
            format!("memlb manager --pin-path {USUAL_MOUNT}/memlb"),
        ),
    }
}

fn pins(facts: &Facts) -> Finding {
    let path = facts.pin_path.display();
    let unload = format!("memlb unload --pin-path {path}");
    match (&facts.pinned, &facts.holder) {
        (Pinned::Nothing, _) => Finding::ok("pins", format!("nothing is pinned at {path} yet")),
        (Pinned::Hidden, _) => Finding::warning(
            "pins",
            format!("this user may not look at what is pinned at {path}"),
            "sudo memlb doctor",
        ),
        (Pinned::Ours, Some(holder)) => Finding::ok("pins", format!("{path} is held by {holder}")),
        (Pinned::Ours, None) => Finding::warning(
            "pins",
            format!(
                "{path} is left of a manager that no longer runs: it goes on steering with its last \
                 choice, and notices no failure"
            ),
            format!(
                "start the manager, which takes over (memlb manager); or take it out, which ends open connections: {unload}"
            ),
        ),
        (Pinned::OtherLayout(found), _) => Finding::problem(
            "pins",
            format!(
                "what is pinned at {path} has {found}, and this memlb has layout {}: no manager of this version \
                 starts",
                lb_common::maps::LAYOUT_VERSION
            ),
            format!("{unload}    (open connections end)"),
        ),
        (Pinned::Unreadable(why), _) => Finding::problem(
            "pins",
            format!("what is pinned at {path} cannot be looked at: {why}"),
            format!("sudo memlb doctor; if it is damaged: {unload}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn facts(place: Place, pinned: Pinned) -> Facts {
        Facts {
            pin_path: "/sys/fs/bpf/memlb".into(),
            place,
            pinned,
            holder: None,
            others: Vec::new(),
        }
    }

    #[test]
    fn tells_where_pins_cannot_be() {
        let cases = [
            (Place::Fit, Verdict::Ok, ""),
            (
                Place::Unmounted { may_mount: true },
                Verdict::Warning,
                "mount -t bpf bpf /sys/fs/bpf",
            ),
            (
                Place::Unmounted { may_mount: false },
                Verdict::Problem,
                "mount -t bpf bpf /sys/fs/bpf",
            ),
            (Place::ReadOnly, Verdict::Problem, "remount,rw"),
            (Place::Forbidden, Verdict::Problem, "sudo memlb doctor"),
            (
                Place::Unfit("no".to_owned()),
                Verdict::Problem,
                "--pin-path /sys/fs/bpf/memlb",
            ),
        ];
        for (place, verdict, remedy) in cases {
            let found = &findings(&facts(place, Pinned::Nothing))[0];
            assert_eq!(found.verdict, verdict, "{found:?}");
            assert!(found.remedy.clone().unwrap_or_default().contains(remedy));
        }
    }

    #[test]
    fn tells_what_is_attached_from_elsewhere() {
        let left = ForeignPrograms {
            pin_path: "/sys/fs/bpf/memlb2".into(),
            interfaces: ["eth1".to_owned()].into(),
            holder: None,
        };
        let facts = Facts {
            others: vec![left],
            ..facts(Place::Fit, Pinned::Ours)
        };
        let found = &findings(&facts)[2];
        assert_eq!(found.verdict, Verdict::Problem);
        let remedy = "memlb unload --pin-path /sys/fs/bpf/memlb2";
        assert_eq!(found.remedy.as_deref(), Some(remedy));
    }

    #[test]
    fn tells_whose_the_pins_are() {
        let left = &findings(&facts(Place::Fit, Pinned::Ours))[1];
        assert_eq!(left.verdict, Verdict::Warning);
        assert!(left.found.contains("no longer runs"));
        let held = Facts {
            holder: Some(Holder {
                pid: 7,
                program: "memlb".to_owned(),
            }),
            ..facts(Place::Fit, Pinned::Ours)
        };
        assert_eq!(findings(&held)[1].verdict, Verdict::Ok);
        let old = &findings(&facts(
            Place::Fit,
            Pinned::OtherLayout("layout 3".to_owned()),
        ))[1];
        assert_eq!(old.verdict, Verdict::Problem);
        let remedy = old.remedy.as_deref().unwrap();
        assert!(remedy.starts_with("memlb unload --pin-path /sys/fs/bpf/memlb"));
    }
}
