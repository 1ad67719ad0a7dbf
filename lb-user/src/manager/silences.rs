//! For how long silent workers have been so, kept for the next manager: however often managers are
//! killed, the dead must not get a new life from each.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::Manager;

/// So much of a silence may be forgotten with each kill.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// In milliseconds, of the workers that are late; nobody is most of the time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Silences(BTreeMap<String, u64>);

impl Silences {
    pub fn of_workers(&self) -> BTreeMap<String, Duration> {
        let silences = self.0.iter();
        silences
            .map(|(worker, silent_ms)| (worker.clone(), Duration::from_millis(*silent_ms)))
            .collect()
    }
}

impl Manager {
    /// Writes down who is silent, and that nobody is any more.
    pub(super) fn keep_silences(&mut self) {
        let late = self.core.overdue_workers(Instant::now());
        let in_milliseconds = |(worker, silence): (&str, Duration)| {
            let silence = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
            (worker.to_owned(), silence)
        };
        let silences = Silences(late.map(in_milliseconds).collect());
        if silences != self.silences {
            self.silences_file.keep(silences.clone());
            self.silences = silences;
        }
    }
}
