//! Policy `memory` does not oscillate: it keeps a worker for the hold's time after a switch.

use super::*;

const DEFAULT_HOLD: Duration = Duration::from_millis(1_000);

/// The lab with both workers up, worker2 selected by preference just now, and worker1 the better again.
fn waiting() -> World {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].memory.hold = DEFAULT_HOLD;
    let mut world = World::new(settings);
    world.start("worker1", 300);
    world.start("worker2", 290);
    world.pass(ms(5_000));
    world.say("worker2", 500);
    assert_eq!(world.selected(), "worker2");
    world.say("worker1", 690);
    world
}

impl World {
    fn say(&mut self, worker: &str, available_mib: u64) {
        let agent = self.agents.get_mut(worker).expect("a running agent");
        agent.memory.available_bytes = available_mib * MIB;
        self.beat(worker);
    }

    fn waits_for(&self) -> Option<WaitingSnapshot> {
        self.core.snapshot(self.now).services[0].waiting.clone()
    }
}

#[test]
fn better_worker_takes_over_exactly_at_the_end_of_the_hold() {
    let mut world = waiting();
    let waits = world.waits_for().expect("worker1 waits");
    assert_eq!((waits.worker.as_str(), waits.left_ms), ("worker1", 1_000));
    world.events.clear();
    world.pass(DEFAULT_HOLD - Duration::from_nanos(1));
    assert_eq!(world.selected(), "worker2");
    // No heartbeat comes now: the hold ends by itself.
    assert_eq!(
        world.core.poll_timeout(),
        Some(world.now + Duration::from_nanos(1))
    );
    world.pass(Duration::from_nanos(1));
    assert_eq!(world.selected(), "worker1");
    assert_eq!(world.waits_for(), None);
    assert_eq!(world.kinds(), ["selection_changed"]);
}

#[test]
fn worker_that_is_no_longer_better_does_not_take_over() {
    let mut world = waiting();
    world.say("worker1", 510);
    assert_eq!(world.waits_for(), None);
    world.pass(ms(5_000));
    assert_eq!(world.selected(), "worker2");
}

#[test]
fn failover_does_not_wait_and_begins_a_hold() {
    let mut world = waiting();
    world.pass(ms(500));
    let agent = world.agents.get_mut("worker2").expect("an agent");
    agent.healthy = false;
    world.beat("worker2");
    assert_eq!(world.selected(), "worker1");
    world.agents.get_mut("worker2").expect("an agent").healthy = true;
    world.say("worker1", 100);
    world.pass(ms(999));
    assert_eq!(world.selected(), "worker1");
    world.pass(ms(1));
    assert_eq!(world.selected(), "worker2");
}

#[test]
fn drain_does_not_wait_for_the_end_of_the_hold() {
    let mut world = waiting();
    let drain = AdminCommand {
        worker: "worker2".to_owned(),
        service: None,
        action: AdminAction::SetState {
            state: AdminState::Drain,
        },
        by: "root".to_owned(),
        at_ms: 0,
        reason: None,
    };
    world
        .core
        .handle_admin_command(&drain, world.now)
        .expect("a worker");
    world.drain();
    assert_eq!(world.selected(), "worker1");
}

#[test]
fn worker_without_headroom_is_left_at_once_for_one_with_headroom() {
    let mut world = waiting();
    // 35 MiB, a twentieth, are its reserve.
    world.say("worker2", 35);
    assert_eq!(world.selected(), "worker1");
    let said = world.events.last().expect("an event").to_string();
    assert!(said.ends_with("worker2 has none to spare"), "{said}");

    let mut settings = lab(Threshold::Bytes(MIB));
    settings.services[0].memory.hold = DEFAULT_HOLD;
    let mut world = World::new(settings);
    world.start("worker1", 10);
    world.start("worker2", 12);
    assert_eq!(world.selected(), "worker2");
    world.say("worker1", 20);
    assert_eq!(world.selected(), "worker2");
}

#[test]
fn a_reload_changes_the_hold_and_a_restart_begins_one() {
    let mut world = waiting();
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    world.reconfigure(settings.clone());
    assert_eq!(world.selected(), "worker1");

    settings.services[0].memory.hold = DEFAULT_HOLD;
    let adopted = AdoptedState {
        selections: [(WEB, BackendId(1))].into(),
        ..AdoptedState::default()
    };
    let core = Core::resume(settings, &adopted, world.now);
    let mut world = World::around(core, world.now);
    world.start("worker1", 100);
    world.start("worker2", 500);
    assert_eq!(world.selected(), "worker1");
    world.pass(DEFAULT_HOLD);
    assert_eq!(world.selected(), "worker2");
}

#[test]
fn first_selection_begins_no_hold() {
    let mut settings = lab(Threshold::Auto);
    settings.services[0].memory.hold = DEFAULT_HOLD;
    let mut world = World::new(settings);
    world.start("worker1", 100);
    world.start("worker2", 500);
    assert_eq!(
        world.selected(),
        "worker2",
        "the worker of the first heartbeat does not stay selected"
    );
}
