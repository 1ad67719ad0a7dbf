//! The event log: one JSON object a line, bounded in size.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde::Serialize;
use tracing::{info, warn};

use crate::{core::Severity, feed::Feed};

/// How many lines are kept while the file cannot be written.
const MOST_WAITING: usize = 10_000;

/// A file grown to this size is renamed to `NAME.1`, replacing the one before.
const ROTATE_AT_BYTES: u64 = 16 * 1024 * 1024;

/// Appends events to a file, if there is one, and sends those that are news to the feed.
///
/// A write that fails is said once, and the next event tries again, with all that are waiting: a full
/// disk must not stop the manager, nor make holes in its story.
#[derive(Debug)]
pub struct EventLog {
    path: Option<PathBuf>,
    file: Option<File>,
    bytes: u64,
    failing: bool,
    /// Lines that could not be written yet, and how many were dropped for lack of room.
    waiting: VecDeque<Vec<u8>>,
    lost: u64,
    feed: Feed,
}

#[derive(Serialize)]
struct Line<'a, E> {
    time: String,
    #[serde(flatten)]
    event: &'a E,
}

impl EventLog {
    /// Opens the log, making its directory if need be.
    ///
    /// # Errors
    ///
    /// Says why the file cannot be appended to.
    pub fn open(path: Option<&Path>, feed: Feed) -> Result<Self> {
        let mut log = Self {
            path: path.map(Path::to_owned),
            file: None,
            bytes: 0,
            failing: false,
            waiting: VecDeque::new(),
            lost: 0,
            feed,
        };
        if let Some(path) = path {
            log.reopen().with_context(|| {
                format!(
                    "open the event log {}; choose another with --event-log, or none with \
                     --event-log \"\"",
                    path.display()
                )
            })?;
        }
        Ok(log)
    }

    /// Opens the log at `path` with the same listeners; also where it is already, should somebody
    /// have moved the file away.
    ///
    /// # Errors
    ///
    /// Says why the file cannot be appended to.
    pub fn elsewhere(&self, path: Option<&Path>) -> Result<Self> {
        Self::open(path, self.feed.clone())
    }

    /// Appends `event` and sends it, with a sentence about it, to who listens.
    pub fn publish<E: Serialize>(&mut self, severity: Severity, message: String, event: &E) {
        self.append(event);
        self.feed.publish(severity, message, event);
    }

    /// Appends `event`, whose serialised form names its kind in `event`.
    pub fn append<E: Serialize>(&mut self, event: &E) {
        if self.path.is_none() {
            return;
        }
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        match serde_json::to_vec(&Line { time, event }) {
            Ok(mut line) => {
                line.push(b'\n');
                self.waiting.push_back(line);
            }
            Err(error) => return warn!("encode an event: {error}"),
        }
        if self.waiting.len() > MOST_WAITING {
            self.waiting.pop_front();
            self.lost += 1;
        }
        match (self.write_waiting(), self.failing) {
            (Ok(()), true) => {
                self.failing = false;
                let lost = std::mem::take(&mut self.lost);
                info!("the event log can be written again; {lost} events are lost");
            }
            (Err(error), false) => {
                self.failing = true;
                warn!(
                    "the event log cannot be written: {error:#}; the next {MOST_WAITING} events are \
                     kept for it"
                );
            }
            (Ok(()), false) | (Err(_), true) => {}
        }
    }

    fn write_waiting(&mut self) -> Result<()> {
        while let Some(line) = self.waiting.pop_front() {
            if let Err(error) = self.write(&line) {
                self.waiting.push_front(line);
                return Err(error);
            }
        }
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> Result<()> {
        if self.bytes >= ROTATE_AT_BYTES {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let file = self.file.as_mut().context("no file")?;
        if let Err(error) = file.write_all(line) {
            // Half a line would spoil the next. A file that cannot be cut short is no regular one.
            _ = file.set_len(self.bytes);
            self.file = None;
            return Err(error.into());
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        if let Some(path) = &self.path {
            let mut old = path.clone().into_os_string();
            old.push(".1");
            self.file = None;
            fs::rename(path, &old).with_context(|| format!("rename {}", path.display()))?;
        }
        self.reopen().context("begin a new file")
    }

    fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    #[serde(tag = "event", rename_all = "snake_case")]
    enum Sample {
        Happened { count: u32 },
    }

    #[test]
    fn appends_one_object_a_line_with_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/events.jsonl");
        let mut log = EventLog::open(Some(&path), Feed::default()).unwrap();
        log.append(&Sample::Happened { count: 1 });
        log.append(&Sample::Happened { count: 2 });
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["event"], "happened");
        assert_eq!(lines[1]["count"], 2);
        assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_full_log_moves_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut log = EventLog::open(Some(&path), Feed::default()).unwrap();
        log.append(&Sample::Happened { count: 1 });
        log.bytes = ROTATE_AT_BYTES;
        log.append(&Sample::Happened { count: 2 });
        let old = fs::read_to_string(directory.path().join("events.jsonl.1")).unwrap();
        assert!(old.contains("\"count\":1"));
        let new = fs::read_to_string(&path).unwrap();
        assert!(new.contains("\"count\":2") && new.lines().count() == 1);
    }

    #[test]
    fn carries_on_when_the_file_cannot_be_written() {
        let mut log = EventLog::open(Some(Path::new("/dev/full")), Feed::default()).unwrap();
        log.append(&Sample::Happened { count: 1 });
        assert!(log.failing);
        log.append(&Sample::Happened { count: 2 });
    }
}
