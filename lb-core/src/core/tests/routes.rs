//! A worker without a route is not chosen; an event says why; it is chosen again once there is a route.

use std::collections::BTreeSet;

use super::*;

fn find(world: &mut World, link: WorkerRoute) {
    let links = BTreeMap::from([(BackendId(1), link)]);
    world.core.handle_routes(&links, world.now);
    world.wake();
}

fn takers(world: &World) -> BTreeSet<BackendId> {
    let maps = &world.maps;
    maps.takers(WEB, maps.selection[&WEB]).into_iter().collect()
}

#[test]
fn a_worker_is_not_chosen_while_no_route_leads_to_it() {
    for policy in [Policy::Memory, Policy::RoundRobin] {
        let mut settings = lab(Threshold::Bytes(64 * MIB));
        settings.services[0].policy = policy;
        let mut world = World::new(settings.clone());
        find(&mut world, WorkerRoute::Missing);
        world.start("worker1", 600);
        assert_eq!(world.selected(), MANAGER, "{policy}");
        assert!(world.kinds().contains(&"worker_ineligible".to_owned()));
        world.start("worker2", 300);
        assert_eq!(world.state("worker1"), Health::Unreachable);
        assert_eq!(world.maps.backends[&BackendId(1)].0, Health::Unreachable);
        assert_eq!(takers(&world), BTreeSet::from([BackendId(2)]), "{policy}");
        let backends = &world.core.snapshot(world.now).services[0].backends;
        let why = backends[0].ineligible_reason.as_deref().expect("a reason");
        assert!(why.contains("no route to worker1 at 192.168.57.1"), "{why}");

        // It outlasts a reload, and ends by itself.
        world.reconfigure(settings);
        assert_eq!(world.state("worker1"), Health::Unreachable);
        world.kinds();
        find(&mut world, WorkerRoute::Direct);
        assert_eq!(world.state("worker1"), Health::Up);
        world.pass(ms(50));
        assert!(takers(&world).contains(&BackendId(1)), "{policy}");
        assert!(world.kinds().contains(&"worker_eligible".to_owned()));
    }
}

#[test]
fn a_worker_beyond_an_interface_without_programs_is_out_of_reach_too() {
    let mut world = World::new(lab(Threshold::Bytes(64 * MIB)));
    find(&mut world, WorkerRoute::Unattached("eth7".to_owned()));
    world.start("worker1", 600);
    assert_eq!(world.selected(), MANAGER);
    assert_eq!(world.state("worker1"), Health::Unreachable);
    let backends = &world.core.snapshot(world.now).services[0].backends;
    let why = backends[0].ineligible_reason.as_deref().expect("a reason");
    assert!(why.contains("leads through eth7"), "{why}");
    find(&mut world, WorkerRoute::Direct);
    assert_eq!(world.state("worker1"), Health::Up);
    assert_eq!(world.selected(), "worker1");
}

#[test]
fn worker_that_a_reload_makes_unreachable_is_never_selected() {
    let mut world = World::new(lab(Threshold::Bytes(64 * MIB)));
    world.start("worker1", 600);
    world.start("worker2", 300);
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].backends[0].id = BackendId(7);
    world.kinds();
    let links = BTreeMap::from([(BackendId(7), WorkerRoute::Missing)]);
    world.reconfigure_with(settings, &links);
    assert_eq!(world.selected(), "worker2");
    assert_eq!(world.kinds(), ["worker_ineligible", "selection_changed"]);
}
