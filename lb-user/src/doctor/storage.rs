//! The files that the manager writes: whether it can write them, and whether there is space.

use std::path::{Path, PathBuf};

use lb_core::Bytes;
use nix::{
    errno::Errno,
    sys::statvfs::statvfs,
    unistd::{AccessFlags, access},
};

use super::Finding;

/// The event log grows to 16 MiB twice; the rest is small.
const ENOUGH: u64 = 64 << 20;

/// Why a file cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageProblem {
    /// This user may not write it.
    Forbidden,
    ReadOnly,
    /// The path of its directory is a file.
    NotDirectory,
}

/// A file that the manager writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    pub what: &'static str,
    pub option: &'static str,
    pub path: PathBuf,
    /// The file, or its nearest ancestor that exists.
    pub existing: PathBuf,
    pub problem: Option<StorageProblem>,
    /// Free space of its file system, if the file system reports it.
    pub free_bytes: Option<u64>,
}

pub fn gather(what: &'static str, option: &'static str, path: &Path) -> FileFacts {
    let existing = path.ancestors().find(|path| path.exists());
    // A name without a directory is in the current one.
    let existing = match existing {
        Some(path) if path.as_os_str().is_empty() => Path::new("."),
        Some(path) => path,
        None => Path::new("."),
    };
    // The manager creates sockets and temporary files in the directory, so its permissions count.
    let directory = match existing.is_dir() {
        true => existing,
        false => existing.parent().unwrap_or(existing),
    };
    let is_not_directory = existing != path && existing != directory;
    let refusals = [existing, directory].map(|path| access(path, AccessFlags::W_OK).err());
    let mut problem = refusals.into_iter().flatten().map(|errno| match errno {
        Errno::EROFS => StorageProblem::ReadOnly,
        _ => StorageProblem::Forbidden,
    });
    FileFacts {
        what,
        option,
        path: path.to_owned(),
        existing: existing.to_owned(),
        problem: is_not_directory
            .then_some(StorageProblem::NotDirectory)
            .or_else(|| problem.next()),
        free_bytes: statvfs(directory)
            .ok()
            // Some file systems have no size.
            .filter(|room| room.blocks() > 0)
            .map(|room| room.blocks_available() * room.fragment_size()),
    }
}

pub fn findings(facts: &[FileFacts]) -> Vec<Finding> {
    facts.iter().map(finding).collect()
}

fn finding(facts: &FileFacts) -> Finding {
    let FileFacts {
        what,
        option,
        path,
        existing,
        ..
    } = facts;
    let (shown, above) = (path.display(), existing.display());
    if let Some(problem) = facts.problem {
        let cannot = format!("the {what} {shown} cannot be written");
        let (why, remedy) = match problem {
            StorageProblem::Forbidden => (
                format!("this user may not write to {above}"),
                "sudo memlb doctor".to_owned(),
            ),
            StorageProblem::ReadOnly => (
                format!("{above} is in a read-only file system"),
                format!(
                    "mount -o remount,rw \"$(findmnt -nT {above} -o TARGET)\"    (or {option} elsewhere)"
                ),
            ),
            StorageProblem::NotDirectory => (
                format!("{above} is not a directory"),
                format!("mv {above} {above}.old    (or {option} elsewhere)"),
            ),
        };
        return Finding::problem("storage", format!("{cannot}: {why}"), remedy);
    }
    match facts.free_bytes {
        Some(free) if free < ENOUGH => Finding::warning(
            "storage",
            format!("{} are left for the {what} {shown}", Bytes(free)),
            format!("df -h {above}    (and free space)"),
        ),
        _ => Finding::ok("storage", format!("the {what} {shown} can be written")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn checks_the_nearest_existing_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/deep/events.jsonl");
        let facts = gather("event log", "--event-log", &path);
        assert_eq!(facts.existing, directory.path());
        assert_eq!(finding(&facts).severity, Severity::Ok);
        // A file where a directory should be.
        std::fs::write(directory.path().join("new"), "").unwrap();
        let problem = gather("event log", "--event-log", &path).problem;
        assert_eq!(problem, Some(StorageProblem::NotDirectory));
        let here = gather("event log", "--event-log", Path::new("events.jsonl"));
        assert_eq!((here.problem, here.existing), (None, ".".into()));
    }

    #[test]
    fn reports_what_cannot_be_written_and_what_is_full() {
        let facts = FileFacts {
            what: "event log",
            option: "--event-log",
            path: "/var/log/memlb/events.jsonl".into(),
            existing: "/var/log".into(),
            problem: Some(StorageProblem::ReadOnly),
            free_bytes: Some(1 << 30),
        };
        finding(&facts).assert(Severity::Problem, "", "remount,rw");
        let forbidden = finding(&FileFacts {
            problem: Some(StorageProblem::Forbidden),
            ..facts.clone()
        });
        assert_eq!(forbidden.remedy.as_deref(), Some("sudo memlb doctor"));
        let full = FileFacts {
            problem: None,
            free_bytes: Some(1 << 20),
            ..facts
        };
        finding(&full).assert(Severity::Warning, "1.0 MiB are left", "");
    }
}
