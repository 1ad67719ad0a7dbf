//! A pause: an operator says that a worker will be silent, and its connections are kept.

use super::*;

const PAUSE: Duration = Duration::from_secs(30);

fn pause() -> AdminCommand {
    let for_ms = milliseconds(PAUSE);
    admin_command("worker1", AdminAction::Pause { for_ms })
}

impl Harness {
    /// How the datapath treats worker1.
    fn treated(&self) -> Health {
        self.maps.backends[&BackendId(1)].0
    }

    fn alarms(&mut self) -> Vec<String> {
        let events = self.events.drain(..);
        let alarms = events.filter(|event| event.severity() == Severity::Warn);
        alarms.map(|event| event.to_string()).collect()
    }
}

#[test]
fn a_paused_worker_keeps_its_connections_while_it_is_silent_without_an_alarm() {
    let mut harness = started();
    harness.command(&pause());
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(harness.treated(), Health::Paused);
    // It sends heartbeats for a while, as while its memory is copied.
    harness.advance(ms(10_000));
    assert_eq!(harness.treated(), Health::Paused);
    harness.agents.remove("worker1");
    harness.advance(ms(15_000));
    assert_eq!(harness.treated(), Health::Paused);
    assert_eq!(harness.alarms(), [""; 0]);
    let snapshot = harness.core.snapshot(harness.now);
    let worker = &snapshot.services[0].backends[0];
    assert_eq!(
        (worker.state, worker.health),
        (Health::Paused, Health::Down)
    );
    assert_eq!(worker.pause_left_ms, Some(5_000));
    // Back after `up_after` heartbeats, before the deadline.
    harness.start("worker1", 600);
    assert_eq!(harness.treated(), Health::Paused);
    harness.advance(HEARTBEAT_INTERVAL);
    assert_eq!(harness.treated(), Health::Up);
    assert_eq!(harness.selected(), "worker1");
    assert!(harness.core.admin_overrides().is_empty());
    assert_eq!(harness.alarms(), [""; 0]);
}

#[test]
fn at_the_deadline_a_silent_worker_is_down_as_usual() {
    let mut harness = started();
    harness.command(&pause());
    harness.agents.remove("worker1");
    harness.advance(PAUSE - Duration::from_nanos(1));
    assert_eq!(harness.treated(), Health::Paused);
    harness.advance(Duration::from_nanos(1));
    assert_eq!(harness.treated(), Health::Down);
    assert_eq!(
        harness.alarms(),
        ["worker1 is down: no heartbeat for 30000 ms"]
    );
    assert!(harness.core.admin_overrides().is_empty());
}

#[test]
fn paused_worker_without_silence_is_up_again_at_the_deadline_or_by_order() {
    let mut harness = started();
    harness.command(&pause());
    harness.advance(PAUSE);
    assert_eq!(
        (harness.treated(), harness.selected().as_str()),
        (Health::Up, "worker1")
    );
    harness.command(&pause());
    assert_eq!(harness.selected(), "worker2");
    harness.command(&admin_command("worker1", AdminAction::Resume));
    assert_eq!(
        (harness.treated(), harness.selected().as_str()),
        (Health::Up, "worker1")
    );
}

#[test]
fn resumed_silent_worker_gets_time_to_report() {
    let mut harness = started();
    harness.command(&pause());
    harness.agents.remove("worker1");
    harness.advance(ms(5_000));
    harness.events.clear();
    // The hook at the end of a move comes before the first heartbeat.
    harness.command(&admin_command("worker1", AdminAction::Resume));
    assert_eq!(harness.treated(), Health::Paused);
    harness.advance(ms(1_000));
    assert_eq!(harness.treated(), Health::Paused);
    harness.start("worker1", 600);
    harness.advance(HEARTBEAT_INTERVAL);
    assert_eq!(harness.treated(), Health::Up);
    assert!(harness.core.admin_overrides().is_empty());
    assert_eq!(harness.alarms(), [""; 0]);
    // One that does not come is down soon.
    harness.command(&pause());
    harness.agents.remove("worker1");
    harness.advance(ms(5_000));
    harness.command(&admin_command("worker1", AdminAction::Resume));
    harness.advance(DOWN_AFTER * 5 / 4);
    assert_eq!(harness.treated(), Health::Down);
    assert_eq!(harness.alarms().len(), 1);
    assert!(harness.core.admin_overrides().is_empty());
}

#[test]
fn a_worker_that_has_missed_heartbeats_is_not_resumed_at_once() {
    let mut harness = started();
    harness.command(&pause());
    harness.agents.remove("worker1");
    // Not yet long enough to be down.
    harness.advance(DOWN_AFTER * 3 / 4);
    harness.command(&admin_command("worker1", AdminAction::Resume));
    harness.advance(DOWN_AFTER);
    assert_eq!(harness.treated(), Health::Paused);
}

