//! `/healthz`, `/readyz` and `/syncz`, for keepalived and orchestrators.

use std::time::Duration;

use axum::{
    Router,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};

use super::state::HttpState;
use crate::{
    peer::{PeerState, PeerStatus},
    peer_report::not_received,
    status::{InterfaceStatus, ManagerSnapshot},
};
use lb_core::Rule;

const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";
const SYNCZ: &str = "/syncz";

/// The time that a peer has to answer for the first time. Until then, this manager is incomplete.
const FIRST_CONTACT: Duration = Duration::from_secs(3);

/// The routes of health checks.
pub fn router() -> Router<HttpState> {
    Router::new()
        .route(HEALTHZ, get(healthz))
        .route(READYZ, get(readyz))
        .route(SYNCZ, get(syncz))
}

/// Whether this is the path of a health check.
pub fn is_probe(path: &str) -> bool {
    matches!(path, HEALTHZ | READYZ | SYNCZ)
}

/// Reports whether the manager's loop runs.
async fn healthz(State(shared): State<HttpState>) -> Response {
    match shared.manager.snapshot().await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => unavailable(&format!("{error:#}")),
    }
}

/// Reports whether the programs are attached, and every service has had a heartbeat or has adopted a selection.
async fn readyz(State(shared): State<HttpState>) -> Response {
    match shared.manager.snapshot().await {
        Ok(snapshot) => match not_ready_reason(&snapshot) {
            None => ready_text(&snapshot).into_response(),
            Some(reason) => unavailable(&reason),
        },
        Err(error) => unavailable(&format!("{error:#}")),
    }
}

/// Reports whether this manager knows all connections of its peers, and so can take over. `/syncz?weight` answers `0`
/// or `-1`, the content of keepalived's track_file.
async fn syncz(State(shared): State<HttpState>, RawQuery(query): RawQuery) -> Response {
    let peers = shared.manager.peers();
    let incomplete: Vec<String> = peers.iter().filter_map(incomplete).collect();
    match (query.as_deref(), incomplete.is_empty()) {
        (Some("weight"), true) => "0\n".into_response(),
        (Some("weight"), false) => "-1\n".into_response(),
        (_, true) => complete_text(&peers).into_response(),
        (_, false) => unavailable(&format!("incomplete: {}", incomplete.join("; "))),
    }
}

/// Says what this manager lacks from a reachable peer. An unreachable peer cannot send anything more.
fn incomplete(peer: &PeerStatus) -> Option<String> {
    let name = &peer.name;
    let was_never_reached = peer.version.is_empty();
    match peer.state {
        PeerState::Connected => not_received(peer),
        PeerState::Refused => {
            let reason = peer
                .reason
                .as_deref()
                .unwrap_or("no common key or protocol");
            Some(format!("no session with {name}: {reason}"))
        }
        PeerState::Connecting => (was_never_reached
            && Duration::from_millis(peer.state_since_ms) < FIRST_CONTACT)
            .then(|| format!("connecting to {name}")),
    }
}

fn complete_text(peers: &[PeerStatus]) -> String {
    let unreachable = peers.iter().filter(|it| it.state != PeerState::Connected);
    let unreachable: Vec<&str> = unreachable.map(|it| it.name.as_str()).collect();
    match (peers.is_empty(), unreachable.is_empty()) {
        (true, _) => "complete: no peer is configured\n".to_owned(),
        (false, true) => "complete\n".to_owned(),
        (false, false) => format!("complete; unreachable: {}\n", unreachable.join(", ")),
    }
}

fn unavailable(reason: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

/// The text of a ready manager, with the problems of services that another manager would have, too.
fn ready_text(snapshot: &ManagerSnapshot) -> String {
    let services = snapshot.services.iter();
    let problems =
        services.filter_map(|it| Some(format!("{}: {}\n", it.name, it.problem.as_ref()?)));
    std::iter::once("ready\n".to_owned())
        .chain(problems)
        .collect()
}

/// Says why another manager should serve instead, if so. A manager whose workers are all down is ready: another manager
/// would have no more workers.
fn not_ready_reason(snapshot: &ManagerSnapshot) -> Option<String> {
    let mut interfaces = snapshot.interfaces.iter();
    if let Some(InterfaceStatus { name, reason, .. }) = interfaces.find(|it| !it.is_attached()) {
        return Some(format!(
            "not ready: interface {name} has no programs: {reason}"
        ));
    }
    let has_no_heartbeat = |rule| rule == Rule::NoHeartbeat;
    let waiting: Vec<&str> = snapshot
        .services
        .iter()
        .filter(|service| has_no_heartbeat(service.rule))
        .map(|service| service.name.as_str())
        .collect();
    (!waiting.is_empty()).then(|| {
        format!(
            "not ready: no worker has sent a heartbeat yet for {}",
            waiting.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::{http::timeline::Recorder, manager::ManagerHandle};

    /// The server has a thread of its own, and reports when the manager's loop hangs.
    #[tokio::test(start_paused = true)]
    async fn unhealthy_while_the_managers_loop_does_not_answer() {
        let (manager, _requests) = ManagerHandle::without_manager();
        let shared = HttpState {
            manager,
            recorder: Recorder::default(),
            listeners: Arc::new(Semaphore::new(1)),
        };
        // The second request finds the queue full.
        for _ in 0..2 {
            let answer = healthz(State(shared.clone())).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }

    #[test]
    fn incomplete_while_a_living_peer_has_connections_that_are_unknown_here() {
        let peer = |state, since, received_complete, version: &str| PeerStatus {
            name: "manager2".to_owned(),
            state,
            state_since_ms: since,
            received_complete,
            version: version.to_owned(),
            ..PeerStatus::default()
        };
        let now = |it: &PeerStatus| incomplete(it).is_some();
        assert!(now(&peer(PeerState::Connected, 9_000, false, "1")));
        assert!(!now(&peer(PeerState::Connected, 9_000, true, "1")));
        assert!(now(&peer(PeerState::Connecting, 100, false, "")));
        assert!(!now(&peer(PeerState::Connecting, 9_000, false, "")));
        let dead = peer(PeerState::Connecting, 100, false, "1");
        assert!(!now(&dead));
        assert!(now(&peer(PeerState::Refused, 9_000, false, "")));
        assert_eq!(complete_text(&[dead]), "complete; unreachable: manager2\n");
        assert_eq!(complete_text(&[]), "complete: no peer is configured\n");
    }
}
