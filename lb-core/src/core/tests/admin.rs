//! The operator's overrides: what they stop, what they do not affect, what outlasts a restart.

use super::*;

const fn set_state(state: AdminState) -> AdminAction {
    AdminAction::SetState { state }
}

#[test]
fn a_drained_worker_gets_nothing_new_until_it_is_undrained() {
    let mut harness = started();
    assert_eq!(harness.selected(), "worker1");
    let result = harness.command(&admin_command("worker1", set_state(AdminState::Drain)));
    assert_eq!(result, CommandResult::default());
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(harness.maps.backends[&BackendId(1)].0, Health::Draining);
    harness.advance(ms(10_000));
    assert_eq!(harness.selected(), "worker2");
    harness.command(&admin_command("worker1", AdminAction::Undrain));
    assert_eq!(harness.selected(), "worker1");
    assert!(harness.core.admin_overrides().is_empty());
}

#[test]
fn every_admin_state_with_every_health() {
    use Health::*;
    // One line for each health, one column for each hold: drain, maintenance, cut.
    let table = [
        (Unknown, [Draining, Maintenance, Terminated]),
        (Up, [Draining, Maintenance, Terminated]),
        (Down, [Down, Down, Terminated]),
        (Unhealthy, [Unhealthy, Unhealthy, Terminated]),
        (Leaving, [Draining, Maintenance, Terminated]),
        (Maintenance, [Draining, Maintenance, Terminated]),
    ];
    for (health, expected) in table {
        let holds = [
            AdminState::Drain,
            AdminState::Maintenance,
            AdminState::Terminate,
        ];
        let states = holds.map(|hold| health.under_admin_state(Some(hold)));
        assert_eq!(states, expected, "{health:?}");
        assert!(states.iter().all(|state| !state.is_up()));
        assert_eq!(health.under_admin_state(None), health);
    }
}

#[test]
fn warns_when_no_worker_is_left_for_new_connections() {
    let mut harness = started();
    harness.command(&admin_command("worker1", set_state(AdminState::Drain)));
    let result = harness.command(&admin_command(
        "worker2",
        set_state(AdminState::Maintenance),
    ));
    assert_eq!(result.without_worker, ["service0"]);
    let serves = "service0 has no worker now: the fallback on the manager serves";
    assert_eq!(result.warnings, [serves]);
    assert_eq!(harness.selected(), MANAGER);
    harness.command(&admin_command("worker2", AdminAction::Undrain));
    assert_eq!(harness.selected(), "worker2");
}

#[test]
fn silence_in_maintenance_raises_no_warning() {
    let mut harness = started();
    harness.command(&admin_command(
        "worker1",
        set_state(AdminState::Maintenance),
    ));
    harness.agents.remove("worker1");
    harness.advance(DOWN_AFTER + ms(1));
    let snapshot = harness.core.snapshot(harness.now);
    let worker = &snapshot.services[0].backends[0];
    assert_eq!(worker.health, Health::Down);
    assert_eq!(worker.state, Health::Down);
    let down = harness
        .events
        .iter()
        .find(|event| matches!(event, Event::WorkerDown { worker, .. } if worker == "worker1"));
    assert_eq!(down.unwrap().severity(), Severity::Info);
}

#[test]
fn orders_persist_over_a_restart() {
    let mut harness = started();
    harness.command(&admin_command("worker1", set_state(AdminState::Drain)));
    let kept = serde_json::to_string(harness.core.admin_overrides()).unwrap();
    // The worst case: the maps still say what was before the order.
    let adopted = AdoptedState {
        selections: [(WEB, BackendId(1))].into(),
        up: [BackendId(1), BackendId(2)].into(),
        overrides: serde_json::from_str(&kept).unwrap(),
        ..AdoptedState::default()
    };
    let core = Core::resume(lab(Threshold::Bytes(64 * MIB)), &adopted, harness.now);
    let mut harness = Harness::with_core(core, harness.now);
    assert_eq!(harness.selected(), "worker2");
    harness.start("worker1", 600);
    harness.start("worker2", 300);
    harness.advance(ms(5_000));
    assert_eq!(harness.selected(), "worker2");
    let snapshot = harness.core.snapshot(harness.now);
    let mark = snapshot.services[0].backends[0]
        .admin_state
        .clone()
        .unwrap();
    assert_eq!((mark.value, mark.by.as_str()), (AdminState::Drain, "root"));
    assert_eq!(
        (mark.at_ms, mark.reason.as_deref()),
        (1_000, Some("new disk"))
    );
}