#[test]
fn pause_with_every_health_and_every_admin_state() {
    use Health::*;
    let pause = Some(Audited {
        value: 1_000,
        by: "root".to_owned(),
        at_ms: 0,
        reason: None,
    });
    let paused_in = |hold| AdminOverride {
        state: Some(Audited {
            value: hold,
            by: "root".to_owned(),
            at_ms: 0,
            reason: None,
        }),
        pause: pause.clone(),
        ..AdminOverride::default()
    };
    for health in [Unknown, Up, Down, Unhealthy, Leaving, Maintenance] {
        for hold in [AdminState::Drain, AdminState::Maintenance] {
            assert_eq!(
                paused_in(hold).effective_health(health),
                Paused,
                "{health:?}"
            );
        }
        assert_eq!(
            paused_in(AdminState::Terminate).effective_health(health),
            Terminated,
            "{health:?}"
        );
    }
}

#[test]
fn restart_keeps_the_remaining_time_of_a_pause() {
    let mut harness = started();
    harness.command(&pause());
    harness.agents.remove("worker1");
    harness.advance(ms(10_000));
    let kept = serde_json::to_string(harness.core.admin_overrides()).unwrap();
    let overrides: AdminOverrides = serde_json::from_str(&kept).unwrap();
    let left = |now_ms| {
        let (worker, mark) = overrides.pauses().next().unwrap();
        (worker.to_owned(), mark.pause_left(now_ms))
    };
    assert_eq!(left(1_000).1, PAUSE);
    assert_eq!(left(0).1, PAUSE, "a clock that was set back");
    assert_eq!(left(11_000).1, ms(20_000));
    assert_eq!(left(60_000).1, Duration::ZERO);
    // One that has ended meanwhile lasts until the worker had time to be heard.
    for (now_ms, left_ms) in [(11_000, 20_000), (60_000, 1_875)] {
        let adopted = AdoptedState {
            selections: [(WEB, BackendId(2))].into(),
            up: [BackendId(2)].into(),
            draining: [BackendId(1)].into(),
            overrides: overrides.clone(),
            pauses: [left(now_ms)].into(),
            ..AdoptedState::default()
        };
        let core = Core::resume(lab(Threshold::Bytes(64 * MIB)), &adopted, harness.now);
        let mut harness = Harness::with_core(core, harness.now);
        harness.start("worker2", 300);
        assert_eq!(harness.treated(), Health::Paused);
        harness.advance(ms(left_ms) - Duration::from_nanos(1));
        assert_eq!(harness.treated(), Health::Paused);
        harness.advance(Duration::from_nanos(1));
        assert!(harness.core.admin_overrides().is_empty());
        assert_eq!(harness.treated(), Health::Down);
        assert_eq!(harness.alarms().len(), 1);
    }
}

#[test]
fn a_pause_outlasts_a_reload_without_its_worker() {
    let mut harness = started();
    harness.command(&pause());
    let mut without = lab(Threshold::Auto);
    without.services[0].backends.remove(0);
    harness.agents.remove("worker1");
    harness.reconfigure(without.clone());
    harness.reconfigure(lab(Threshold::Auto));
    assert_eq!(harness.treated(), Health::Paused);
    harness.reconfigure(without);
    harness.advance(PAUSE);
    assert!(harness.core.admin_overrides().is_empty());
}

#[test]
fn invalid_pause_is_refused() {
    let mut harness = started();
    let for_service = AdminCommand {
        service: Some("service0".to_owned()),
        ..pause()
    };
    let unknown = AdminCommand {
        worker: "worker3".to_owned(),
        ..pause()
    };
    for (order, says) in [
        (
            admin_command("worker1", AdminAction::Pause { for_ms: 999 }),
            "a pause of 999ms is not possible: expected 1s to 1h",
        ),
        (
            admin_command("worker1", AdminAction::Pause { for_ms: 3_600_001 }),
            "expected 1s to 1h",
        ),
        (for_service, "leave out --service"),
        (unknown, "did you mean worker1?"),
    ] {
        let refused = harness.refusal(&order);
        assert!(refused.to_string().contains(says), "{refused}");
    }
    assert!(harness.core.admin_overrides().is_empty());
    assert_eq!(harness.treated(), Health::Up);
}

#[test]
fn an_order_warns_of_a_worker_that_is_down_already() {
    let mut harness = started();
    harness.agents.remove("worker1");
    harness.advance(ms(5_000));
    let result = harness.command(&pause());
    assert_eq!(result.warnings.len(), 1, "{:?}", result.warnings);
    assert!(
        result.warnings[0].contains("is down already"),
        "{:?}",
        result.warnings
    );
    harness.start("worker1", 600);
    harness.advance(HEARTBEAT_INTERVAL);
    assert_eq!(harness.treated(), Health::Up);
}
