//! The last decisions, each with the service's state at its time, for `memlb explain`.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use lb_core::ServiceSnapshot;
use serde::{Deserialize, Serialize};

/// The number of decisions that are kept for each service.
const CAPACITY: usize = 64;

/// The number of backends of a service that are kept with a decision.
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

impl Decision {
    /// Whether a new connection may go to the worker.
    fn selects(&self, worker: Option<&str>) -> bool {
        let mut backends = self.service.backends.iter();
        backends.any(|it| it.share > 0 && worker == Some(it.name.as_str()))
    }
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

    /// Returns the decision of a service that was in force when a connection to `worker` began, at a time in
    /// `begun_ms`; `None` if it is no longer kept. If several decisions were in force then, returns the last one that
    /// selects the worker.
    pub fn at(
        &self,
        service: &str,
        begun_ms: &RangeInclusive<u64>,
        worker: Option<&str>,
    ) -> Option<Decision> {
        let services = self.services();
        let decisions = services.get(service)?.iter().rev();
        let mut before = decisions.skip_while(|it| it.at_ms > *begun_ms.end());
        let last = before.next()?;
        let is_within = |it: &&Decision| it.at_ms > *begun_ms.start();
        let mut possible = vec![last];
        if is_within(&last) {
            for earlier in before {
                possible.push(earlier);
                if !is_within(&earlier) {
                    break;
                }
            }
        }
        let selecting = possible.iter().find(|it| it.selects(worker));
        Some((*selecting.unwrap_or(&last)).clone())
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
        let at = |service, at_ms| history.at(service, &(at_ms..=at_ms), None);
        assert_eq!(at("web", before), None);
        assert_eq!(at("web", now_ms()).unwrap().message, "68");
        assert_eq!(at("other", now_ms()), None);
        assert_eq!(history.services()["web"].len(), CAPACITY);
    }

    /// The programs keep the time of a connection's begin in ticks of 17 ms.
    #[test]
    fn a_connection_that_began_about_the_time_of_a_decision_has_the_one_that_selects_its_worker() {
        let config = Config::example(&Overrides::default(), None).unwrap();
        let now = std::time::Instant::now();
        let core = Core::new(config.settings(&PinnedIds::default()), now);
        let service = core.snapshot(now).services.remove(0);
        let history = History::default();
        for (at_ms, selected) in [(1_000, 0), (2_000, 1), (3_000, 0)] {
            let mut service = service.clone();
            for (place, backend) in service.backends.iter_mut().enumerate() {
                backend.share = if place == selected { 10_000 } else { 0 };
            }
            history.record(at_ms.to_string(), service);
            let mut services = history.services();
            services.get_mut("web").unwrap().back_mut().unwrap().at_ms = at_ms;
        }
        let [one, other] = [0, 1].map(|it| service.backends[it].name.as_str());
        let at = |begun: RangeInclusive<u64>, worker| {
            let decision = history.at("web", &begun, Some(worker));
            decision.map(|it| it.message)
        };
        assert_eq!(at(1_990..=2_010, one).as_deref(), Some("1000"));
        assert_eq!(at(1_990..=2_010, other).as_deref(), Some("2000"));
        assert_eq!(at(2_990..=3_010, one).as_deref(), Some("3000"));
        assert_eq!(at(2_500..=2_510, one).as_deref(), Some("2000"));
        assert_eq!(at(900..=990, one), None);
        assert_eq!(at(900..=1_010, one).as_deref(), Some("1000"));
    }
}
