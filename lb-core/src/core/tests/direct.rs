//! Mode `dsr`: workers that can answer clients directly serve; an event says what the others lack.

use super::*;
use HeartbeatOutcome::Accepted;

fn settings(mode: Mode) -> CoreSettings {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].mode = mode;
    settings
}

fn web() -> Endpoint {
    settings(Mode::Dsr).services[0].endpoint()
}

fn equipped(worker: &str, boot: u64, number: u64, available_mib: u64) -> Report {
    Report {
        translates: vec![web()],
        ..report(worker, boot, number, available_mib)
    }
}

fn ineligible_reason(world: &World, worker: &str) -> Option<String> {
    let snapshot = world.core.snapshot(world.now);
    let mut backends = snapshot.services[0].backends.iter();
    let backend = backends.find(|backend| backend.name == worker);
    backend.expect("a worker").ineligible_reason.clone()
}

#[test]
fn a_worker_without_dsr_translator_is_not_chosen_and_one_event_has_the_reason() {
    let mut world = World::new(settings(Mode::Dsr));
    assert_eq!(world.receive("worker1", 1, 1, 600), Accepted);
    assert_eq!(world.hear(&equipped("worker2", 1, 1, 300)), Accepted);
    assert_eq!(world.selected(), "worker2");
    assert_eq!(world.state("worker1"), Health::Ineligible);
    assert_eq!(world.maps.backends[&BackendId(1)].0, Health::Ineligible);
    let why = "worker1 has no DSR translator for 192.168.56.101:80/tcp: start its agent with --dsr";
    assert_eq!(ineligible_reason(&world, "worker1").as_deref(), Some(why));
    assert_eq!(ineligible_reason(&world, "worker2"), None);
    assert_eq!(world.receive("worker1", 1, 2, 600), Accepted);
    let told: Vec<String> = world
        .events
        .iter()
        .filter(|event| matches!(event, Event::WorkerIneligible { .. }))
        .map(Event::to_string)
        .collect();
    assert_eq!(told, [format!("service0: {why}")]);
    world.events.clear();

    // Another service's DSR translator does not help, its own does.
    let other = Endpoint {
        protocol: Protocol::Udp,
        ..web()
    };
    let mut elsewhere = report("worker1", 1, 3, 600);
    elsewhere.translates = vec![other];
    assert_eq!(world.hear(&elsewhere), Accepted);
    assert_eq!(world.selected(), "worker2");
    assert_eq!(world.hear(&equipped("worker1", 1, 4, 600)), Accepted);
    assert_eq!(world.selected(), "worker1");
    assert_eq!(world.kinds(), ["worker_eligible", "selection_changed"]);

    // The DSR translator is gone: so are the connections.
    assert_eq!(world.receive("worker1", 1, 5, 600), Accepted);
    assert_eq!(world.selected(), "worker2");
    assert_eq!(world.maps.backends[&BackendId(1)].0, Health::Ineligible);
    assert_eq!(world.kinds(), ["worker_ineligible", "selection_changed"]);
}

#[test]
fn a_worker_behind_a_router_is_not_chosen() {
    let mut world = World::new(settings(Mode::Dsr));
    for (worker, mib) in [("worker1", 600), ("worker2", 300)] {
        assert_eq!(world.hear(&equipped(worker, 1, 1, mib)), Accepted);
    }
    assert_eq!(world.selected(), "worker1");
    let mut links = BTreeMap::from([
        (BackendId(1), WorkerRoute::ViaRouter),
        (BackendId(2), WorkerRoute::Direct),
    ]);
    world.core.handle_routes(&links, world.now);
    world.wake();
    assert_eq!(world.selected(), "worker2");
    let why = ineligible_reason(&world, "worker1").expect("a reason");
    assert!(why.contains("behind a router"), "{why}");

    // Known routes outlast a change of the configuration.
    world.reconfigure(settings(Mode::Dsr));
    assert_eq!(world.state("worker1"), Health::Ineligible);
    links.insert(BackendId(1), WorkerRoute::Direct);
    world.core.handle_routes(&links, world.now);
    world.wake();
    assert_eq!(world.selected(), "worker1");
}

#[test]
fn without_an_eligible_worker_the_manager_serves() {
    let mut world = World::new(settings(Mode::Dsr));
    world.start("worker1", 600);
    assert_eq!(world.selected(), MANAGER);
    assert_eq!(world.state("worker1"), Health::Ineligible);
}

#[test]
fn services_of_other_modes_need_no_dsr_translator() {
    let mut world = World::new(settings(Mode::Nat));
    world.start("worker1", 600);
    let links = BTreeMap::from([(BackendId(1), WorkerRoute::ViaRouter)]);
    world.core.handle_routes(&links, world.now);
    world.wake();
    assert_eq!(world.selected(), "worker1");
    assert_eq!(ineligible_reason(&world, "worker1"), None);
}

#[test]
fn restart_adopts_dsr_eligibility_by_service() {
    let now = Instant::now();
    let mut settings = settings(Mode::Nat);
    let mut direct = service(1, 10, &["worker1"], Threshold::Auto);
    direct.address.set_port(81);
    direct.mode = Mode::Dsr;
    settings.services.push(direct);
    let adopted = AdoptedState {
        up: [BackendId(1)].into(),
        ..AdoptedState::default()
    };
    let mut world = World::around(Core::resume(settings, &adopted, now), now);
    assert_eq!(world.state("worker1"), Health::Up);
    assert_eq!(world.maps.backends[&BackendId(10)].0, Health::Ineligible);
    assert!(
        !world.kinds().contains(&"worker_ineligible".to_owned()),
        "not heard yet"
    );
    assert_eq!(world.receive("worker1", 1, 1, 600), Accepted);
    assert_eq!(world.kinds(), ["worker_ineligible", "selection_changed"]);
}

#[test]
fn a_restart_makes_no_worker_ineligible_before_its_first_heartbeat() {
    let now = Instant::now();
    let adopted = AdoptedState {
        selections: [(WEB, BackendId(1))].into(),
        ..AdoptedState::default()
    };
    let core = Core::resume(settings(Mode::Dsr), &adopted, now);
    let mut world = World::around(core, now);
    assert_eq!(world.selected(), "worker1");
    assert_eq!(world.state("worker1"), Health::Up);
    assert_eq!(world.receive("worker1", 1, 1, 600), Accepted);
    assert_eq!(world.state("worker1"), Health::Ineligible);
    assert_eq!(world.selected(), MANAGER);
}
