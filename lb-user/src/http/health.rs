//! `/healthz` and `/readyz`, for keepalived and orchestrators.

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};

use super::Shared;
use crate::status::{Interface, ManagerSnapshot};
use lb_core::Rule;

const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";

/// The routes of health checks.
pub fn router() -> Router<Shared> {
    Router::new()
        .route(HEALTHZ, get(healthz))
        .route(READYZ, get(readyz))
}

/// Whether this is the path of a health check.
pub fn is_probe(path: &str) -> bool {
    matches!(path, HEALTHZ | READYZ)
}

/// Reports whether the manager's loop runs.
async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.manager.snapshot().await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => unavailable(&format!("{error:#}")),
    }
}

/// Reports whether the programs are attached, and every service has a worker that reports or an adopted selection.
async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.manager.snapshot().await {
        Ok(snapshot) => match not_ready_reason(&snapshot) {
            None => ready_text(&snapshot).into_response(),
            Some(reason) => unavailable(&reason),
        },
        Err(error) => unavailable(&format!("{error:#}")),
    }
}

fn unavailable(reason: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

/// Says what an operator must know of services although another manager would not do better.
fn ready_text(snapshot: &ManagerSnapshot) -> String {
    let services = snapshot.services.iter();
    let problems =
        services.filter_map(|it| Some(format!("{}: {}\n", it.name, it.problem.as_ref()?)));
    std::iter::once("ready\n".to_owned())
        .chain(problems)
        .collect()
}

/// A manager that has received no heartbeat is not ready, and another one should serve. One whose workers are
/// all down is ready: another manager would not have more.
fn not_ready_reason(snapshot: &ManagerSnapshot) -> Option<String> {
    let mut interfaces = snapshot.interfaces.iter();
    if let Some(Interface { name, reason, .. }) = interfaces.find(|it| !it.is_attached()) {
        return Some(format!("not ready: no packet is met at {name}: {reason}"));
    }
    let is_unheard = |rule| rule == Rule::NothingHeard;
    let waiting: Vec<&str> = snapshot
        .services
        .iter()
        .filter(|service| is_unheard(service.rule))
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
        let shared = Shared {
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
}
