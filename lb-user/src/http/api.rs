//! `/api/v1`: the state as JSON. `/api/v1/openapi.json` describes it.

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
    error::HttpError,
    events,
    state::{HttpState, MAX_AGE},
    timeline::{Range, Timeline},
};
use crate::{
    event_stream::{CAPACITY, EventRecord},
    status::{ServiceStatus, Status},
};

#[derive(Debug, Serialize, JsonSchema)]
pub struct Services {
    pub services: Vec<ServiceStatus>,
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

pub fn router() -> Router<HttpState> {
    Router::new()
        .route("/status", get(status))
        .route("/services", get(services))
        .route("/services/{service}", get(service))
        .route("/timeline", get(timeline))
        .route("/events", get(events))
        .route(events::ROUTE, get(events::stream))
}

async fn status(State(shared): State<HttpState>) -> Result<Json<Status>, HttpError> {
    Ok(Json(shared.manager.status(MAX_AGE).await?))
}

async fn services(State(shared): State<HttpState>) -> Result<Json<Services>, HttpError> {
    let Status { services, .. } = shared.manager.status(MAX_AGE).await?;
    Ok(Json(Services { services }))
}

async fn service(
    State(shared): State<HttpState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ServiceStatus>, HttpError> {
    let unknown = |name: &str| {
        HttpError::new(
            StatusCode::NOT_FOUND,
            format!("there is no service {name}; /api/v1/services lists them"),
        )
    };
    let Path(name) = name.map_err(|_| unknown("with a name that is not UTF-8"))?;
    let mut services = shared.manager.status(MAX_AGE).await?.services.into_iter();
    let found = services.find(|service| service.name == name);
    found.map(Json).ok_or_else(|| unknown(&format!("{name:?}")))
}

async fn timeline(
    State(shared): State<HttpState>,
    query: Result<Query<TimelineQuery>, QueryRejection>,
) -> Result<Json<Timeline>, HttpError> {
    let Query(TimelineQuery { range, service }) = query.map_err(|_| {
        let why = "range must be 10m, 1h or 24h, and service a name, as in ?range=1h&service=web";
        HttpError::new(StatusCode::BAD_REQUEST, why)
    })?;
    Ok(Json(shared.recorder.timeline(range, service.as_deref())))
}

async fn events(
    State(shared): State<HttpState>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Json<Events>, HttpError> {
    let refuse = |why: &str| HttpError::new(StatusCode::BAD_REQUEST, why);
    let numbers = "after and limit must be whole numbers, as in ?after=42&limit=10";
    let Query(EventQuery { after, limit }) = query.map_err(|_| refuse(numbers))?;
    let limit = limit.unwrap_or(CAPACITY);
    if !(1..=CAPACITY).contains(&limit) {
        return Err(refuse(&format!("limit must be from 1 to {CAPACITY}")));
    }
    let events = shared.manager.event_stream();
    let events = events.after(after.unwrap_or(0), limit);
    Ok(Json(Events { events }))
}
