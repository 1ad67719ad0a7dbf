//! The ejections of failing backends. The manager saves them, so that a restarted manager gives a dead server no new
//! connection.

use std::{collections::BTreeMap, time::Duration};

use lb_core::{AdoptedEjection, BackendId, Evidence, milliseconds};
use serde::{Deserialize, Serialize};

/// The ejection of each failing backend; empty most of the time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EjectionRecord(BTreeMap<BackendId, SavedEjection>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SavedEjection {
    refused: u64,
    unanswered: u64,
    within_ms: u64,
    /// Milliseconds since 1970.
    since_ms: u64,
    trials: u32,
    failures: u32,
}

impl EjectionRecord {
    /// `now_ms` is the time since 1970. An ejection that `former` has keeps its beginning.
    pub fn new(
        ejections: impl Iterator<Item = (BackendId, AdoptedEjection)>,
        former: &Self,
        now_ms: u64,
    ) -> Self {
        let saved = |(id, ejection): (BackendId, AdoptedEjection)| {
            let since_ms = now_ms.saturating_sub(milliseconds(ejection.age));
            let known = former.0.get(&id).map(|it| it.since_ms);
            let known = known.filter(|known| known.abs_diff(since_ms) < 1_000);
            let saved = SavedEjection {
                refused: ejection.evidence.refused,
                unanswered: ejection.evidence.unanswered,
                within_ms: milliseconds(ejection.evidence.within),
                since_ms: known.unwrap_or(since_ms),
                trials: ejection.trials,
                failures: ejection.failures,
            };
            (id, saved)
        };
        Self(ejections.map(saved).collect())
    }

    pub fn ejections(&self, now_ms: u64) -> BTreeMap<BackendId, AdoptedEjection> {
        let adopted = |(id, saved): (&BackendId, &SavedEjection)| {
            let ejection = AdoptedEjection {
                evidence: Evidence {
                    refused: saved.refused,
                    unanswered: saved.unanswered,
                    within: Duration::from_millis(saved.within_ms),
                },
                age: Duration::from_millis(now_ms.saturating_sub(saved.since_ms)),
                trials: saved.trials,
                failures: saved.failures,
            };
            (*id, ejection)
        };
        self.0.iter().map(adopted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_ejection_keeps_its_beginning() {
        let ejection = |age| AdoptedEjection {
            evidence: Evidence {
                refused: 3,
                unanswered: 1,
                within: Duration::from_millis(200),
            },
            age: Duration::from_millis(age),
            trials: 2,
            failures: 3,
        };
        let record = |age, former: &EjectionRecord, now_ms| {
            EjectionRecord::new([(BackendId(7), ejection(age))].into_iter(), former, now_ms)
        };
        let first = record(100, &EjectionRecord::default(), 10_000);
        // The two clocks differ by a millisecond.
        assert_eq!(record(5_101, &first, 15_000), first);
        let read: EjectionRecord =
            serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
        let adopted = read.ejections(20_000);
        assert_eq!(adopted, [(BackendId(7), ejection(10_100))].into());
    }
}
