//! Publishes each event: in the log, the metrics, the event log, and to listeners.

use lb_core::{Audience, Event, Severity};
use tracing::{info, warn};

use crate::{event_log::EventLog, event_stream::EventStream, metrics::Metrics};

#[derive(Debug)]
pub(super) struct Emitter {
    pub event_log: EventLog,
    pub event_stream: EventStream,
    pub metrics: Metrics,
}

impl Emitter {
    pub fn emit(&self, event: &Event) {
        // In systemd's journal, the entry also has the event's fields.
        match event.severity() {
            Severity::Info => info!(event = fields(event), "{event}"),
            Severity::Warn => warn!(event = fields(event), "{event}"),
        }
        self.metrics.count(event);
        self.event_log.append(event);
        if event.audience() == Audience::Everyone {
            self.event_stream.publish(event);
        }
    }
}

/// Returns an event as JSON, for the field `event` of a log entry.
fn fields(event: &Event) -> String {
    serde_json::to_string(event).unwrap_or_default()
}
