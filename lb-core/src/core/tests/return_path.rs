//! Mode `routed`: a worker whose answers do not pass the manager is not chosen; an event says why, and it is tried again.

use super::*;

fn world() -> World {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].mode = Mode::Routed;
    let mut world = World::new(settings);
    world.start("worker1", 600);
    world.start("worker2", 300);
    count(&mut world, 0, 0);
    world.kinds();
    world
}

/// What the programs have counted of worker 1 until now.
fn count(world: &mut World, packets: u64, unanswered: u64) {
    let answers = ReplyCounters {
        packets,
        unanswered,
    };
    let answers = BTreeMap::from([(BackendId(1), answers)]);
    world.core.handle_reply_counters(&answers, world.now);
    world.wake();
}

#[test]
fn a_worker_whose_answers_do_not_pass_is_not_chosen_until_a_pause_is_over() {
    let mut world = world();
    let mut unanswered = 0;
    for seconds in [10, 20, 40] {
        assert_eq!(world.selected(), "worker1");
        unanswered += 2;
        count(&mut world, 0, unanswered);
        assert_eq!(world.selected(), "worker1");
        unanswered += 1;
        count(&mut world, 0, unanswered);
        assert_eq!(world.selected(), "worker2");
        assert_eq!(world.state("worker1"), Health::Unreachable);
        assert_eq!(world.kinds(), ["worker_ineligible", "selection_changed"]);
        let backends = &world.core.snapshot(world.now).services[0].backends;
        let why = backends[0].ineligible_reason.as_deref().expect("a reason");
        assert!(
            why.starts_with("no answer of worker1 passes the manager"),
            "{why}"
        );

        world.pass(Duration::from_secs(seconds) - ms(1));
        count(&mut world, 0, unanswered);
        assert_eq!(world.selected(), "worker2");
        world.pass(ms(1));
        count(&mut world, 0, unanswered);
        assert_eq!(world.kinds(), ["worker_eligible", "selection_changed"]);
    }
}

#[test]
fn one_answer_shows_that_there_is_a_return_path() {
    let mut world = world();
    for turn in 1..10 {
        count(&mut world, turn, 100 * turn);
    }
    count(&mut world, 9, 902);
    assert_eq!(world.selected(), "worker1");
    count(&mut world, 9, 903);
    assert_eq!(world.selected(), "worker2");
    // One that was on its way.
    count(&mut world, 10, 903);
    assert_eq!(world.selected(), "worker1");
}

#[test]
fn return_path_state_is_reset_when_the_worker_was_down() {
    let mut world = world();
    count(&mut world, 0, 3);
    assert_eq!(world.state("worker1"), Health::Unreachable);
    world.agents.remove("worker1");
    world.pass(Duration::from_secs(2));
    count(&mut world, 0, 9);
    assert_eq!(world.state("worker1"), Health::Down);
    world.start("worker1", 600);
    world.pass(Duration::from_secs(1));
    count(&mut world, 0, 9);
    assert_eq!(world.state("worker1"), Health::Up);
}

#[test]
fn return_path_state_persists_over_a_reload_but_not_a_change_of_mode() {
    let mut world = world();
    count(&mut world, 0, 3);
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].mode = Mode::Routed;
    world.reconfigure(settings);
    assert_eq!(world.state("worker1"), Health::Unreachable);
    world.reconfigure(lab(Threshold::Bytes(64 * MIB)));
    assert_eq!(world.state("worker1"), Health::Up);
}
