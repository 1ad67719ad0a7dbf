//! The memory limit under which an agent runs: that of its cgroup (version 2), or of one above it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use procfs::{FromRead, ProcessCGroups, process::Process};

use crate::heartbeat::CgroupMemory;

/// A cgroup and the cgroups above it that can have a limit. The root cannot.
#[derive(Debug)]
pub(super) struct Cgroup {
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// Returns the cgroup of this process; `None` without version 2 and its memory controller.
    pub fn own() -> Option<Self> {
        let path = ProcessCGroups::from_file("/proc/self/cgroup")
            .ok()?
            .into_iter()
            .find(|cgroup| cgroup.hierarchy == 0)?
            .pathname;
        let mounts = Process::myself().ok()?.mountinfo().ok()?;
        let mount = mounts
            .into_iter()
            .find(|mount| mount.fs_type == "cgroup2")?;
        // In a container, the mount may show only the container's own part of the tree.
        let path = Path::new(&path);
        let below = path
            .strip_prefix(&mount.root)
            .or_else(|_| path.strip_prefix("/"))
            .ok()?;
        let directory = mount.mount_point.join(below);
        Self::nearest(if directory.is_dir() {
            &directory
        } else {
            &mount.mount_point
        })
    }

    /// Returns the cgroup at `directory`, or the nearest one above it with a memory controller. One without it is under
    /// the limits of those above it.
    fn nearest(directory: &Path) -> Option<Self> {
        directory
            .ancestors()
            .find_map(|it| Self::from(it.to_owned()))
    }

    /// Returns the cgroup at `directory`.
    ///
    /// # Errors
    ///
    /// Says that the directory is not a cgroup with a memory controller.
    pub fn at(directory: &Path) -> Result<Self> {
        Self::from(directory.to_owned()).with_context(|| {
            format!(
                "--cgroup {}: there is no memory.max; give a cgroup of version 2 with the memory controller, \
                 such as /sys/fs/cgroup/system.slice/nginx.service",
                directory.display()
            )
        })
    }

    fn from(directory: PathBuf) -> Option<Self> {
        let can_have_limit = |directory: &&Path| directory.join("memory.max").is_file();
        let directories: Vec<PathBuf> = directory
            .ancestors()
            .take_while(can_have_limit)
            .map(Path::to_owned)
            .collect();
        (!directories.is_empty()).then_some(Self { directories })
    }

    /// Reads all limits; returns the cgroup whose limit leaves the least memory, if there is a limit.
    pub fn tightest(&self) -> Option<(&Path, CgroupMemory)> {
        self.directories
            .iter()
            .filter_map(|directory| Some((directory.as_path(), read(directory)?)))
            .min_by_key(|(_, memory)| memory.headroom_bytes())
    }
}

/// Reads the figures of one cgroup; `None` if it has no limit.
fn read(directory: &Path) -> Option<CgroupMemory> {
    let text = |name: &str| fs::read_to_string(directory.join(name)).ok();
    // "max", which is no number, means no limit. Under a limit of 0, no process can run.
    let limit_bytes = text("memory.max")?.trim().parse().ok()?;
    let current_bytes = text("memory.current")?.trim().parse().ok()?;
    let stat = text("memory.stat").unwrap_or_default();
    let inactive_file = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "))
        .and_then(|number| number.trim().parse().ok());
    (limit_bytes > 0).then_some(CgroupMemory {
        limit_bytes,
        current_bytes,
        inactive_file_bytes: inactive_file.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, limit: &str, current: u64, inactive_file: u64) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("memory.max"), format!("{limit}\n")).unwrap();
        fs::write(directory.join("memory.current"), format!("{current}\n")).unwrap();
        let stat = format!("anon 5\nfile 9\ninactive_anon 1\ninactive_file {inactive_file}\n");
        fs::write(directory.join("memory.stat"), stat).unwrap();
    }

    #[test]
    fn limit_above_a_cgroup_without_memory_controller_counts() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("agent.service");
        write(&unit, "1000", 500, 50);
        let part = unit.join("part");
        fs::create_dir(&part).unwrap();
        let (directory, memory) = {
            let cgroup = Cgroup::nearest(&part).unwrap();
            let (directory, memory) = cgroup.tightest().unwrap();
            (directory.to_owned(), memory)
        };
        assert_eq!((directory, memory.limit_bytes), (unit, 1000));
        assert!(Cgroup::at(&part).is_err());
        assert!(Cgroup::nearest(root.path()).is_none());
    }

    #[test]
    fn lowest_cgroup_limit_counts_at_any_level() {
        let root = tempfile::tempdir().unwrap();
        let slice = root.path().join("web.slice");
        let unit = slice.join("nginx.service");
        write(&slice, "max", 900, 0);
        write(&unit, "max", 500, 50);
        let cgroup = Cgroup::at(&unit).unwrap();
        assert_eq!(cgroup.directories.len(), 2);
        assert!(cgroup.tightest().is_none());

        write(&unit, "1000", 500, 50);
        let (directory, memory) = cgroup.tightest().unwrap();
        assert_eq!(directory, unit);
        assert_eq!((memory.limit_bytes, memory.headroom_bytes()), (1000, 550));
        write(&slice, "1000", 900, 0);
        let (directory, memory) = cgroup.tightest().unwrap();
        assert_eq!((directory, memory.headroom_bytes()), (slice.as_path(), 100));

        // It may vanish with its unit.
        fs::remove_dir_all(&slice).unwrap();
        assert!(cgroup.tightest().is_none());
        assert!(Cgroup::at(&unit).is_err());
    }
}
