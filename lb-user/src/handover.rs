//! The track file, by which this manager requests a lower priority from keepalived, and its usual one again.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::history::now_ms;

/// The file's content, which keepalived multiplies by a weight and adds to the priority.
const NORMAL: &str = "0";
const HANDED_OVER: &str = "-1";

/// Who requested the lower priority of this manager, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandedOver {
    /// Absent if an earlier manager process had handed over.
    pub by: Option<String>,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// The track file of this manager. Clones share its state.
#[derive(Debug, Clone, Default)]
pub struct TrackFile(Arc<TrackFileState>);

#[derive(Debug, Default)]
struct TrackFileState {
    /// `None` if no peer is configured.
    path: Option<PathBuf>,
    handed_over: Mutex<Option<HandedOver>>,
}

impl TrackFile {
    /// Restores the state from the file of an earlier manager process, or writes the usual priority.
    pub fn restore(path: &Path) -> Self {
        let is_handed_over =
            fs::read_to_string(path).is_ok_and(|content| content.trim() == HANDED_OVER);
        let handed_over = is_handed_over.then(|| HandedOver {
            by: None,
            at_ms: now_ms(),
        });
        if handed_over.is_some() {
            warn!(
                "still handed over to the peers (track file {}): memlb handover --undo ends that",
                path.display()
            );
        } else if let Err(error) = write(path, NORMAL) {
            warn!("{error:#}; memlb handover will not work");
        }
        Self(Arc::new(TrackFileState {
            path: Some(path.to_owned()),
            handed_over: Mutex::new(handed_over),
        }))
    }

    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Returns who requested the lower priority, and when; `None` with the usual priority.
    pub fn handed_over(&self) -> Option<HandedOver> {
        let state = self.0.handed_over.lock();
        state.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes the file, which blocks.
    ///
    /// # Errors
    ///
    /// Says why the file cannot be written.
    pub fn set(&self, handed_over: Option<HandedOver>) -> Result<()> {
        let path = self.path().context("no peer is configured")?;
        let content = match handed_over {
            Some(_) => HANDED_OVER,
            None => NORMAL,
        };
        // Lock before writing, so that file and state agree.
        let state = self.0.handed_over.lock();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        write(path, content)?;
        *state = handed_over;
        Ok(())
    }
}

/// Replaces the file atomically: keepalived reads the old or the new content.
fn write(path: &Path, content: &str) -> Result<()> {
    let replace = || -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let draft = path.with_added_extension("draft");
        fs::write(&draft, format!("{content}\n"))?;
        fs::rename(&draft, path)
    };
    replace().with_context(|| format!("write the track file {}", path.display()))
}

/// Reads a track file, for `memlb doctor`.
///
/// # Errors
///
/// The file cannot be read, or its content is not an integer.
pub fn read(path: &Path) -> Result<Option<i32>> {
    let context = || format!("read the track file {}", path.display());
    match fs::read_to_string(path) {
        Ok(content) => content.trim().parse().map(Some).with_context(context),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_manager_keeps_its_lower_priority() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/vrrp-weight");
        let content = || read(&path).unwrap();
        assert_eq!(content(), None);
        let first = TrackFile::restore(&path);
        assert_eq!((content(), first.handed_over()), (Some(0), None));
        let by_root = HandedOver {
            by: Some("root".to_owned()),
            at_ms: 1,
        };
        first.set(Some(by_root.clone())).unwrap();
        assert_eq!((content(), first.handed_over()), (Some(-1), Some(by_root)));
        let second = TrackFile::restore(&path);
        assert_eq!(second.handed_over().and_then(|it| it.by), None);
        assert!(second.handed_over().is_some());
        second.set(None).unwrap();
        assert_eq!((content(), second.handed_over()), (Some(0), None));
        fs::write(&path, "often\n").unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn a_failure_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = TrackFile::restore(directory.path());
        let by_root = HandedOver { by: None, at_ms: 1 };
        assert!(file.set(Some(by_root)).is_err());
        assert_eq!(file.handed_over(), None);
        assert!(TrackFile::default().set(None).is_err());
    }
}
