//! Publishes events: to the log, the event log, listeners, metrics and the history of decisions.

use std::time::Instant;

use serde::Serialize;
use tracing::{info, warn};

use super::Happening;
use crate::{event_log::EventLog, history::History, metrics::Metrics};
use lb_core::{Core, Event, Severity};

#[derive(Debug)]
pub(super) struct Emitter {
    pub log: EventLog,
    pub history: History,
    pub metrics: Metrics,
}

impl Emitter {
    /// Publishes an event of the core, and records the decision if it is one.
    pub fn emit_core(&self, event: &Event, core: &Core) {
        self.metrics.count(event);
        let service = event
            .decided()
            .and_then(|name| core.snapshot_of(name, Instant::now()));
        if let Some(service) = service {
            self.history.record(event.to_string(), service);
        }
        self.emit(event.severity(), event.to_string(), event);
    }

    pub fn emit<E: Serialize>(&self, severity: Severity, message: String, event: &E) {
        match severity {
            Severity::Info => info!("{message}"),
            Severity::Warn => warn!("{message}"),
        }
        self.log.publish(severity, message, event);
    }

    /// Logs the end of the manager and waits for the event log.
    pub fn finish(self) {
        self.log.append(&Happening::ManagerStopped);
        self.log.finish();
    }
}
