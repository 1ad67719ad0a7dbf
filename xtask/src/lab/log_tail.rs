//! Reads new lines of a log file.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, Result};

/// Reads a growing file from its beginning on.
#[derive(Debug)]
pub struct LogTail {
    file: BufReader<File>,
    unfinished: String,
}

impl LogTail {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            file: BufReader::new(file),
            unfinished: String::new(),
        })
    }

    /// Returns the next complete line, or `None`.
    pub fn next_line(&mut self) -> Result<Option<String>> {
        self.file
            .read_line(&mut self.unfinished)
            .context("read the log")?;
        if !self.unfinished.ends_with('\n') {
            return Ok(None);
        }
        let line = self.unfinished.trim_end().to_owned();
        self.unfinished.clear();
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::LogTail;

    #[test]
    fn returns_lines_once_and_when_they_are_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = fs::File::create(&path).unwrap();
        let mut tail = LogTail::open(&path).unwrap();

        log.write_all(b"one\ntw").unwrap();
        assert_eq!(tail.next_line().unwrap().as_deref(), Some("one"));
        assert_eq!(tail.next_line().unwrap(), None);
        log.write_all(b"o\n").unwrap();
        assert_eq!(tail.next_line().unwrap().as_deref(), Some("two"));
        assert_eq!(tail.next_line().unwrap(), None);
    }
}
