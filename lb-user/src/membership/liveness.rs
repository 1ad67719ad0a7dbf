//! How long late workers have been silent. The manager saves it, so that a restarted manager does not wait `down_after`
//! again for a dead worker.

use std::{collections::BTreeMap, time::Duration};

use lb_core::milliseconds;
use serde::{Deserialize, Serialize};

/// The time since the last heartbeat of each late worker, in milliseconds. Usually empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LivenessRecord(BTreeMap<String, u64>);

impl LivenessRecord {
    pub fn new<'a>(late: impl Iterator<Item = (&'a str, Duration)>) -> Self {
        Self(
            late.map(|(worker, silence)| (worker.to_owned(), milliseconds(silence)))
                .collect(),
        )
    }

    /// The time since the last heartbeat, by worker.
    pub fn silent_for(&self) -> BTreeMap<String, Duration> {
        self.0
            .iter()
            .map(|(worker, silent_ms)| (worker.clone(), Duration::from_millis(*silent_ms)))
            .collect()
    }
}
