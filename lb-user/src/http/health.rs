//! `/healthz` and `/readyz`, for keepalived and orchestrators.

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use lb_core::Rule;

use super::Shared;
use crate::status::{Decided, Interface};

const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";

/// The routes of health checks.
pub fn router() -> Router<Shared> {
    Router::new()
        .route(HEALTHZ, get(healthz))
        .route(READYZ, get(readyz))
}

/// Whether this is asked by health checks.
pub fn is_probe(path: &str) -> bool {
    matches!(path, HEALTHZ | READYZ)
}

/// Says whether the manager's loop runs.
async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.sources.asker.decided().await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => unavailable(&format!("{error:#}")),
    }
}

/// Says whether packets are met, and every service's choice is an informed one.
async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.sources.asker.decided().await {
        Ok(decided) => match unready(&decided) {
            None => "ready\n".into_response(),
            Some(reason) => unavailable(&reason),
        },
        Err(error) => unavailable(&format!("{error:#}")),
    }
}

fn unavailable(reason: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

/// A manager that was never told of a worker is not ready, and another should serve. One whose
/// workers have all gone down is: it serves by itself, as would any other.
fn unready(decided: &Decided) -> Option<String> {
    let mut interfaces = decided.interfaces.iter();
    if let Some(Interface { name, reason, .. }) = interfaces.find(|it| !it.is_attached()) {
        return Some(format!("not ready: no packet is met at {name}: {reason}"));
    }
    let unheard = |rule| rule == Rule::NothingHeard;
    let waiting: Vec<&str> = decided
        .services
        .iter()
        .filter(|service| unheard(service.rule))
        .map(|service| service.name.as_str())
        .collect();
    (!waiting.is_empty()).then(|| {
        format!(
            "not ready: no worker was heard yet for {}",
            waiting.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use tokio::sync::{Semaphore, mpsc};

    use super::*;
    use crate::{
        config::{Config, Overrides},
        feed::Feed,
        http::{Asker, Sources, timeline::Recorder},
        meters::Meters,
    };

    /// The server has a thread of its own, and says it when the manager's loop hangs.
    #[tokio::test(start_paused = true)]
    async fn unhealthy_while_nobody_answers_in_the_managers_loop() {
        let (questions, _never_asked) = mpsc::channel(1);
        let config = Config::example(&Overrides::default(), None).unwrap();
        let shared = Shared {
            sources: Sources {
                asker: Asker::new(questions, PathBuf::new()),
                feed: Feed::default(),
                meters: Meters::new(&config).unwrap(),
            },
            recorder: Recorder::default(),
            listeners: Arc::new(Semaphore::new(1)),
        };
        // The second finds the queue of questions full.
        for _ in 0..2 {
            let answer = healthz(State(shared.clone())).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
