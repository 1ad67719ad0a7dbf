//! `/api/v1`: the state as JSON; described by `/api/v1/openapi.json`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::PathRejection, rejection::QueryRejection},
    http::StatusCode,
    routing::get,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    MAX_AGE, Shared,
    error::Error,
    events,
    timeline::{Range, Timeline},
};
use crate::{
    event_stream::{CAPACITY, EventRecord},
    status::{Backend, Status},
};
use lb_core::ServiceSnapshot;

/// A service with its backends and their traffic.
pub type Service = ServiceSnapshot<Backend>;

#[derive(Debug, Serialize, JsonSchema)]
pub struct Services {
    pub services: Vec<Service>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Events {
    /// The oldest first.
    pub events: Vec<Arc<EventRecord>>,
}

#[derive(Debug, Deserialize)]
struct EventQuery {
    after: Option<u64>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct TimelineQuery {
    #[serde(default)]
    range: Range,
    service: Option<String>,
}

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/status", get(status))
        .route("/services", get(services))
        .route("/services/{service}", get(service))
        .route("/timeline", get(timeline))
        .route("/events", get(events))
        .route(events::ROUTE, get(events::stream))
}

async fn status(State(shared): State<Shared>) -> Result<Json<Status>, Error> {
    Ok(Json(shared.manager.status(MAX_AGE).await?))
}

async fn services(State(shared): State<Shared>) -> Result<Json<Services>, Error> {
    let Status { services, .. } = shared.manager.status(MAX_AGE).await?;
    Ok(Json(Services { services }))
}

async fn service(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Service>, Error> {
    let unknown = |name: &str| {
        Error::new(
            StatusCode::NOT_FOUND,
            format!("there is no service {name:?}; /api/v1/services lists them"),
        )
    };
    let Path(name) = name.map_err(|_| unknown("of unreadable name"))?;
    let mut services = shared.manager.status(MAX_AGE).await?.services.into_iter();
    let found = services.find(|service| service.name == name);
    found.map(Json).ok_or_else(|| unknown(&name))
}

async fn timeline(
    State(shared): State<Shared>,
    query: Result<Query<TimelineQuery>, QueryRejection>,
) -> Result<Json<Timeline>, Error> {
    let Query(TimelineQuery { range, service }) = query.map_err(|_| {
        let why = "range must be 10m, 1h or 24h, and service a name, as in ?range=1h&service=web";
        Error::new(StatusCode::BAD_REQUEST, why)
    })?;
    Ok(Json(shared.recorder.timeline(range, service.as_deref())))
}

async fn events(
    State(shared): State<Shared>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Json<Events>, Error> {
    let refuse = |why: String| Error::new(StatusCode::BAD_REQUEST, why);
    let numbers = "after and limit must be whole numbers, as in ?after=42&limit=10";
    let Query(EventQuery { after, limit }) = query.map_err(|_| refuse(numbers.to_owned()))?;
    let limit = limit.unwrap_or(CAPACITY);
    if !(1..=CAPACITY).contains(&limit) {
        return Err(refuse(format!("limit must be from 1 to {CAPACITY}")));
    }
    let found = shared
        .manager
        .event_stream()
        .after(after.unwrap_or(0), limit);
    Ok(Json(Events { events: found }))
}