#[test]
fn an_order_for_one_service_leaves_the_others_alone() {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    let workers = ["worker1", "worker2"];
    let other = service(1, 4, &workers, Threshold::Bytes(64 * MIB));
    settings.services.push(other);
    let mut harness = Harness::new(settings);
    harness.start("worker1", 600);
    harness.start("worker2", 300);
    let for_service = |action| AdminCommand {
        service: Some("service1".to_owned()),
        ..admin_command("worker1", action)
    };
    harness.command(&for_service(set_state(AdminState::Drain)));
    assert_eq!(harness.maps.selection[&WEB], Some(BackendId(1)));
    assert_eq!(harness.maps.selection[&ServiceId(1)], Some(BackendId(5)));
    // A general order cannot be taken back in part, but takes the special one back with it.
    harness.command(&admin_command("worker1", set_state(AdminState::Drain)));
    assert_eq!(harness.maps.selection[&WEB], Some(BackendId(2)));
    let refused = harness.refusal(&for_service(AdminAction::Undrain));
    assert!(matches!(refused, AdminError::SetForAllServices { .. }));
    harness.command(&admin_command("worker1", AdminAction::Undrain));
    assert_eq!(harness.maps.selection[&WEB], Some(BackendId(1)));
    assert_eq!(harness.maps.selection[&ServiceId(1)], Some(BackendId(4)));
}

#[test]
fn weight_persists_and_weight_0_drains() {
    let mut harness = started();
    harness.command(&admin_command(
        "worker1",
        AdminAction::Weight { percent: 50 },
    ));
    assert_eq!(harness.selected(), "worker1");
    let set = harness
        .core
        .admin_overrides()
        .effective("worker1", "service0");
    assert_eq!(set.weight_percent(), 50);
    harness.command(&admin_command(
        "worker1",
        AdminAction::Weight { percent: 0 },
    ));
    assert_eq!(harness.maps.backends[&BackendId(1)].0, Health::Draining);
    assert_eq!(harness.selected(), "worker2");
    harness.command(&admin_command(
        "worker1",
        AdminAction::Weight { percent: 100 },
    ));
    assert_eq!(harness.selected(), "worker1");
    assert!(harness.core.admin_overrides().is_empty());
}

#[test]
fn refuses_unknown_names_and_lists_the_known_ones() {
    let mut harness = started();
    let cases = [
        (
            admin_command("worker3", AdminAction::Undrain),
            "did you mean worker1?",
        ),
        (
            admin_command("unknown", AdminAction::Undrain),
            "only worker1, worker2",
        ),
        (
            admin_command("worker1", AdminAction::Weight { percent: 1001 }),
            "expected 0 to 1000",
        ),
        (
            AdminCommand {
                service: Some("service7".to_owned()),
                ..admin_command("worker1", AdminAction::Undrain)
            },
            "did you mean service0?",
        ),
    ];
    for (order, says) in cases {
        let refused = harness.refusal(&order);
        assert!(refused.to_string().contains(says), "{refused}");
    }
    assert!(harness.core.admin_overrides().is_empty());
}

#[test]
fn order_for_a_removed_worker_can_be_undone() {
    let mut harness = started();
    harness.command(&admin_command("worker2", set_state(AdminState::Drain)));
    harness.command(&admin_command(
        "worker2",
        AdminAction::Weight { percent: 50 },
    ));
    let mut settings = lab(Threshold::Auto);
    settings.services[0].backends.truncate(1);
    harness.reconfigure(settings);
    let refused = |harness: &mut Harness, action| {
        let refused = harness.refusal(&admin_command("worker2", action));
        assert!(matches!(refused, AdminError::UnknownWorker { .. }));
    };
    refused(&mut harness, set_state(AdminState::Maintenance));
    refused(&mut harness, AdminAction::Weight { percent: 20 });
    assert_eq!(harness.core.admin_overrides().commands().len(), 2);
    for action in [AdminAction::Undrain, AdminAction::Weight { percent: 100 }] {
        let result = harness.command(&admin_command("worker2", action));
        assert_eq!(result.warnings, ["no service has worker2 there"]);
    }
    assert!(harness.core.admin_overrides().is_empty());
    refused(&mut harness, AdminAction::Undrain);
}

#[test]
fn names_the_order_that_another_replaces() {
    let mut harness = started();
    harness.command(&admin_command(
        "worker1",
        set_state(AdminState::Maintenance),
    ));
    let drain = AdminCommand {
        reason: None,
        ..admin_command("worker1", set_state(AdminState::Drain))
    };
    let replaced = "this replaces an earlier order: worker1 is in maintenance by root: new disk";
    assert_eq!(harness.command(&drain).warnings, [replaced]);
    assert_eq!(harness.command(&drain).warnings, [""; 0]);
    let weight = admin_command("worker1", AdminAction::Weight { percent: 50 });
    assert_eq!(harness.command(&weight).warnings, [""; 0]);
    let undrain = admin_command("worker1", AdminAction::Undrain);
    assert_eq!(harness.command(&undrain).warnings, [""; 0]);
}
