//! The event log: one JSON object a line, bounded in size, written by a thread of its own.
//!
//! Appending never waits for the disk: lines wait in a bounded queue, and lines without room in it are counted.

mod file;
mod line;
mod queue;

use std::{path::Path, sync::Arc, thread};

use anyhow::{Context, Result};
use tracing::warn;

pub use file::LogFile;
use queue::Queue;

use lb_core::{Event, counted};

/// Appends events to a file, if there is one.
#[derive(Debug)]
pub struct EventLog {
    queue: Option<Arc<Queue>>,
}

impl EventLog {
    /// Starts with an open file, or none.
    ///
    /// # Errors
    ///
    /// Says why the thread cannot be started.
    pub fn start(file: Option<LogFile>) -> Result<Self> {
        let mut log = Self { queue: None };
        log.move_to(file)?;
        Ok(log)
    }

    /// Continues in another file, or none. Waiting lines are still written to the former file, or to the new
    /// one if that fails.
    ///
    /// # Errors
    ///
    /// Says why the thread cannot be started; nothing has changed then.
    pub fn move_to(&mut self, file: Option<LogFile>) -> Result<()> {
        let before = self.queue.clone();
        let Some(file) = file else {
            if let Some(before) = before {
                before.close();
            }
            self.queue = None;
            return Ok(());
        };
        let queue = Arc::new(Queue::default());
        let writers = queue.clone();
        thread::Builder::new()
            .name("event-log".to_owned())
            .spawn(move || queue::write(&writers, file, before.as_deref()))
            .context("start a thread for the event log")?;
        self.queue = Some(queue);
        Ok(())
    }

    pub fn append(&self, event: &Event) {
        let Some(queue) = &self.queue else {
            return;
        };
        match line::encode(event) {
            Ok(line) => queue.push(line),
            Err(error) => warn!("encode an event: {error}"),
        }
    }

    /// Waits until everything is written, with a timeout.
    pub fn shut_down(self) {
        let Some(queue) = self.queue else {
            return;
        };
        match queue.drain().len() {
            0 => {}
            left => warn!(
                "the event log cannot be written; lost at its end: {}",
                counted(left, "event")
            ),
        }
    }
}

/// Opens the file at `path` and creates its directory if necessary; it may block.
///
/// # Errors
///
/// Says why the file cannot be opened, with the remedy.
pub fn open(path: &Path) -> Result<LogFile> {
    LogFile::open(path).with_context(|| {
        format!(
            "open the event log {}; choose another with --event-log, or none with --event-log \"\"",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, OpenOptions},
        io::{BufRead, BufReader},
        os::unix::fs::OpenOptionsExt,
    };

    use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};

    use super::{queue::MAX_WAITING, *};

    fn event(count: usize) -> Event {
        let gap_ms = count as u64;
        Event::ManagerStalled { gap_ms }
    }

    fn start(path: &Path) -> EventLog {
        EventLog::start(Some(open(path).unwrap())).unwrap()
    }

    fn events(lines: impl BufRead) -> Vec<serde_json::Value> {
        lines
            .lines()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect()
    }

    #[test]
    fn appends_one_object_a_line_with_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/events.jsonl");
        let log = start(&path);
        log.append(&event(1));
        log.append(&event(2));
        log.shut_down();
        let lines = events(BufReader::new(File::open(&path).unwrap()));
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["event"], "manager_stalled");
        assert_eq!(lines[1]["gap_ms"], 2);
        assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn moves_to_another_file_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let mut log = start(Path::new("/dev/full"));
        log.append(&event(1));
        log.move_to(Some(open(&path("first")).unwrap())).unwrap();
        log.append(&event(2));
        log.move_to(Some(open(&path("second")).unwrap())).unwrap();
        log.append(&event(3));
        log.shut_down();
        let first = fs::read_to_string(path("first")).unwrap();
        assert!(first.contains("\"gap_ms\":1") && first.contains("\"gap_ms\":2"));
        let second = fs::read_to_string(path("second")).unwrap();
        assert!(second.contains("\"gap_ms\":3") && second.lines().count() == 1);
    }

    #[test]
    fn lost_events_are_counted_in_their_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut reader = OpenOptions::new();
        reader.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let reader = reader.open(&path).unwrap();
        let log = start(&path);
        // A pipe holds 64 KiB, by far not all of these.
        let (total, mut read) = (MAX_WAITING + 5_000, Vec::new());
        for count in 0..total {
            log.append(&event(count));
        }
        let reading = thread::spawn(move || {
            let again = OpenOptions::new().read(true).open(&path).unwrap();
            drop(reader);
            events(BufReader::new(again))
        });
        log.shut_down();
        read.extend(reading.join().unwrap());
        let lost = read.pop().unwrap();
        assert_eq!(lost["event"], "events_lost");
        assert_eq!(read.len() + lost["count"].as_u64().unwrap() as usize, total);
        assert!(read.len() >= MAX_WAITING, "{}", read.len());
        let counts = read.iter().map(|it| it["gap_ms"].as_u64());
        assert!(counts.eq((0..read.len() as u64).map(Some)));
    }

    #[test]
    fn ends_in_time_when_the_file_cannot_be_written() {
        let log = start(Path::new("/dev/full"));
        log.append(&event(1));
        let queue = log.queue.clone().unwrap();
        log.shut_down();
        assert!(queue.is_ended());
    }
}
