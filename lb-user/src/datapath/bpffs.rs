//! The directory of pins: its BPF file system, its lock, its removal.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use anyhow::{Context, Result, bail};
use aya::maps::MapData;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, fstatfs, statfs},
};
use tracing::info;

const USUAL_MOUNT: &str = "/sys/fs/bpf";

/// Makes `pin_path` a directory in a BPF file system, which is mounted at its usual place if need be.
/// Returns whether there is nothing in it yet.
pub fn ensure(pin_path: &Path) -> Result<bool> {
    let usual = Path::new(USUAL_MOUNT);
    if pin_path.starts_with(usual) && !is_bpffs(usual)? {
        mount(
            Some("bpf"),
            usual,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount the BPF file system at {USUAL_MOUNT}"))?;
        info!("mounted the BPF file system at {USUAL_MOUNT}");
    }
    check(pin_path)?;
    fs::create_dir_all(pin_path)
        .with_context(|| format!("create the pin directory {}", pin_path.display()))?;
    let mut entries = fs::read_dir(pin_path)
        .with_context(|| format!("list the pin directory {}", pin_path.display()))?;
    Ok(entries.next().is_none())
}

/// Checks that `pin_path`, which need not exist yet, can be memlb's own: it is removed as a whole
/// some day.
pub fn check(pin_path: &Path) -> Result<()> {
    let existing = pin_path.ancestors().find(|path| path.exists());
    if !is_bpffs(existing.unwrap_or(pin_path))? {
        bail!(
            "manager.pin_path {} is not in a BPF file system: choose a directory below \
             {USUAL_MOUNT}, or mount one there (mount -t bpf bpf DIRECTORY)",
            pin_path.display()
        );
    }
    if existing == Some(pin_path) && is_mount_point(pin_path)? {
        bail!(
            "manager.pin_path {} is a whole BPF file system, with the pins of others: choose a \
             directory below it",
            pin_path.display()
        );
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> Result<bool> {
    let device = |path: &Path| {
        let metadata = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
        anyhow::Ok(metadata.dev())
    };
    let path = path
        .canonicalize()
        .with_context(|| format!("look at {}", path.display()))?;
    match path.parent() {
        Some(parent) => Ok(device(parent)? != device(&path)?),
        None => Ok(true),
    }
}

fn is_bpffs(path: &Path) -> Result<bool> {
    let status = statfs(path).with_context(|| format!("look at {}", path.display()))?;
    Ok(status.filesystem_type() == BPF_FS_MAGIC)
}

/// The right to write the maps pinned in a directory, held by one manager at a time.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Lock {
    /// Takes the lock at once.
    pub fn take(pin_path: &Path) -> Result<Self> {
        let directory = File::open(pin_path)
            .with_context(|| format!("open the pin directory {}", pin_path.display()))?;
        fstatfs(directory.as_fd()).context("look at the pin directory")?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another memlb manager holds the pins at {}: stop it first, or give this one \
                 another manager.pin_path",
                pin_path.display()
            ),
            Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", pin_path.display())),
        }
    }
}

/// Opens a map pinned in the directory, by its name.
pub fn open_map(pin_path: &Path, map: &str) -> Result<MapData> {
    let path = pin_path.join(map);
    MapData::from_pin(&path).with_context(|| format!("open the pinned map {}", path.display()))
}

/// Removes the directory of pins with everything in it.
pub fn remove(pin_path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(pin_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
