//! A file with a worker's memory figures, which a test sets.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The memory of each worker in the thesis's lab.
pub const TOTAL_KB: u64 = 700 * 1024;

/// A file in the format of /proc/meminfo that an agent reads instead of it.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    path: PathBuf,
}

impl MemoryFile {
    /// Makes the file, with `available_kb` of 700 MiB available.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: impl Into<PathBuf>, available_kb: u64) -> Result<Self> {
        let file = Self { path: path.into() };
        file.set_available_kb(available_kb)?;
        Ok(file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes the available memory atomically, because an agent may be reading.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_available_kb(&self, available_kb: u64) -> Result<()> {
        self.set(TOTAL_KB, available_kb)
    }

    /// Changes both figures atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, total_kb: u64, available_kb: u64) -> Result<()> {
        let draft = self.path.with_extension("draft");
        let figures =
            format!("MemTotal:     {total_kb:>8} kB\nMemAvailable: {available_kb:>8} kB\n");
        fs::write(&draft, figures)
            .and_then(|()| fs::rename(&draft, &self.path))
            .with_context(|| format!("write {}", self.path.display()))
    }
}
