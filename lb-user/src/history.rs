//! The last decisions, each with the state at that time, for `memlb explain`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use lb_core::ServiceSnapshot;
use serde::{Deserialize, Serialize};

/// How many decisions are kept for each service.
const CAPACITY: usize = 64;

/// How many backends of a service are kept with a decision.
const MAX_BACKENDS: usize = 32;

/// One decision of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Milliseconds since 1970 by the manager's clock.
    pub at_ms: u64,
    pub message: String,
    /// The service as it was then, with its workers' states, memory, ages and weights.
    pub service: ServiceSnapshot,
}

/// Clones share the decisions.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<BTreeMap<String, VecDeque<Decision>>>>);

impl History {
    pub fn record(&self, message: String, mut service: ServiceSnapshot) {
        service.backends.truncate(MAX_BACKENDS);
        let mut services = self.services();
        let decisions = services.entry(service.name.clone()).or_default();
        if decisions.len() == CAPACITY {
            decisions.pop_front();
        }
        decisions.push_back(Decision {
            at_ms: now_ms(),
            message,
            service,
        });
    }

    /// Returns the decision of a service that was in force at a time, if it is still kept.
    pub fn at(&self, service: &str, at_ms: u64) -> Option<Decision> {
        let services = self.services();
        let decisions = services.get(service)?.iter().rev();
        let mut before = decisions.filter(|it| it.at_ms <= at_ms);
        before.next().cloned()
    }

    /// Never held over an `await`.
    fn services(&self) -> MutexGuard<'_, BTreeMap<String, VecDeque<Decision>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the time in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides, PinnedIds};
    use lb_core::Core;

    #[test]
    fn finds_the_decision_that_was_in_force() {
        let config = Config::example(&Overrides::default(), None).unwrap();
        let now = std::time::Instant::now();
        let core = Core::new(config.settings(&PinnedIds::default()), now);
        let service = core.snapshot(now).services.remove(0);
        let history = History::default();
        let before = now_ms() - 1;
        for number in 0..CAPACITY + 5 {
            history.record(number.to_string(), service.clone());
        }
        assert_eq!(history.at("web", before), None);
        assert_eq!(history.at("web", now_ms()).unwrap().message, "68");
        assert_eq!(history.at("other", now_ms()), None);
        assert_eq!(history.services()["web"].len(), CAPACITY);
    }
}
