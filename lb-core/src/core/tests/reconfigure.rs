//! A changed configuration: known state stays, and only what must change changes.

use super::*;

fn started() -> World {
    let mut world = World::new(lab(Threshold::Auto));
    world.start("worker1", 600);
    world.start("worker2", 500);
    world.events.clear();
    world
}

impl World {
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
        self.wake();
    }
}

#[test]
fn the_same_settings_change_nothing() {
    let mut world = started();
    world.pass(ms(250));
    let before = world.core.snapshot(world.now);
    let maps = (world.maps.backends.clone(), world.maps.selection.clone());
    world.reconfigure(lab(Threshold::Auto));
    assert_eq!(world.core.snapshot(world.now), before);
    assert_eq!(
        maps,
        (world.maps.backends.clone(), world.maps.selection.clone())
    );
    assert_eq!(world.kinds(), [""; 0]);
    // Deadlines are as they were.
    world.agents.remove("worker1");
    world.pass(DOWN_AFTER);
    assert_eq!(world.state("worker1"), Health::Down);
}

#[test]
fn a_removed_worker_is_left_and_a_new_one_waits_for_its_heartbeat() {
    let mut world = started();
    assert_eq!(world.selected(), "worker1");
    let mut settings = lab(Threshold::Auto);
    settings.services[0].backends.remove(0);
    let newcomer = BackendSettings {
        id: BackendId(7),
        worker: "worker3".to_owned(),
        ..settings.services[0].backends[0].clone()
    };
    settings.services[0].backends.push(newcomer);
    world.reconfigure(settings);
    assert_eq!(world.selected(), "worker2");
    assert_eq!(world.maps.selection[&WEB], Some(BackendId(2)));
    assert!(!world.maps.backends.contains_key(&BackendId(1)));
    assert_eq!(world.state("worker3"), Health::Unknown);
    assert_eq!(world.kinds(), ["selection_changed"]);
    world.agents.remove("worker1");
    let unknown = report("worker1", 9, 1, 600);
    assert_eq!(world.hear(&unknown), HeartbeatOutcome::UnknownWorker);
    world.start("worker3", 650);
    world.agents.remove("worker2");
    world.pass(DOWN_AFTER + ms(1));
    assert_eq!(world.selected(), "worker3");
}

/// The lab with another worker in the place of `worker1`.
fn lab_with(worker: &str) -> CoreSettings {
    let mut settings = lab(Threshold::Auto);
    worker.clone_into(&mut settings.services[0].backends[0].worker);
    settings
}

#[test]
fn recordings_of_a_removed_worker_do_not_count_when_it_is_back() {
    let mut world = started();
    world.start("worker1", 600);
    world.pass(ms(1_000));
    let boot = world.agents["worker1"].sequence.unwrap().boot.0;
    let heard = world.agents.remove("worker1").unwrap();
    let next = heard.sequence.unwrap().number;
    world.reconfigure(lab_with("worker3"));
    world.pass(ms(5_000));
    world.reconfigure(lab_with("worker1"));
    for number in 1..next {
        let recording = report("worker1", boot, number, 600);
        assert_ne!(
            world.hear(&recording),
            HeartbeatOutcome::Accepted,
            "{number}"
        );
    }
    // Nor what it had said before its agent's restart.
    let recording = report("worker1", boot - 2, 1, 600);
    assert_eq!(world.hear(&recording), HeartbeatOutcome::Duplicate);
    assert_eq!(world.state("worker1"), Health::Unknown);
    for number in next..next + 2 {
        let own = report("worker1", boot, number, 600);
        assert_eq!(world.hear(&own), HeartbeatOutcome::Accepted);
    }
    assert_eq!(world.state("worker1"), Health::Up);
}

#[test]
fn only_the_latest_removed_workers_are_remembered() {
    let mut world = started();
    world.agents.remove("worker1");
    for number in 0..1_100 {
        world.reconfigure(lab_with(&format!("passing{number}")));
        world.pass(ms(1));
    }
    assert_eq!(world.core.removed.len(), 1_024);
    assert!(!world.core.removed.contains_key("worker1"));
    assert!(world.core.removed.contains_key("passing1098"));
}

#[test]
fn new_service_starts_with_the_known_state_of_its_workers() {
    let mut world = started();
    let mut settings = lab(Threshold::Auto);
    let other = service(1, 4, &["worker2"], Threshold::Auto);
    settings.services.push(other);
    world.reconfigure(settings);
    assert_eq!(world.maps.selection[&ServiceId(1)], Some(BackendId(4)));
    assert_eq!(world.maps.selection[&WEB], Some(BackendId(1)));
    assert_eq!(world.kinds(), ["selection_changed"]);
    world.reconfigure(lab(Threshold::Auto));
    assert!(!world.maps.selection.contains_key(&ServiceId(1)));
    assert_eq!(world.kinds(), [""; 0]);
}

#[test]
fn orders_hold_over_a_reload() {
    let mut world = started();
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
    world.core.handle_admin_command(&order, world.now).unwrap();
    world.wake();
    let mut settings = lab(Threshold::Auto);
    let other = service(1, 4, &["worker1", "worker2"], Threshold::Auto);
    settings.services.push(other);
    world.reconfigure(settings);
    // The order was for all services, also for those to come.
    assert_eq!(world.maps.backends[&BackendId(4)].0, Health::Draining);
    assert_eq!(world.maps.selection[&ServiceId(1)], Some(BackendId(5)));
    assert_eq!(world.maps.selection[&WEB], Some(BackendId(2)));
}

#[test]
fn a_shorter_down_after_counts_from_the_last_heartbeat() {
    let mut world = started();
    world.agents.clear();
    world.pass(ms(400));
    let mut settings = lab(Threshold::Auto);
    settings.down_after = ms(500);
    world.reconfigure(settings);
    assert_eq!(world.state("worker1"), Health::Up);
    world.pass(ms(101));
    assert_eq!(world.state("worker1"), Health::Down);
}
