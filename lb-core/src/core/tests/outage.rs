//! The panic threshold: heartbeats that stop all at once, while clients are answered or not.

use super::failing::{Counted, world};
use super::*;

const WORKERS: [&str; 3] = ["worker1", "worker2", "worker3"];

/// Lets time pass in which the given backends answer a client every 50 ms.
fn pass(world: &mut World, counted: &mut Counted, time: Duration, answering: &[u32]) {
    let end = world.now + time;
    while world.now < end {
        world.pass(ms(50));
        answering.iter().for_each(|it| counted.answer(*it, world));
        counted.sample(world);
    }
}

fn states(world: &World) -> [Health; 3] {
    WORKERS.map(|worker| world.state(worker))
}

#[test]
fn workers_that_answer_clients_stay_up_without_heartbeats() {
    let (mut world, mut counted) = world(&WORKERS, |_| ());
    let agents = std::mem::take(&mut world.agents);
    pass(&mut world, &mut counted, ms(5_000), &[1, 2]);
    // The third has no client.
    assert_eq!(states(&world), [Health::Up, Health::Up, Health::Down]);
    assert_eq!(world.selected(), "worker1");
    let kinds = world.kinds();
    let missing = kinds
        .iter()
        .filter(|it| *it == "heartbeats_missing")
        .count();
    assert_eq!((missing, kinds.len()), (1, 2), "{kinds:?}");
    let problem = world.core.snapshot(world.now).services[0].problem.clone();
    assert!(problem.is_some_and(|it| it.contains("2 stay up because their packets arrive")));

    world.agents = agents;
    pass(&mut world, &mut counted, ms(1_000), &[1]);
    assert_eq!(states(&world), [Health::Up; 3]);
    let kinds = world.kinds();
    assert!(kinds.contains(&"heartbeats_back".to_owned()), "{kinds:?}");
    assert_eq!(world.core.snapshot(world.now).services[0].problem, None);
}

#[test]
fn without_heartbeats_and_traffic_the_service_fails_over_at_down_after() {
    let (mut world, mut counted) = world(&WORKERS, |_| ());
    pass(&mut world, &mut counted, ms(1_000), &[1, 2, 3]);
    world.agents.clear();
    let last = world.now;
    pass(&mut world, &mut counted, ms(1_450), &[]);
    assert_eq!(states(&world), [Health::Up; 3]);
    world.pass(last + DOWN_AFTER + ms(1) - world.now);
    assert_eq!(states(&world), [Health::Down; 3]);
    assert_eq!(world.selected(), MANAGER);
}

#[test]
fn single_silent_worker_is_down_at_down_after_despite_its_packets() {
    let (mut world, mut counted) = world(&WORKERS, |_| ());
    world.agents.remove("worker1");
    let last = world.now;
    pass(&mut world, &mut counted, ms(1_450), &[1, 2, 3]);
    assert_eq!(world.state("worker1"), Health::Up);
    world.pass(last + DOWN_AFTER + ms(1) - world.now);
    assert_eq!(world.state("worker1"), Health::Down);
}

#[test]
fn a_worker_without_an_agent_is_not_silent_with_another_one() {
    let (mut world, mut counted) = world(&["worker1", "sorry"], |settings| {
        settings.services[0].backends[1].agent = false;
    });
    world.agents.clear();
    pass(&mut world, &mut counted, ms(2_000), &[1, 2]);
    assert_eq!(world.state("worker1"), Health::Down);
}

#[test]
fn handshakes_detect_a_dead_worker_during_a_heartbeat_outage() {
    let (mut world, mut counted) = world(&["worker1", "worker2"], |settings| {
        settings.services[0].fallback = None;
    });
    world.agents.clear();
    pass(&mut world, &mut counted, ms(3_000), &[1, 2]);
    counted.ignore(1, 3);
    counted.sample(&mut world);
    assert_eq!(world.state("worker1"), Health::Failing);
    assert_eq!(world.selected(), "worker2");
    // Silent in both ways, the last one goes, too.
    counted.ignore(2, 3);
    counted.sample(&mut world);
    assert_eq!(world.selected(), NO_BACKEND);
}

#[test]
fn without_panic_threshold_or_passive_checks_heartbeats_alone_decide() {
    let changes: [fn(&mut CoreSettings); 3] = [
        |settings| settings.panic_percent = None,
        |settings| settings.failing.after = 0,
        |settings| settings.services[0].passive_checks = false,
    ];
    for change in changes {
        let (mut world, mut counted) = world(&WORKERS, change);
        world.agents.clear();
        pass(&mut world, &mut counted, ms(1_600), &[1, 2, 3]);
        assert_eq!(states(&world), [Health::Down; 3]);
    }
}
