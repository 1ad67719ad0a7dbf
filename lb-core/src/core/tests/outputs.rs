//! Events, reasons and snapshots.

use serde_json::json;

use super::*;

#[test]
fn selection_events_name_both_workers_and_their_memory() {
    let mut harness = Harness::new(lab(Threshold::Bytes(64 * MIB)));
    harness.start("worker1", 394);
    harness.start("worker2", 300);
    harness.repeat_heartbeat("worker2", 500);
    harness.agents.clear();
    harness.advance(ms(1_400));
    harness.repeat_heartbeat("worker1", 390);
    harness.advance(ms(3_000));
    let lines: Vec<String> = harness.events.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "service0: manager selected: no worker has sent a heartbeat yet, so the fallback on the manager serves",
            "worker1 is up (was unknown), 394.0 MiB available of 700.0 MiB",
            "service0: manager -> worker1: worker1 is up with 394.0 MiB available",
            "worker2 is up (was unknown), 300.0 MiB available of 700.0 MiB",
            "service0: worker1 -> worker2: worker2 has 500.0 MiB available, 106.0 MiB more than \
             worker1 (394.0 MiB available), above the threshold of 64.0 MiB",
            "worker2 is down: no heartbeat for 1500 ms",
            "service0: worker2 -> worker1: worker2 is down; of the workers up worker1 has the most \
             memory (390.0 MiB available)",
            "worker1 is down: no heartbeat for 1500 ms",
            "service0: no worker is up any more; the fallback on the manager serves",
            "service0: worker1 -> manager: worker1 is down and no other worker is up, so the \
             fallback on the manager serves",
        ]
    );
    let warnings = harness
        .events
        .iter()
        .filter(|event| event.severity() == Severity::Warn);
    assert_eq!(warnings.count(), 3, "two workers down, and all");
}

impl Harness {
    /// Sends one heartbeat of a worker with another figure, whether its agent runs or not.
    fn repeat_heartbeat(&mut self, worker: &str, available_mib: u64) {
        let mut next = report(worker, 99, 1, available_mib);
        if let Some(agent) = self.agents.get_mut(worker) {
            agent.memory = next.memory;
            return self.send_heartbeat(worker);
        }
        next.sequence = None;
        // The 2018 form is ignored while version 1 is fresh, so the agent continues in version 1.
        let now = self.now;
        let boot = self.core.workers[self.core.by_name[worker]].sequence.boot();
        next.sequence = boot.map(|boot| Sequence {
            boot,
            number: u64::MAX,
        });
        assert_eq!(
            self.core.handle_heartbeat(&next, now),
            HeartbeatOutcome::Accepted
        );
        self.drain();
    }
}

#[test]
fn events_are_flat_json_objects() {
    let mut harness = Harness::new(lab(Threshold::Bytes(64 * MIB)));
    harness.start("worker1", 394);
    harness.start("worker2", 500);
    let json: Vec<serde_json::Value> = harness
        .events
        .iter()
        .map(|event| serde_json::to_value(event).expect("an event is JSON"))
        .collect();
    assert_eq!(
        json[0],
        json!({
            "event": "selection_changed", "service": "service0", "from": null, "to": "manager",
            "backend": 3, "rule": "no_heartbeat",
            "reason": "no worker has sent a heartbeat yet, so the fallback on the manager serves",
            "from_memory_available_bytes": null, "to_memory_available_bytes": null,
            "threshold_bytes": null,
        })
    );
    assert_eq!(
        json[1],
        json!({
            "event": "worker_up", "worker": "worker1", "was": "unknown",
            "memory_available_bytes": 394 * MIB, "memory_total_bytes": 700 * MIB,
        })
    );
    assert_eq!(json[4]["rule"], "more_memory");
    assert_eq!(json[4]["from"], "worker1");
    assert_eq!(json[4]["from_memory_available_bytes"], 394 * MIB);
    assert_eq!(json[4]["to_memory_available_bytes"], 500 * MIB);
    assert_eq!(json[4]["threshold_bytes"], 64 * MIB);
}

