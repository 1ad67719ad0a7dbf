//! The event stream over HTTP: Server-Sent Events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, broadcast::error::RecvError};

use super::{error::HttpError, state::HttpState};
use crate::event_stream::{EventRecord, Subscription};

/// The path below `/api/v1`.
pub const ROUTE: &str = "/events/stream";

/// The maximum number of listeners; fewer than the connection slots, so that some are left for other requests.
pub const MAX_LISTENERS: usize = 32;

/// The interval of keep-alive comments, by which either side notices a broken connection.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize)]
pub struct StreamQuery {
    /// The id of the last event that the client has.
    after: Option<u64>,
}

/// Sends each event as it happens. A client that connects again names the last event that it has.
pub async fn stream(
    State(shared): State<HttpState>,
    query: Result<Query<StreamQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, HttpError> {
    let Query(StreamQuery { after }) = query.map_err(|_| {
        let number = "after must be a whole number, as in ?after=42";
        HttpError::new(StatusCode::BAD_REQUEST, number)
    })?;
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let permit = shared.listeners.try_acquire_owned().map_err(|_| {
        HttpError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the server has {MAX_LISTENERS} listeners, which is the maximum"),
        )
    })?;
    let subscription = shared.manager.event_stream().subscribe(last.or(after));
    let listener = Listener::new(subscription, permit);
    let events = stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok(event), listener))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Listener {
    greeted: bool,
    lost: u64,
    past: std::vec::IntoIter<Arc<EventRecord>>,
    live: tokio::sync::broadcast::Receiver<Arc<EventRecord>>,
    /// Released with the connection.
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    fn new(subscription: Subscription, permit: OwnedSemaphorePermit) -> Self {
        Self {
            greeted: false,
            lost: subscription.lost,
            past: subscription.past.into_iter(),
            live: subscription.live,
            _permit: permit,
        }
    }

    /// Returns the next event; `None` when the manager ends.
    async fn next(&mut self) -> Option<Event> {
        if !self.greeted {
            self.greeted = true;
            // A proxy may report the connection to the client only with the first data.
            return Some(Event::default().comment("listening"));
        }
        if self.lost > 0 {
            return Some(lost(std::mem::take(&mut self.lost)));
        }
        if let Some(entry) = self.past.next() {
            return Some(encode(&entry));
        }
        match self.live.recv().await {
            Ok(entry) => Some(encode(&entry)),
            Err(RecvError::Lagged(events)) => Some(lost(events)),
            Err(RecvError::Closed) => None,
        }
    }
}

fn encode(entry: &EventRecord) -> Event {
    let event = Event::default().id(entry.id.to_string());
    // Encoding cannot fail: keys are strings, and values are JSON.
    event.json_data(entry).unwrap_or_else(|_| lost(1))
}

/// The event in place of those that were lost because the client was too slow.
fn lost(events: u64) -> Event {
    let data = json!({ "events": events }).to_string();
    Event::default().event("lost").data(data)
}
