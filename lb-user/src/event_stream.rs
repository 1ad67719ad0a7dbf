//! The stream of events: the last ones from memory, then new ones as they happen.
//!
//! Publishing never blocks. A listener that is too slow loses the oldest events, and receives their number.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use lb_core::{Event, Severity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::broadcast;
use tracing::warn;

/// The number of events that are kept for later listeners.
pub const CAPACITY: usize = 256;

/// The number of events that a listener may lag behind before it loses some.
const BACKLOG: usize = 64;

/// An event with its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventRecord {
    /// Increases with each event, also over restarts of the manager.
    pub id: u64,
    /// By the manager's clock, RFC 3339.
    pub time: String,
    pub severity: Severity,
    /// One sentence.
    pub message: String,
    /// The kind in `event`, and the fields of the kind, as in the event log.
    #[serde(flatten)]
    pub event: Map<String, Value>,
}

/// Clones share the events.
#[derive(Debug, Clone)]
pub struct EventStream(Arc<SharedEvents>);

#[derive(Debug)]
struct SharedEvents {
    recent: Mutex<Recent>,
    sender: broadcast::Sender<Arc<EventRecord>>,
}

#[derive(Debug)]
struct Recent {
    first_id: u64,
    next_id: u64,
    entries: VecDeque<Arc<EventRecord>>,
}

/// The events for one listener: past ones, then new ones.
#[derive(Debug)]
pub struct Subscription {
    /// The number of events after the requested one that are no longer kept.
    pub lost: u64,
    pub past: Vec<Arc<EventRecord>>,
    pub live: broadcast::Receiver<Arc<EventRecord>>,
}

impl Default for EventStream {
    fn default() -> Self {
        // The milliseconds since 1970 exceed every id of an earlier manager, unless it had a thousand events a second.
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let first_id = since_1970.map_or(1, |time| u64::try_from(time.as_millis()).unwrap_or(1));
        Self(Arc::new(SharedEvents {
            recent: Mutex::new(Recent {
                first_id,
                next_id: first_id,
                entries: VecDeque::with_capacity(CAPACITY),
            }),
            sender: broadcast::channel(BACKLOG).0,
        }))
    }
}

impl EventStream {
    /// Adds an event, and sends it to all listeners.
    pub fn publish(&self, event: &Event) {
        let (severity, message) = (event.severity(), event.to_string());
        let event = match serde_json::to_value(event) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => return warn!("an event is not a JSON object: {other}"),
            Err(error) => return warn!("encode an event: {error}"),
        };
        let mut recent = self.recent();
        let entry = Arc::new(EventRecord {
            id: recent.next_id,
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            severity,
            message,
            event,
        });
        recent.next_id += 1;
        if recent.entries.len() == CAPACITY {
            recent.entries.pop_front();
        }
        recent.entries.push_back(entry.clone());
        // Sent under the lock, so that a new listener gets each entry exactly once. Sending fails only without
        // listeners.
        _ = self.0.sender.send(entry);
    }

    /// Returns the kept events later than `id`, at most the last `limit` of them.
    pub fn after(&self, id: u64, limit: usize) -> Vec<Arc<EventRecord>> {
        let later = self.recent().after(id);
        let first = later.len().saturating_sub(limit);
        later[first..].to_vec()
    }

    /// Subscribes, beginning with the kept events after the one with `id`, if given.
    pub fn subscribe(&self, id: Option<u64>) -> Subscription {
        let recent = self.recent();
        let past = id.map_or_else(Vec::new, |id| recent.after(id));
        let lost = match (id, past.first()) {
            (Some(id), Some(first)) => first.id - recent.first_id.max(id.saturating_add(1)),
            _ => 0,
        };
        Subscription {
            lost,
            past,
            live: self.0.sender.subscribe(),
        }
    }

    /// Never held over an `await`.
    fn recent(&self) -> MutexGuard<'_, Recent> {
        let locked = self.0.recent.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn after(&self, id: u64) -> Vec<Arc<EventRecord>> {
        let first = self.entries.partition_point(|entry| entry.id <= id);
        self.entries.range(first..).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(stream: &EventStream, counts: std::ops::Range<usize>) {
        for count in counts {
            let gap_ms = count as u64;
            stream.publish(&Event::ManagerStalled { gap_ms });
        }
    }

    fn counts(entries: &[Arc<EventRecord>]) -> Vec<u64> {
        let counts = entries.iter().map(|entry| entry.event["gap_ms"].as_u64());
        counts.map(Option::unwrap_or_default).collect()
    }

    #[test]
    fn an_entry_is_one_object_with_the_events_own_fields() {
        let stream = EventStream::default();
        publish(&stream, 3..4);
        let json = serde_json::to_value(&*stream.after(0, 10)[0]).unwrap();
        assert_eq!(json["event"], "manager_stalled");
        assert_eq!(json["gap_ms"], 3);
        assert_eq!(json["severity"], "warn");
        let message = json["message"].as_str().unwrap();
        assert!(message.contains("3 ms"), "{message}");
        assert!(json["id"].as_u64() > Some(1_500_000_000_000));
        assert!(json["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn keeps_the_last_events_for_later_subscribers() {
        let stream = EventStream::default();
        publish(&stream, 0..CAPACITY + 10);
        let kept = stream.after(0, usize::MAX);
        assert_eq!(kept.len(), CAPACITY);
        assert_eq!(counts(&stream.after(0, 2)), [264, 265]);
        assert_eq!(counts(&stream.after(kept[CAPACITY - 2].id, 9)), [265]);
        assert_eq!(counts(&stream.after(u64::MAX, 9)), [0; 0]);
    }

    #[test]
    fn a_listener_that_reconnects_gets_the_missed_events_or_their_number() {
        let stream = EventStream::default();
        publish(&stream, 0..1);
        let seen = stream.after(0, 1)[0].id;
        publish(&stream, 1..4);
        let back = stream.subscribe(Some(seen));
        assert_eq!((back.lost, counts(&back.past)), (0, vec![1, 2, 3]));
        publish(&stream, 4..CAPACITY + 6);
        let late = stream.subscribe(Some(seen));
        assert_eq!((late.lost, late.past.len()), (5, CAPACITY));
        // An id of an earlier manager: all of this one's events were past.
        assert_eq!(stream.subscribe(Some(17)).lost, 6);
        let newcomer = stream.subscribe(None);
        assert_eq!((newcomer.lost, newcomer.past.len()), (0, 0));
    }

    #[test]
    fn a_slow_listener_loses_the_oldest_and_blocks_no_other() {
        let stream = EventStream::default();
        let mut slow = stream.subscribe(None).live;
        publish(&stream, 0..BACKLOG + 36);
        assert!(matches!(
            slow.try_recv(),
            Err(broadcast::error::TryRecvError::Lagged(36))
        ));
        assert_eq!(slow.try_recv().unwrap().event["gap_ms"], 36);
    }
}
