//! The directory of pins: its BPF file system, its lock, its removal.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::programs::links::PinnedLink;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::{
        stat::makedev,
        statfs::{BPF_FS_MAGIC, statfs},
    },
};
use procfs::{LockType, process::Process};
use tracing::info;

pub const DEFAULT_MOUNT: &str = "/sys/fs/bpf";

/// Subdirectory of the pin directory with the pinned links.
pub const LINKS: &str = "links";

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
    if existing == pin_path && is_mount_point(pin_path)? {
        bail!(
            "manager.pin_path {} is a whole BPF file system, with the pins of others: choose a \
             directory below it",
            pin_path.display()
        );
    }
    Ok(())
}

/// The path, or its nearest ancestor that exists.
pub fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|it| it.exists()).unwrap_or(path)
}

/// Lists the files of a directory, not recursively.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("list {}", directory.display());
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let paths = entries
        .with_context(context)?
        .into_iter()
        .map(|it| it.path());
    Ok(paths.filter(|path| path.is_file()).collect())
}

/// Whether the root of a file system is mounted at `path`, not only a directory of it.
fn is_mount_point(path: &Path) -> Result<bool> {
    let context = || format!("resolve {}", path.display());
    let path = path.canonicalize().with_context(context)?;
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .context("read the mounts of this process")?;
    let last = mounts.into_iter().rfind(|it| it.mount_point == path);
    Ok(last.is_some_and(|mount| mount.root == "/"))
}

pub fn is_bpffs(path: &Path) -> Result<bool> {
    let status = statfs(path);
    let status = status.with_context(|| format!("read the file system of {}", path.display()))?;
    Ok(status.filesystem_type() == BPF_FS_MAGIC)
}

/// The lock of a pin directory. Only its owner writes the maps.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Lock {
    /// Acquires the lock, or fails at once with the `remedy` if a process, the `holder`, has it.
    pub fn acquire(pin_path: &Path, holder: &str, remedy: &str) -> Result<Self> {
        let directory = File::open(pin_path)
            .with_context(|| format!("open the pin directory {}", pin_path.display()))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => {
                bail!(
                    "{holder} holds the pins at {}: {remedy}",
                    pin_path.display()
                )
            }
            Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", pin_path.display())),
        }
    }
}

/// Returns the process that holds the lock, without trying to acquire it.
pub fn locked_by(pin_path: &Path) -> Option<i32> {
    let metadata = fs::metadata(pin_path).ok()?;
    procfs::locks().ok()?.into_iter().find_map(|lock| {
        let device = makedev(lock.devmaj.into(), lock.devmin.into());
        let is_this = lock.lock_type == LockType::FLock
            && (device, lock.inode) == (metadata.dev(), metadata.ino());
        is_this.then_some(lock.pid).flatten()
    })
}

/// Removes the directory of pins with everything in it. The programs are detached when it returns: Linux 6.5 and newer
/// detach a link at once when its last file descriptor is closed, but only later when its last pin is removed.
pub fn remove(pin_path: &Path) -> io::Result<()> {
    let links = files(&pin_path.join(LINKS)).unwrap_or_default();
    let links: Vec<_> = links
        .iter()
        .filter_map(|it| PinnedLink::from_pin(it).ok())
        .collect();
    let removed = match fs::remove_dir_all(pin_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    drop(links);
    removed
}