#[test]
fn the_snapshot_shows_workers_in_their_order_and_the_manager_last() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 394);
    harness.agents.clear();
    harness.advance(ms(250));
    let snapshot = harness.core.snapshot(harness.now);
    assert_eq!(
        serde_json::to_value(&snapshot).expect("a snapshot is JSON"),
        json!({"services": [{
            "name": "service0", "service_id": 0, "address": "192.168.56.101:80", "protocol": "tcp", "mode": "nat",
            "policy": "memory", "threshold": "auto", "threshold_bytes": null,
            "hold_ms": 0, "waiting": null,
            "selected": "worker1", "rule": "first_up",
            "reason": "worker1 was up with 394.0 MiB available", "since_ms": 250, "problem": null,
            "backends": [
                {"name": "worker1", "backend_id": 1, "address": "192.168.57.1:8080", "source": null,
                 "state": "up", "health": "up", "ineligible_reason": null,
                 "reason": null, "unchecked": true, "failing": null, "backup": false, "agent": true,
                 "heartbeats_missing": false, "admin_state": null,
                 "weight_percent": null, "pause": null, "pause_left_ms": null,
                 "age_ms": 250, "interval_ms": 100,
                 "memory_available_bytes": 394 * MIB, "memory_total_bytes": 700 * MIB,
                 "memory_stale_ms": null, "memory_pressure": null, "weight": 1, "share": 10_000,
                 "manual_weight_percent": 100, "ramp_percent": 100},
                {"name": "worker2", "backend_id": 2, "address": "192.168.57.2:8080", "source": null,
                 "state": "unknown", "health": "unknown", "ineligible_reason": null,
                 "reason": {"kind": "unknown", "text": "no heartbeat received yet"}, "unchecked": false, "failing": null, "backup": false,
                 "agent": true, "heartbeats_missing": false,
                 "admin_state": null,
                 "weight_percent": null, "pause": null, "pause_left_ms": null,
                 "age_ms": null, "interval_ms": null,
                 "memory_available_bytes": null, "memory_total_bytes": null,
                 "memory_stale_ms": null, "memory_pressure": null, "weight": 1, "share": 0,
                 "manual_weight_percent": 100, "ramp_percent": 100},
                {"name": "manager", "backend_id": 3, "address": "192.168.56.101:8080", "source": null,
                 "state": "up", "health": "up", "ineligible_reason": null,
                 "reason": null, "unchecked": false, "failing": null, "backup": false, "agent": false,
                 "heartbeats_missing": false, "admin_state": null,
                 "weight_percent": null, "pause": null, "pause_left_ms": null,
                 "age_ms": null, "interval_ms": null,
                 "memory_available_bytes": null, "memory_total_bytes": null,
                 "memory_stale_ms": null, "memory_pressure": null, "weight": 1, "share": 0,
                 "manual_weight_percent": 100, "ramp_percent": 100},
            ],
        }]})
    );
}

#[test]
fn backends_are_written_before_their_selection_and_marked_down_after_it() {
    let now = Instant::now();
    let mut core = Core::new(lab(Threshold::Auto), now);
    let commands =
        |core: &mut Core| std::iter::from_fn(|| core.poll_map_update()).collect::<Vec<_>>();
    let set = |backend: u32, state, mib: Option<u64>| MapUpdate::SetBackend {
        backend: BackendId(backend),
        state,
        memory: mib.map(|mib| Memory {
            available_bytes: mib * MIB,
            total_bytes: Some(700 * MIB),
        }),
        weight: 1,
    };
    let select = |backend: u32| MapUpdate::Select {
        service: WEB,
        backend: BackendId(backend),
    };
    assert_eq!(
        commands(&mut core),
        [
            set(1, Health::Unknown, None),
            set(2, Health::Unknown, None),
            set(3, Health::Up, None),
            select(3),
        ]
    );
    assert_eq!(
        core.handle_heartbeat(&report("worker1", 7, 1, 400), now),
        HeartbeatOutcome::Accepted
    );
    assert_eq!(
        commands(&mut core),
        [
            set(1, Health::Up, Some(400)),
            select(1),
            // Clients whose SYNs it does not answer have no other worker yet.
            MapUpdate::SetSlots {
                service: WEB,
                kind: SlotKind::Ranked,
                slots: vec![BackendId(1)],
            },
        ]
    );
    // The same figures again need no write.
    assert_eq!(
        core.handle_heartbeat(&report("worker1", 7, 2, 400), now),
        HeartbeatOutcome::Accepted
    );
    assert_eq!(commands(&mut core), []);
    let deadline = core.poll_timeout().expect("a deadline");
    core.handle_timeout(deadline);
    assert_eq!(
        commands(&mut core),
        [select(3), set(1, Health::Down, Some(400))]
    );
}
