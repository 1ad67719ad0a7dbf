//! A restarted manager: the selection stays until there is a reason to change it.

use super::*;

fn restarted(adopted: &AdoptedState) -> Harness {
    let now = Instant::now();
    let core = Core::resume(lab(Threshold::Bytes(64 * MIB)), adopted, now);
    Harness::with_core(core, now)
}

fn adopted(selected: u32, up: &[u32]) -> AdoptedState {
    AdoptedState {
        selections: [(WEB, BackendId(selected))].into(),
        up: up.iter().copied().map(BackendId).collect(),
        ..AdoptedState::default()
    }
}

#[test]
fn an_adopted_drain_continues_until_the_worker_reports() {
    let mut harness = restarted(&AdoptedState {
        draining: [BackendId(1)].into(),
        ..adopted(2, &[2])
    });
    harness.start("worker2", 300);
    assert_eq!(harness.state("worker1"), Health::Leaving);
    assert_eq!(harness.maps.backends[&BackendId(1)].0, Health::Leaving);
    harness.advance(ms(10_000));
    assert_eq!(harness.state("worker1"), Health::Leaving);
    harness.start("worker1", 600);
    assert_eq!(harness.selected(), "worker2", "a way back is proved");
    harness.advance(HEARTBEAT_INTERVAL);
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn a_restart_alone_changes_nothing() {
    let mut harness = restarted(&adopted(2, &[1, 2, 3]));
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(harness.maps.selection[&WEB], Some(BackendId(2)));
    assert_eq!(harness.kinds(), ["selection_adopted"]);
    // The other worker's heartbeat comes first, with far more memory than the maps have for worker2.
    harness.start("worker1", 600);
    assert_eq!(harness.selected(), "worker2");
    harness.start("worker2", 550);
    assert_eq!(harness.selected(), "worker2");
    harness.advance(ms(10_000));
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(
        harness.kinds(),
        Vec::<String>::new(),
        "both were up all the time"
    );
}

#[test]
fn an_adopted_worker_has_down_after_to_report() {
    let mut harness = restarted(&adopted(2, &[2]));
    harness.start("worker1", 300);
    harness.advance(DOWN_AFTER);
    assert_eq!(harness.selected(), "worker2");
    harness.advance(Duration::from_nanos(1));
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(harness.state("worker2"), Health::Down);
}

#[test]
fn silence_counted_by_a_former_manager_counts() {
    let silent = |silence: Duration| AdoptedState {
        silent_for: [("worker2".to_owned(), silence)].into(),
        ..adopted(2, &[1, 2])
    };
    // Each manager is killed after 400 ms; the next one continues its waiting time.
    let mut waited = Duration::ZERO;
    for life in 1..=3 {
        let mut harness = restarted(&silent(waited));
        harness.start("worker1", 300);
        harness.advance(ms(400));
        assert_eq!(harness.state("worker2"), Health::Up, "life {life}");
        let late: Vec<_> = harness.core.overdue_workers(harness.now).collect();
        waited += ms(400);
        assert_eq!(late, [("worker2", waited)]);
    }
    let mut harness = restarted(&silent(waited));
    harness.start("worker1", 300);
    harness.advance(ms(300));
    assert_eq!(harness.state("worker2"), Health::Up);
    harness.advance(Duration::from_nanos(1));
    assert_eq!(harness.state("worker2"), Health::Down);
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(harness.core.overdue_workers(harness.now).count(), 0);
}

#[test]
fn adopted_late_worker_gets_time_to_report() {
    let mut harness = restarted(&AdoptedState {
        silent_for: [("worker2".to_owned(), ms(60_000))].into(),
        ..adopted(2, &[2])
    });
    harness.advance(DOWN_AFTER / 5);
    assert_eq!(harness.state("worker2"), Health::Up);
    harness.start("worker2", 300);
    harness.advance(ms(10_000));
    assert_eq!(harness.state("worker2"), Health::Up);
}

#[test]
fn an_adopted_worker_that_reports_unhealthy_loses_the_selection_at_once() {
    let mut harness = restarted(&adopted(2, &[1, 2]));
    let mut unhealthy = report("worker2", 7, 1, 400);
    unhealthy.healthy = false;
    assert_eq!(
        harness.handle_heartbeat(&unhealthy),
        HeartbeatOutcome::Accepted
    );
    assert_eq!(
        harness.selected(),
        "worker1",
        "adopted as up, though without a heartbeat"
    );
}

#[test]
fn normal_rules_apply_once_both_workers_report() {
    let mut harness = restarted(&adopted(2, &[1, 2]));
    harness.start("worker2", 300);
    harness.start("worker1", 365);
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn an_adopted_fallback_stays_until_a_worker_reports() {
    let mut harness = restarted(&adopted(3, &[3]));
    assert_eq!(harness.selected(), "manager");
    harness.start("worker1", 300);
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn a_selection_of_an_unknown_backend_is_not_adopted() {
    let mut harness = restarted(&adopted(99, &[98]));
    assert_eq!(harness.selected(), "manager");
    assert_eq!(harness.kinds(), ["selection_changed"]);
}

#[test]
fn adopted_ejection_continues_with_an_immediate_trial() {
    let ejection = AdoptedEjection {
        evidence: Evidence {
            refused: 3,
            unanswered: 0,
            within: ms(200),
        },
        age: ms(60_000),
        trials: 4,
        failures: 5,
    };
    let mut harness = restarted(&AdoptedState {
        draining: [BackendId(1)].into(),
        ejections: [(BackendId(1), ejection), (BackendId(99), ejection)].into(),
        ..adopted(2, &[2])
    });
    for (worker, mib) in [("worker1", 600), ("worker2", 300)] {
        harness.start(worker, mib);
    }
    assert_eq!(harness.state("worker1"), Health::Failing);
    assert_eq!(harness.selected(), "worker2");
    let now = harness.now;
    let saved: Vec<_> = harness.core.ejections(now).collect();
    assert_eq!(saved, [(BackendId(1), ejection)]);

    // The next trial that fails has the pause that the former manager had reached.
    harness.handle_timeout();
    assert_eq!(harness.core.poll_trial(), Some(BackendId(1)));
    harness
        .core
        .handle_trial(BackendId(1), TrialOutcome::Failed, harness.now);
    harness.advance(ms(29_000));
    assert_eq!(harness.core.poll_trial(), None);
    harness.advance(ms(1_100));
    assert_eq!(harness.core.poll_trial(), Some(BackendId(1)));
    harness
        .core
        .handle_trial(BackendId(1), TrialOutcome::Answered, harness.now);
    harness.handle_timeout();
    assert_eq!(harness.state("worker1"), Health::Up);
}
