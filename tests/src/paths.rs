//! The names, files and pins of a cluster, and their removal.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result};

use crate::{namespace, notice::print_message, topology::Topology};

const PINS: &str = "/sys/fs/bpf";

/// The names, files and pins of a [`crate::Cluster`].
#[derive(Debug, Clone)]
pub struct ClusterPaths {
    /// The prefix of its namespaces' names.
    pub prefix: String,
    /// Holds the files of its servers, the workers' memory figures, logs, and the control socket.
    pub directory: PathBuf,
    pub pin_path: PathBuf,
}

impl ClusterPaths {
    pub(crate) fn unique() -> Self {
        let prefix = namespace::unique_prefix();
        let name = prefix.trim_end_matches('-');
        Self {
            directory: env::temp_dir().join(name),
            pin_path: Path::new(PINS).join(name),
            prefix,
        }
    }

    /// Removes the files and pins of unique places whose process has died
    /// without dropping its cluster.
    pub(crate) fn clear_abandoned() {
        for parent in [env::temp_dir(), PINS.into()] {
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if namespace::is_abandoned(&format!("{name}-"))
                    && let Err(error) = remove(&entry.path())
                {
                    print_message(format_args!("{error:#}"));
                }
            }
        }
    }

    pub fn control_socket(&self) -> PathBuf {
        self.directory.join("manager.sock")
    }

    pub fn state_file(&self) -> PathBuf {
        self.directory.join("operator.json")
    }

    /// Where the workers' keys are, if they have keys.
    pub fn keys(&self) -> PathBuf {
        self.directory.join("keys")
    }

    pub fn event_log(&self) -> PathBuf {
        self.directory.join("events.jsonl")
    }

    /// Returns the file with the memory figures of the worker of that `number`, from 1.
    pub fn memory_file(&self, number: usize) -> PathBuf {
        self.directory.join(format!("worker{number}.meminfo"))
    }

    /// Returns whether there is a cluster, or parts of a crashed one.
    pub fn is_taken(&self) -> bool {
        self.directory.exists()
    }

    /// Ends the cluster and removes everything of it, or the parts of a crashed one.
    ///
    /// # Errors
    /// When files or pins cannot be removed.
    pub fn clear(&self) -> Result<()> {
        Topology::delete(&self.prefix);
        remove(&self.pin_path)?;
        // Last, because it is the sign that there is something to remove.
        remove(&self.directory)
    }
}

/// The pins and files of a cluster, removed when dropped.
#[derive(Debug)]
pub(crate) struct Cleanup {
    directories: Vec<PathBuf>,
}

impl Cleanup {
    pub(crate) fn of(paths: &ClusterPaths) -> Self {
        Self {
            directories: vec![paths.pin_path.clone(), paths.directory.clone()],
        }
    }

    pub(crate) fn keep(mut self) {
        self.directories.clear();
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for directory in &self.directories {
            if thread::panicking() {
                print_logs(directory);
            }
            if let Err(error) = remove(directory) {
                print_message(format_args!("{error:#}"));
            }
        }
    }
}

/// Removes `directory` with its contents, if it exists.
fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))
}

/// Prints the logs of memlb after a failed test.
fn print_logs(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let file = entry.path();
        if file.extension().is_some_and(|extension| extension == "log")
            && let Ok(text) = fs::read_to_string(&file)
        {
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            print_message(format_args!(
                "--- the end of {} ---\n{last}",
                entry.file_name().display()
            ));
        }
    }
}
