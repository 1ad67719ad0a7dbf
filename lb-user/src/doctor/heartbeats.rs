//! Whether the running manager receives every worker's heartbeats, and which datagrams it refuses.

use std::{net::SocketAddr, time::Duration};

use lb_core::{AdminState, BackendSnapshot, Health, MANAGER, milliseconds};

use super::Finding;
use crate::{
    keys::apply_keys_here,
    status::{BackendStatus, RefusedDatagram, Status},
};

#[derive(Debug, Clone)]
pub struct HeartbeatFacts<'a> {
    pub status: &'a Status,
    pub down_after: Duration,
}

impl HeartbeatFacts<'_> {
    /// Whether the last heartbeat is not older than `down_after`.
    fn is_alive(&self, seen: &BackendSnapshot) -> bool {
        let down_after = milliseconds(self.down_after);
        seen.age_ms.is_some_and(|age| age <= down_after)
    }
}

/// The last datagram that was refused for one reason.
#[derive(Debug, Clone, Copy)]
struct LastRefusal<'a> {
    reason: &'a str,
    from: Option<SocketAddr>,
    last: &'a RefusedDatagram,
}

pub fn findings(facts: &HeartbeatFacts<'_>) -> Vec<Finding> {
    let lately = facts.status.heartbeats.unexpected_refusals();
    let refusals: Vec<LastRefusal<'_>> = lately
        .map(|(reason, last)| LastRefusal {
            reason,
            from: last.from.parse().ok(),
            last,
        })
        .collect();
    let mut findings = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for backend in facts.status.backends() {
        let name = backend.seen.name.as_str();
        if name != MANAGER && !seen.contains(&name) {
            seen.push(name);
            findings.push(worker(facts, backend, &refusals));
        }
    }
    let unsettled = refusals.iter().filter(|it| !is_settled(facts, it));
    findings.extend(unsettled.map(refused));
    findings
}

/// Whether the agent of a restored machine has meanwhile continued with a new boot id.
fn is_settled(facts: &HeartbeatFacts<'_>, refusal: &LastRefusal<'_>) -> bool {
    let mut workers = facts.status.backends();
    refusal.reason == "sequence_reset"
        && workers.any(|it| facts.is_alive(&it.seen) && refusal.is_about(&it.seen.name))
}

impl LastRefusal<'_> {
    fn is_about(&self, worker: &str) -> bool {
        let mut words = self.last.detail.split_whitespace();
        words.any(|word| word == worker)
    }
}

