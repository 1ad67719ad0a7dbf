//! Services that no worker serves at present, and workers that the mode makes ineligible.

use std::time::Duration;

use lb_core::{BackendSnapshot, Health, MANAGER, Mode, NO_BACKEND, milliseconds};

use super::Finding;
use crate::status::{BackendStatus, ServiceStatus, Status};

pub fn findings(status: &Status, down_after: Duration) -> Vec<Finding> {
    let is_young = status.uptime_ms < milliseconds(down_after);
    let services = status.services.iter();
    services
        .flat_map(|service| ineligible(service).chain(finding(service, is_young)))
        .collect()
}

/// Reports workers that are up but ineligible in the service's mode. Another check reports missing routes.
fn ineligible(service: &ServiceStatus) -> impl Iterator<Item = Finding> {
    let is_checked = service.mode != Mode::Nat;
    let backends = service.backends.iter().filter(move |_| is_checked);
    backends.filter_map(|backend| {
        let why = backend.seen.ineligible_reason.as_ref()?;
        let found = format!("{}: {why}", service.name);
        Some(Finding::problem(
            "selection",
            found,
            "memlb status    (shows when it serves)",
        ))
    })
}

fn finding(service: &ServiceStatus, is_young: bool) -> Option<Finding> {
    let name = &service.name;
    let served = match service.selected.as_str() {
        MANAGER => "is served by its fallback, the manager itself",
        NO_BACKEND => "refuses new connections",
        _ => return None,
    };
    let workers: Vec<&BackendStatus> = service
        .backends
        .iter()
        .filter(|backend| backend.seen.name != MANAGER)
        .collect();
    let why: Vec<String> = workers.iter().map(|worker| why_not(&worker.seen)).collect();
    let why = match why.is_empty() {
        true => "it has no worker".to_owned(),
        false => why.join(", "),
    };
    let found = format!("{name} {served}, because {why}");
    let is_ordered = |it: &&BackendStatus| it.seen.admin_state.is_some() || it.seen.pause.is_some();
    let are_ordered = workers.iter().all(is_ordered);
    Some(match workers.first() {
        Some(first) if are_ordered => Finding::warning(
            "selection",
            format!("{found}, as ordered"),
            match first.seen.admin_state {
                Some(_) => format!("memlb undrain {}", first.seen.name),
                None => format!("memlb resume {}", first.seen.name),
            },
        ),
        _ if is_young => Finding::warning(
            "selection",
            format!("{found}; the manager has just started"),
            "memlb doctor    (again, in a moment)",
        ),
        _ => Finding::problem(
            "selection",
            found,
            "start a worker    (the findings of check heartbeats say what each lacks; memlb workers)",
        ),
    })
}

fn why_not(worker: &BackendSnapshot) -> String {
    let name = &worker.name;
    match (&worker.admin_state, worker.state) {
        (Some(mark), _) => format!("{name} is {}", mark.value.description()),
        (None, Health::Unknown) => format!("{name} has sent no heartbeat"),
        (None, state) => format!("{name} is {state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Severity, heartbeats::tests::status};

    fn examine(selected: &str, change: impl FnOnce(&mut Status)) -> Vec<Finding> {
        let mut status = status(None, "leaving");
        selected.clone_into(&mut status.services[0].selected);
        change(&mut status);
        findings(&status, lb_core::DEFAULT_DOWN_AFTER)
    }

    #[test]
    fn reports_a_service_that_no_worker_serves() {
        assert_eq!(examine("worker1", |_| {}), []);
        let found = examine(MANAGER, |_| {});
        assert_eq!(found[0].severity, Severity::Problem);
        let says = "web is served by its fallback, the manager itself, because worker1 is leaving";
        assert_eq!(found[0].found, says);
        let found = examine(NO_BACKEND, |status| status.services[0].backends.clear());
        let says = "web refuses new connections, because it has no worker";
        assert_eq!(found[0].found, says);
        assert_eq!(found[0].severity, Severity::Problem);
        let found = examine(MANAGER, |status| status.uptime_ms = 100);
        assert_eq!(found[0].severity, Severity::Warning);
    }

    #[test]
    fn reports_of_a_worker_that_cannot_answer_as_the_mode_asks() {
        let found = examine("worker1", |status| {
            status.services[0].mode = Mode::Routed;
            let why = "no answer of worker1 passes the manager".to_owned();
            status.services[0].backends[0].seen.ineligible_reason = Some(why);
        });
        let says = "web: no answer of worker1 passes the manager";
        found[0].assert(Severity::Problem, says, "");
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn what_the_operator_ordered_is_no_problem() {
        let found = examine(MANAGER, |status| {
            let drained = serde_json::json!({"value": "drain", "by": "root", "at_ms": 1});
            status.services[0].backends[0].seen.admin_state =
                serde_json::from_value(drained).unwrap();
        });
        assert_eq!(found[0].severity, Severity::Warning);
        assert_eq!(found[0].remedy.as_deref(), Some("memlb undrain worker1"));
        let found = examine(MANAGER, |status| {
            let paused = serde_json::json!({"value": 1_000, "by": "root", "at_ms": 1});
            status.services[0].backends[0].seen.pause = serde_json::from_value(paused).unwrap();
        });
        assert_eq!(found[0].remedy.as_deref(), Some("memlb resume worker1"));
    }
}
