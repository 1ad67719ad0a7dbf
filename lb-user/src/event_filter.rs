//! The filter of events that an operator requests.

use std::collections::BTreeSet;

use lb_core::{ServiceSnapshot, Severity};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event_stream::EventRecord;

/// The fields of events that name a worker.
const WORKER_FIELDS: [&str; 7] = ["worker", "from", "to", "one", "other", "most", "least"];

/// Selects events; all given criteria must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventFilter {
    /// Events that name this worker.
    pub worker: Option<String>,
    /// Events of this service, and events of its workers that name no service.
    pub service: Option<String>,
    /// Events of this severity or a higher one.
    pub severity: Option<Severity>,
}

/// A filter, with the names of the workers of its service.
#[derive(Debug, Default)]
pub struct EventSelector {
    filter: EventFilter,
    workers: BTreeSet<String>,
}

impl EventSelector {
    pub fn new(filter: EventFilter, services: &[ServiceSnapshot]) -> Self {
        let named = |it: &&ServiceSnapshot| Some(&it.name) == filter.service.as_ref();
        let backends = services.iter().filter(named).flat_map(|it| &it.backends);
        let workers = backends.map(|it| it.name.clone()).collect();
        Self { filter, workers }
    }

    pub fn matches(&self, record: &EventRecord) -> bool {
        let EventFilter {
            worker,
            service,
            severity,
        } = &self.filter;
        let text = |field: &str| record.event.get(field).and_then(Value::as_str);
        let names = |worker: &str| WORKER_FIELDS.iter().any(|it| text(it) == Some(worker));
        let is_of = |service: &str| match text("service") {
            Some(name) => name == service,
            None => text("worker").is_some_and(|worker| self.workers.contains(worker)),
        };
        severity.is_none_or(|it| record.severity >= it)
            && worker.as_deref().is_none_or(names)
            && service.as_deref().is_none_or(is_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_by_worker_service_and_severity() {
        let record = |severity: &str, fields: Value| -> EventRecord {
            let mut all = fields;
            all["id"] = 1.into();
            all["time"] = "t".into();
            all["message"] = "m".into();
            all["severity"] = severity.into();
            serde_json::from_value(all).unwrap()
        };
        let records = [
            record(
                "info",
                serde_json::json!({"event": "worker_up", "worker": "a"}),
            ),
            record(
                "warn",
                serde_json::json!({"event": "worker_down", "worker": "b"}),
            ),
            record(
                "info",
                serde_json::json!({"event": "selection_changed", "service": "web", "from": "b", "to": "a"}),
            ),
            record(
                "warn",
                serde_json::json!({"event": "manager_stalled", "gap_ms": 7}),
            ),
        ];
        let places = |filter: EventFilter, workers: &[&str]| -> Vec<usize> {
            let selector = EventSelector {
                filter,
                workers: workers.iter().map(|it| (*it).to_owned()).collect(),
            };
            let places = (0..records.len()).filter(|it| selector.matches(&records[*it]));
            places.collect()
        };
        assert_eq!(places(EventFilter::default(), &[]), [0, 1, 2, 3]);
        let worker = |name: &str| EventFilter {
            worker: Some(name.to_owned()),
            ..EventFilter::default()
        };
        assert_eq!(places(worker("a"), &[]), [0, 2]);
        assert_eq!(places(worker("b"), &[]), [1, 2]);
        let service = EventFilter {
            service: Some("web".to_owned()),
            ..EventFilter::default()
        };
        assert_eq!(places(service.clone(), &["b"]), [1, 2]);
        let severe = EventFilter {
            severity: Some(Severity::Warn),
            ..service
        };
        assert_eq!(places(severe, &["a", "b"]), [1]);
    }
}