fn worker(
    facts: &HeartbeatFacts<'_>,
    backend: &BackendStatus,
    refusals: &[LastRefusal<'_>],
) -> Finding {
    let seen = &backend.seen;
    let name = &seen.name;
    let ip = seen.address.parse().map(|it: SocketAddr| it.ip()).ok();
    let refused = refusals.iter().find(|refusal| {
        let same_host = refusal.from.is_some_and(|from| Some(from.ip()) == ip);
        same_host || refusal.is_about(name)
    });
    let is_alive = facts.is_alive(seen);
    if is_in_maintenance(facts.status, name) && !(is_alive && seen.health.is_up()) {
        return Finding::warning(
            "heartbeats",
            format!(
                "{name} is in maintenance and {}: that raises no alarm",
                last_heartbeat(seen)
            ),
            format!("memlb undrain {name}    (when it is back)"),
        );
    }
    if seen.pause.is_some() && !(is_alive && seen.health.is_up()) {
        let left = seen.pause_left_ms.unwrap_or(0) / 1_000;
        return Finding::warning(
            "heartbeats",
            format!(
                "{name} is paused and {}: that raises no alarm",
                last_heartbeat(seen)
            ),
            format!(
                "memlb resume {name}    (when it is back; the pause ends by itself in {left} s)"
            ),
        );
    }
    if !seen.agent && !is_alive {
        let text = format!(
            "{name} needs no heartbeats (agent = false), and is {}",
            seen.state
        );
        return Finding::ok("heartbeats", text);
    }
    match (seen.health, refused, slow(facts, seen)) {
        (Health::Up, _, Some(slow)) if is_alive => slow,
        (Health::Up, _, None) if is_alive && seen.memory_stale_ms.is_some() => Finding::warning(
            "heartbeats",
            format!("{name} sends heartbeats, but its agent can no longer read the memory figures"),
            format!("on {name}: journalctl -u memlb-agent; cat /proc/meminfo"),
        ),
        (Health::Up, _, None) if is_alive => Finding::ok(
            "heartbeats",
            format!(
                "{name} sent a heartbeat {} ms ago",
                seen.age_ms.unwrap_or(0)
            ),
        ),
        (_, Some(refusal), _) if !is_alive => Finding::problem(
            "heartbeats",
            format!(
                "{name} {}: the manager refuses its datagrams ({}): {}",
                last_heartbeat(seen),
                refusal.reason,
                refusal.last.detail
            ),
            remedy(refusal, name),
        ),
        (_, _, Some(slow)) => slow,
        (Health::Leaving | Health::Maintenance, ..) => absent(seen),
        (Health::Unhealthy, ..) if is_alive => Finding::problem(
            "heartbeats",
            format!("{name} sends heartbeats, and reports that its own service does not answer"),
            format!("on {name}: memlb doctor --agent --manager MANAGER --check URL"),
        ),
        _ if is_alive => Finding::ok(
            "heartbeats",
            format!(
                "{name} sent a heartbeat {} ms ago, and is {}",
                seen.age_ms.unwrap_or(0),
                seen.health
            ),
        ),
        _ => silent(facts, seen),
    }
}

/// Whether an operator's order allows the worker to be silent.
pub fn may_be_silent(status: &Status, worker: &str) -> bool {
    let mut backends = status.backends();
    let is_paused = backends.any(|it| it.seen.name == worker && it.seen.pause.is_some());
    is_paused || is_in_maintenance(status, worker)
}

/// Whether an operator has set the worker to maintenance in all services.
fn is_in_maintenance(status: &Status, worker: &str) -> bool {
    let mut backends = status
        .backends()
        .filter(|it| it.seen.name == worker)
        .map(|it| it.seen.admin_state.as_ref().map(|mark| mark.value))
        .peekable();
    backends.peek().is_some() && backends.all(|state| state == Some(AdminState::Maintenance))
}

fn last_heartbeat(seen: &BackendSnapshot) -> String {
    match seen.age_ms {
        Some(age) if age < 1_000 => format!("sent its last heartbeat {age} ms ago"),
        Some(age) => format!("sent its last heartbeat {} s ago", age / 1_000),
        None => "has sent no valid heartbeat".to_owned(),
    }
}

/// Reports a worker whose heartbeat interval is too long for `down_after`.
fn slow(facts: &HeartbeatFacts<'_>, seen: &BackendSnapshot) -> Option<Finding> {
    let (name, interval) = (&seen.name, seen.interval_ms?);
    let down_after = milliseconds(facts.down_after);
    let is_alive = seen.age_ms? <= interval.saturating_add(down_after);
    if !is_alive || interval.saturating_mul(3) <= down_after {
        return None;
    }
    let found = format!(
        "{name} is {}, {}: it sends a heartbeat only every {interval} ms, and counts as down after \
         {down_after} ms",
        seen.health,
        last_heartbeat(seen)
    );
    let remedy = format!(
        "on {name}: memlb agent --interval {}ms; or here failover.down_after = \"{}ms\", and memlb \
         reload",
        down_after / 3,
        interval.saturating_mul(3)
    );
    Some(match interval > down_after {
        true => Finding::problem("heartbeats", found, remedy),
        false => Finding::warning("heartbeats", found, remedy),
    })
}

/// Reports a worker that left, or that a former manager had drained.
fn absent(seen: &BackendSnapshot) -> Finding {
    let name = &seen.name;
    let found = match seen.age_ms {
        Some(_) => format!(
            "{name} left (state {}), and {}",
            seen.health.name(),
            last_heartbeat(seen)
        ),
        None => format!(
            "{name} was leaving or drained when this manager started, and {} since",
            last_heartbeat(seen)
        ),
    };
    Finding::warning(
        "heartbeats",
        found,
        format!(
            "on {name}: systemctl start memlb-agent    (if it runs: memlb doctor --agent there)"
        ),
    )
}

fn silent(facts: &HeartbeatFacts<'_>, seen: &BackendSnapshot) -> Finding {
    let (name, last) = (&seen.name, last_heartbeat(seen));
    if seen.age_ms.is_none() && facts.status.uptime_ms < milliseconds(facts.down_after) {
        return Finding::warning(
            "heartbeats",
            format!("{name} {last}, but the manager has just started"),
            "memlb doctor    (again, in a moment)",
        );
    }
    Finding::problem(
        "heartbeats",
        format!(
            "{name} {last}, and nothing was refused: its agent does not run, or its datagrams do not \
             arrive"
        ),
        format!("on {name}: memlb doctor --agent --manager MANAGER; systemctl status memlb-agent"),
    )
}

fn refused(refusal: &LastRefusal<'_>) -> Finding {
    let LastRefusal { reason, last, .. } = refusal;
    Finding::warning(
        "heartbeats",
        format!("datagrams are being refused ({reason}), {last}"),
        remedy(refusal, "WORKER"),
    )
}

/// The command that makes the manager accept such datagrams, or that finds the sender.
fn remedy(refusal: &LastRefusal<'_>, worker: &str) -> String {
    let from = refusal
        .from
        .map_or("its host".to_owned(), |from| from.ip().to_string());
    match refusal.reason {
        "unsigned" | "unsigned_beside_signed" => format!(
            "memlb keygen --name {worker}; on {from}: memlb agent --key /etc/memlb/agent.key …"
        ),
        "unknown_key" => format!(
            "install -m 600 {worker}.key /etc/memlb/keys/{worker}.key && {}    (the file that the agent on {from} \
             signs with)",
            apply_keys_here()
        ),
        "bad_signature" | "other_workers_key" => format!(
            "memlb keygen --name {worker}, and install the same file on both: --key on {from}, \
             /etc/memlb/keys/ here; then {}",
            apply_keys_here()
        ),
        "unknown_worker" => format!(
            "on {from}: memlb agent --name NAME, with a NAME that `memlb workers` lists; or add the worker \
             to /etc/memlb/memlb.toml and memlb reload"
        ),
        "join_refused" => "memlb events    (says why it cannot join)".to_owned(),
        "legacy_off" => "memlb manager --legacy-heartbeats".to_owned(),
        "other_version" => format!("install the same memlb on {from}: memlb --version"),
        "sequence_reset" => format!(
            "on {from}: systemctl restart memlb-agent    (its machine was restored from a snapshot, and an \
             agent of an older memlb does not draw a new boot id by itself)"
        ),
        "duplicate" | "reordered" | "old_boot" => {
            format!("on {from}: pgrep -a memlb    (do two agents run under one name?)")
        }
        _ => format!("on {from}: ss -unp    (which program sends to this port?)"),
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Severity;

    /// A manager whose last heartbeat of worker1 has this age.
    pub fn status(age_ms: Option<u64>, health: &str) -> Status {
        let backend = json!({
            "name": "worker1", "backend_id": 1, "address": "192.168.56.103:8081", "state": health,
            "health": health, "admin_state": null, "weight_percent": null, "age_ms": age_ms,
            "memory_available_bytes": null, "memory_total_bytes": null, "memory_pressure": null,
            "weight": 1, "share": 0, "manual_weight_percent": 100, "ramp_percent": 100,
            "flows": 0, "half_open": 0, "connections": 0, "packets_in": 0, "packets_out": 0,
            "bytes_in": 0, "bytes_out": 0,
        });
        serde_json::from_value(json!({
            "version": "0.1.0", "uptime_ms": 60_000, "interfaces": [], "verdicts": {}, "maps": {},
            "heartbeats": {"accepted": 0, "refused": {}, "unsigned": {}, "authentication": "enforce"},
            "services": [{
                "name": "web", "address": "192.168.56.101:80", "protocol": "tcp", "mode": "nat", "policy": "memory",
                "threshold": "auto", "threshold_bytes": null, "selected": "manager",
                "rule": "no_heartbeat", "reason": "", "since_ms": 1, "backends": [backend],
            }],
        }))
        .unwrap()
    }

    /// The same, which refuses what it gets for `reason` from worker1.
    fn examine(
        age_ms: Option<u64>,
        health: &str,
        refused: Option<(&str, Duration)>,
    ) -> Vec<Finding> {
        examine_status(&status(age_ms, health), refused)
    }

    fn examine_status(status: &Status, refused: Option<(&str, Duration)>) -> Vec<Finding> {
        let mut status = status.clone();
        if let Some((reason, ago)) = refused {
            let last = RefusedDatagram {
                age_ms: milliseconds(ago),
                from: "192.168.56.103:40000".to_owned(),
                detail: "because".to_owned(),
            };
            let lately = &mut status.heartbeats.refused_lately;
            lately.insert(reason.to_owned(), last);
        }
        findings(&HeartbeatFacts {
            status: &status,
            down_after: lb_core::DEFAULT_DOWN_AFTER,
        })
    }

    #[test]
    fn a_worker_that_reports_is_ok() {
        let found = examine(Some(44), "up", Some(("not_fresh", Duration::ZERO)));
        assert_eq!(
            found,
            [Finding::ok(
                "heartbeats",
                "worker1 sent a heartbeat 44 ms ago"
            )]
        );
    }

    #[test]
    fn assigns_refusals_to_their_worker() {
        let unsigned = "memlb keygen --name worker1; on 192.168.56.103: memlb agent --key";
        for (reason, remedy) in [
            ("unsigned", unsigned),
            ("unknown_key", "install -m 600 worker1.key /etc/memlb/keys/"),
            ("bad_signature", "install the same file on both"),
            ("unknown_worker", "memlb agent --name NAME"),
            ("sequence_reset", "restored from a snapshot"),
            ("not_json", "ss -unp"),
        ] {
            let found = examine(None, "unknown", Some((reason, Duration::ZERO)));
            found[0].assert(Severity::Problem, reason, remedy);
            assert_eq!(found[1].severity, Severity::Warning);
        }
    }

    #[test]
    fn a_restored_worker_that_reports_again_is_ok() {
        let mut status = status(Some(44), "up");
        let last = RefusedDatagram {
            age_ms: 20_000,
            from: "192.168.56.103:40000".to_owned(),
            detail: "from worker worker1".to_owned(),
        };
        let lately = &mut status.heartbeats.refused_lately;
        lately.insert("sequence_reset".to_owned(), last.clone());
        assert_eq!(examine_status(&status, None).len(), 1);
        let lately = &mut status.heartbeats.refused_lately;
        lately.insert("reordered".to_owned(), last);
        assert_eq!(examine_status(&status, None).len(), 2);
    }

    #[test]
    fn reports_stale_memory_figures() {
        let mut status = status(Some(44), "up");
        status.services[0].backends[0].seen.memory_stale_ms = Some(5_000);
        let found = &examine_status(&status, None)[0];
        found.assert(Severity::Warning, "no longer read the memory", "");
    }

    #[test]
    fn reports_why_a_worker_that_left_is_not_up() {
        let says = "left (state leaving), and sent its last heartbeat 9 s ago";
        examine(Some(9_000), "leaving", None)[0].assert(Severity::Warning, says, "");
        let says = "was leaving or drained when this manager started";
        examine(None, "leaving", None)[0].assert(Severity::Warning, says, "");
        let refused = &examine(None, "leaving", Some(("unknown_key", Duration::ZERO)))[0];
        refused.assert(Severity::Problem, "datagrams (unknown_key)", "");
    }

    #[test]
    fn reports_an_interval_that_is_too_long() {
        for (health, interval, verdict) in [
            ("leaving", 5_000, Severity::Problem),
            ("up", 5_000, Severity::Problem),
            ("up", 700, Severity::Warning),
            ("up", 500, Severity::Ok),
        ] {
            let mut status = status(Some(1_200), health);
            status.services[0].backends[0].seen.interval_ms = Some(interval);
            let (says, remedy) = match verdict {
                Severity::Problem => (
                    "a heartbeat only every 5000 ms, and counts as down after 1500 ms",
                    "memlb agent --interval 500ms",
                ),
                _ => ("", ""),
            };
            examine_status(&status, None)[0].assert(verdict, says, remedy);
        }
    }

    #[test]
    fn silence_in_maintenance_raises_no_alarm() {
        let mut status = status(Some(9_000), "down");
        let hold = json!({"value": "maintenance", "by": "root", "at_ms": 1});
        status.services[0].backends[0].seen.admin_state = serde_json::from_value(hold).unwrap();
        let found = &examine_status(&status, None)[0];
        found.assert(Severity::Warning, "worker1 is in maintenance", "");
        let mut elsewhere = status.services[0].clone();
        elsewhere.backends[0].seen.admin_state = None;
        status.services.push(elsewhere);
        let found = &examine_status(&status, None)[0];
        assert_eq!(found.severity, Severity::Problem);
    }

    #[test]
    fn silence_during_a_pause_raises_no_alarm() {
        let mut status = status(Some(9_000), "down");
        let seen = &mut status.services[0].backends[0].seen;
        let pause = json!({"value": 30_000, "by": "root", "at_ms": 1});
        seen.pause = serde_json::from_value(pause).unwrap();
        seen.pause_left_ms = Some(21_000);
        let found = &examine_status(&status, None)[0];
        found.assert(Severity::Warning, "worker1 is paused", "");
        assert!(may_be_silent(&status, "worker1") && !may_be_silent(&status, "worker2"));
    }

    #[test]
    fn distinguishes_silence_from_refusal() {
        for refused in [None, Some(("not_fresh", Duration::ZERO))] {
            let found = examine(Some(9_000), "down", refused);
            assert_eq!(found.len(), 1, "{found:?}");
            let says = "sent its last heartbeat 9 s ago, and nothing was refused";
            found[0].assert(Severity::Problem, says, "memlb doctor --agent");
        }
        let ill = examine(Some(50), "unhealthy", None);
        assert!(ill[0].found.contains("its own service does not answer"));
    }
}
