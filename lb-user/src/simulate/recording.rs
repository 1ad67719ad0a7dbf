//! Reads the workers' own use of memory from the heartbeats of an event log.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::scenario::{BackgroundLoad, WorkerModel};

#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    pub workers: Vec<WorkerModel>,
    pub duration: Duration,
}

/// A line of the event log.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum LoggedEvent {
    Heartbeat {
        time: String,
        worker: String,
        memory_available_bytes: u64,
        memory_total_bytes: Option<u64>,
    },
    #[serde(other)]
    Other,
}

#[derive(Default)]
struct RecordedHeartbeat {
    total_bytes: u64,
    steps: Vec<(SystemTime, u64)>,
}

impl Recording {
    /// Reads the heartbeats of an event log.
    ///
    /// # Errors
    ///
    /// Names the line that is not an event, or says that no heartbeat has a worker's memory.
    pub fn read(log: impl BufRead) -> Result<Self> {
        let mut heard: BTreeMap<String, RecordedHeartbeat> = BTreeMap::new();
        for (number, line) in (1..).zip(log.lines()) {
            let line = line.context("read the event log")?;
            if line.trim().is_empty() {
                continue;
            }
            let event = serde_json::from_str(&line)
                .with_context(|| format!("line {number} is not an event: {line}"))?;
            let LoggedEvent::Heartbeat {
                time,
                worker,
                memory_available_bytes,
                memory_total_bytes: Some(total),
            } = event
            else {
                continue;
            };
            let time = humantime::parse_rfc3339(&time)
                .with_context(|| format!("line {number}: {time:?} is not a time"))?;
            let worker = heard.entry(worker).or_default();
            worker.total_bytes = worker.total_bytes.max(total);
            let used = total.saturating_sub(memory_available_bytes);
            worker.steps.push((time, used));
        }
        let times = || heard.values().flat_map(|it| it.steps.iter().map(|it| it.0));
        let (Some(first), Some(last)) = (times().min(), times().max()) else {
            anyhow::bail!(
                "the event log has no heartbeat with a worker's total memory: expected lines \
                 with \"event\":\"heartbeat\""
            );
        };
        let since = |time: SystemTime| time.duration_since(first).unwrap_or_default();
        let duration = since(last);
        ensure!(!duration.is_zero(), "all heartbeats have the same time");
        let worker = |(name, mut heard): (String, RecordedHeartbeat)| {
            heard.steps.sort();
            let steps = heard.steps.into_iter();
            WorkerModel {
                name,
                total_bytes: heard.total_bytes,
                background: BackgroundLoad::Recorded(
                    steps.map(|(time, used)| (since(time), used)).collect(),
                ),
            }
        };
        Ok(Self {
            workers: heard.into_iter().map(worker).collect(),
            duration,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_workers_used() {
        let log = r#"{"time":"2026-01-01T00:00:10.000Z","event":"manager_started","version":"1"}
{"time":"2026-01-01T00:00:10.000Z","event":"heartbeat","worker":"b","from":"1.2.3.4:5","memory_available_bytes":60,"memory_total_bytes":100,"heartbeats":1}
{"time":"2026-01-01T00:00:11.500Z","event":"heartbeat","worker":"a","memory_available_bytes":10,"memory_total_bytes":50,"heartbeats":10}

{"time":"2026-01-01T00:00:12.000Z","event":"heartbeat","worker":"b","memory_available_bytes":30,"memory_total_bytes":100,"heartbeats":10}"#;
        let recording = Recording::read(log.as_bytes()).unwrap();
        assert_eq!(recording.duration, Duration::from_secs(2));
        let [a, b] = &recording.workers[..] else {
            panic!("{recording:?}");
        };
        assert_eq!((a.name.as_str(), a.total_bytes), ("a", 50));
        let at = |worker: &WorkerModel, ms| worker.background.at(Duration::from_millis(ms));
        assert_eq!([0, 1_600].map(|ms| at(a, ms)), [40, 40]);
        assert_eq!(
            [0, 1_999, 2_000, 9_000].map(|ms| at(b, ms)),
            [40, 40, 70, 70]
        );
    }

    #[test]
    fn reports_what_is_wrong_with_a_log() {
        for (log, expected) in [
            ("", "no heartbeat"),
            ("hello", "line 1 is not an event"),
            (r#"{"event":"manager_stopped"}"#, "no heartbeat"),
        ] {
            let error = Recording::read(log.as_bytes()).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
