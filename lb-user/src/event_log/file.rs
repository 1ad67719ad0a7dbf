//! The file of the event log, and its rotation.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A file of this size is renamed to `NAME.1`, which replaces the former one.
const ROTATE_AT_BYTES: u64 = 16 * 1024 * 1024;

/// The open file of the event log. It contains complete lines only, also after failures.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            bytes: 0,
        };
        log.reopen()?;
        Ok(log)
    }

    /// Closes the file; the next line opens it again.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    pub(super) fn write(&mut self, line: &[u8]) -> Result<()> {
        // First, because another writer may have rotated a file that was closed.
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.bytes >= ROTATE_AT_BYTES {
            self.rotate()?;
        }
        let file = self.file.as_mut().context("no file")?;
        if let Err(error) = file.write_all(line) {
            // Removes an incomplete line. A file that cannot be truncated is not a regular file.
            _ = file.set_len(self.bytes);
            self.file = None;
            return Err(error.into());
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        let old = self.path.with_added_extension("1");
        self.file = None;
        match fs::rename(&self.path, &old) {
            // Another program has moved or removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.with_context(|| format!("rename {}", self.path.display())),
        }?;
        self.reopen().context("create a new file")
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_log_is_rotated_and_replaces_the_previous_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut log = LogFile::open(&path).unwrap();
        for lines in [["first\n", "second\n"], ["second\n", "third\n"]] {
            log.write(lines[0].as_bytes()).unwrap();
            log.bytes = ROTATE_AT_BYTES;
            log.write(lines[1].as_bytes()).unwrap();
            let old = fs::read_to_string(directory.path().join("events.jsonl.1")).unwrap();
            assert!(old.ends_with(lines[0]) && !old.contains(lines[1]));
            assert_eq!(fs::read_to_string(&path).unwrap(), lines[1]);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_that_the_former_writer_has_rotated_is_not_rotated_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut former = LogFile::open(&path).unwrap();
        let mut next = LogFile::open(&path).unwrap();
        former.write(b"first\n").unwrap();
        (former.bytes, next.bytes) = (ROTATE_AT_BYTES, ROTATE_AT_BYTES);
        former.write(b"second\n").unwrap();
        next.close();
        next.write(b"third\n").unwrap();
        let old = fs::read_to_string(directory.path().join("events.jsonl.1")).unwrap();
        assert_eq!(old, "first\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "second\nthird\n");
    }

    #[test]
    fn a_log_that_was_removed_begins_again_when_it_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut log = LogFile::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        log.bytes = ROTATE_AT_BYTES;
        log.write(b"first\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "first\n");
    }
}
