//! The directory of pins: its BPF file system, its lock, its removal.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use anyhow::{Context, Result, bail};
use aya::programs::links::PinnedLink;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, fstatfs, statfs},
};
use procfs::{LockType, process::Process};
use tracing::info;

use super::attach::LINKS;

pub const DEFAULT_MOUNT: &str = "/sys/fs/bpf";

/// Creates directory `pin_path` in a BPF file system, which it mounts if necessary. Returns whether the directory is
/// empty.
pub fn ensure(pin_path: &Path) -> Result<bool> {
    let usual = Path::new(DEFAULT_MOUNT);
    if pin_path.starts_with(usual) && !is_bpffs(nearest(pin_path))? {
        mount(
            Some("bpf"),
            usual,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount the BPF file system at {DEFAULT_MOUNT}"))?;
        info!("mounted the BPF file system at {DEFAULT_MOUNT}");
    }
    check(pin_path)?;
    fs::create_dir_all(pin_path)
        .with_context(|| format!("create the pin directory {}", pin_path.display()))?;
    let mut entries = fs::read_dir(pin_path)
        .with_context(|| format!("list the pin directory {}", pin_path.display()))?;
    Ok(entries.next().is_none())
}

/// Checks that `pin_path`, which may not exist yet, can belong to memlb alone, because unloading removes it.
pub fn check(pin_path: &Path) -> Result<()> {
    let existing = nearest(pin_path);
    if !is_bpffs(existing)? {
        bail!(
            "manager.pin_path {} is not in a BPF file system: choose a directory below \
             {DEFAULT_MOUNT}, or mount one there (mount -t bpf bpf DIRECTORY)",
            pin_path.display()
        );
    }
    if existing == pin_path && is_valid(pin_path)? {
        bail!(
            "manager.pin_path {} is a whole BPF file system, with the pins of others: choose a \
             directory below it",
            pin_path.display()
        );
    }
    Ok(())
}

/// The path, or its nearest ancestor that exists.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|it| it.exists()).unwrap_or(path)
}

/// Whether the root of a file system is mounted at `path`, not only a directory of it.
fn is_valid(path: &Path) -> Result<bool> {
    let context = || format!("look at {}", path.display());
    let path = path.canonicalize().with_context(context)?;
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .context("read the mounts of this process")?;
    let last = mounts.into_iter().rfind(|it| it.mount_point == path);
    Ok(last.is_some_and(|mount| mount.root == "/"))
}

pub fn is_bpffs(path: &Path) -> Result<bool> {
    let status = statfs(path).with_context(|| format!("look at {}", path.display()))?;
    Ok(status.filesystem_type() == BPF_FS_MAGIC)
}

/// The lock of a pin directory. Only its owner writes the maps.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Lock {
    /// Acquires the lock, or fails at once.
    pub fn acquire(pin_path: &Path) -> Result<Self> {
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

/// Returns the process that holds the lock, without trying to acquire it.
pub fn locked_by(pin_path: &Path) -> Option<i32> {
    let about = fs::metadata(pin_path).ok()?;
    let (major, minor) = (
        nix::sys::stat::major(about.dev()),
        nix::sys::stat::minor(about.dev()),
    );
    procfs::locks().ok()?.into_iter().find_map(|lock| {
        let same = lock.lock_type == LockType::FLock
            && lock.inode == about.ino()
            && (u64::from(lock.devmaj), u64::from(lock.devmin)) == (major, minor);
        same.then_some(lock.pid).flatten()
    })
}

/// Removes the directory of pins with everything in it. The programs are detached when it returns: when a pin is
/// a link's last reference, Linux 6.5 and newer detach it some time after the pin is removed; when it is a file
/// descriptor, they detach it as that is closed.
pub fn remove(pin_path: &Path) -> io::Result<()> {
    let links = fs::read_dir(pin_path.join(LINKS));
    let links: Vec<_> = links
        .into_iter()
        .flatten()
        .filter_map(|entry| PinnedLink::from_pin(entry.ok()?.path()).ok())
        .collect();
    let removed = match fs::remove_dir_all(pin_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    drop(links);
    removed
}
