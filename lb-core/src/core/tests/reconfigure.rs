//! A changed configuration: known state stays, and only what must change changes.

use super::*;

fn started() -> Harness {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 600);
    harness.start("worker2", 500);
    harness.events.clear();
    harness
}

impl Harness {
    pub fn reconfigure(&mut self, settings: CoreSettings) {
        self.reconfigure_with(settings, &BTreeMap::new());
    }

    pub fn reconfigure_with(
        &mut self,
        settings: CoreSettings,
        links: &BTreeMap<BackendId, WorkerRoute>,
    ) {
        self.core.reconfigure(settings, links, self.now);
        // All map updates are emitted again.
        self.maps = Maps::default();
        self.handle_timeout();
    }
}

#[test]
fn the_same_settings_change_nothing() {
    let mut harness = started();
    harness.advance(ms(250));
    let before = harness.core.snapshot(harness.now);
    let maps = (
        harness.maps.backends.clone(),
        harness.maps.selection.clone(),
    );
    harness.reconfigure(lab(Threshold::Auto));
    assert_eq!(harness.core.snapshot(harness.now), before);
    assert_eq!(
        maps,
        (
            harness.maps.backends.clone(),
            harness.maps.selection.clone()
        )
    );
    assert_eq!(harness.kinds(), [""; 0]);
    // Deadlines are as they were.
    harness.agents.remove("worker1");
    harness.advance(DOWN_AFTER);
    assert_eq!(harness.state("worker1"), Health::Down);
}

#[test]
fn a_removed_worker_is_left_and_a_new_one_waits_for_its_heartbeat() {
    let mut harness = started();
    assert_eq!(harness.selected(), "worker1");
    let mut settings = lab(Threshold::Auto);
    settings.services[0].backends.remove(0);
    let newcomer = BackendSettings {
        id: BackendId(7),
        worker: "worker3".to_owned(),
        ..settings.services[0].backends[0].clone()
    };
    settings.services[0].backends.push(newcomer);
    harness.reconfigure(settings);
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(harness.maps.selection[&WEB], Some(BackendId(2)));
    assert!(!harness.maps.backends.contains_key(&BackendId(1)));
    assert_eq!(harness.state("worker3"), Health::Unknown);
    assert_eq!(harness.kinds(), ["selection_changed"]);
    harness.agents.remove("worker1");
    let unknown = report("worker1", 9, 1, 600);
    assert_eq!(
        harness.handle_heartbeat(&unknown),
        HeartbeatOutcome::UnknownWorker
    );
    harness.start("worker3", 650);
    harness.agents.remove("worker2");
    harness.advance(DOWN_AFTER + ms(1));
    assert_eq!(harness.selected(), "worker3");
}

/// The lab with another worker in the place of `worker1`.
fn lab_with(worker: &str) -> CoreSettings {
    let mut settings = lab(Threshold::Auto);
    worker.clone_into(&mut settings.services[0].backends[0].worker);
    settings
}

#[test]
fn recordings_of_a_removed_worker_do_not_count_when_it_is_back() {
    let mut harness = started();
    harness.start("worker1", 600);
    harness.advance(ms(1_000));
    let boot = harness.agents["worker1"].sequence.unwrap().boot.0;
    let heard = harness.agents.remove("worker1").unwrap();
    let next = heard.sequence.unwrap().number;
    harness.reconfigure(lab_with("worker3"));
    harness.advance(ms(5_000));
    harness.reconfigure(lab_with("worker1"));
    for number in 1..next {
        let recording = report("worker1", boot, number, 600);
        assert_ne!(
            harness.handle_heartbeat(&recording),
            HeartbeatOutcome::Accepted,
            "{number}"
        );
    }
    // Nor what it had text before its agent's restart.
    let recording = report("worker1", boot - 2, 1, 600);
    assert_eq!(
        harness.handle_heartbeat(&recording),
        HeartbeatOutcome::Duplicate
    );
    assert_eq!(harness.state("worker1"), Health::Unknown);
    for number in next..next + 2 {
        let own = report("worker1", boot, number, 600);
        assert_eq!(harness.handle_heartbeat(&own), HeartbeatOutcome::Accepted);
    }
    assert_eq!(harness.state("worker1"), Health::Up);
}

#[test]
fn only_the_latest_removed_workers_are_remembered() {
    let mut harness = started();
    harness.agents.remove("worker1");
    for number in 0..1_100 {
        harness.reconfigure(lab_with(&format!("passing{number}")));
        harness.advance(ms(1));
    }
    assert_eq!(harness.core.removed.len(), 1_024);
    assert!(!harness.core.removed.contains_key("worker1"));
    assert!(harness.core.removed.contains_key("passing1098"));
}

#[test]
fn new_service_starts_with_the_known_state_of_its_workers() {
    let mut harness = started();
    let mut settings = lab(Threshold::Auto);
    let other = service(1, 4, &["worker2"], Threshold::Auto);
    settings.services.push(other);
    harness.reconfigure(settings);
    assert_eq!(harness.maps.selection[&ServiceId(1)], Some(BackendId(4)));
    assert_eq!(harness.maps.selection[&WEB], Some(BackendId(1)));
    assert_eq!(harness.kinds(), ["selection_changed"]);
    harness.reconfigure(lab(Threshold::Auto));
    assert!(!harness.maps.selection.contains_key(&ServiceId(1)));
    assert_eq!(harness.kinds(), [""; 0]);
}

#[test]
fn orders_hold_over_a_reload() {
    let mut harness = started();
    let order = AdminCommand {
        worker: "worker1".to_owned(),
        service: None,
        action: AdminAction::SetState {
            state: AdminState::Drain,
        },
        by: "root".to_owned(),
        at_ms: 0,
        reason: None,
    };
    harness
        .core
        .handle_admin_command(&order, harness.now)
        .unwrap();
    harness.handle_timeout();
    let mut settings = lab(Threshold::Auto);
    let other = service(1, 4, &["worker1", "worker2"], Threshold::Auto);
    settings.services.push(other);
    harness.reconfigure(settings);
    // The order was for all services, also for those to come.
    assert_eq!(harness.maps.backends[&BackendId(4)].0, Health::Draining);
    assert_eq!(harness.maps.selection[&ServiceId(1)], Some(BackendId(5)));
    assert_eq!(harness.maps.selection[&WEB], Some(BackendId(2)));
}

#[test]
fn a_shorter_down_after_counts_from_the_last_heartbeat() {
    let mut harness = started();
    harness.agents.clear();
    harness.advance(ms(400));
    let mut settings = lab(Threshold::Auto);
    settings.down_after = ms(500);
    harness.reconfigure(settings);
    assert_eq!(harness.state("worker1"), Health::Up);
    harness.advance(ms(101));
    assert_eq!(harness.state("worker1"), Health::Down);
}
