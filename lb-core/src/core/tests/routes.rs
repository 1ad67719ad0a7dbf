//! A worker without a route is not chosen; an event says why; it is chosen again once there is a route.

use std::collections::BTreeSet;

use super::*;

fn find(harness: &mut Harness, link: WorkerRoute) {
    let links = BTreeMap::from([(BackendId(1), link)]);
    harness.core.handle_routes(&links, harness.now);
    harness.handle_timeout();
}

fn takers(harness: &Harness) -> BTreeSet<BackendId> {
    let maps = &harness.maps;
    maps.takers(WEB, maps.selection[&WEB]).into_iter().collect()
}

#[test]
fn a_worker_is_not_chosen_while_no_route_leads_to_it() {
    for policy in [Policy::Memory, Policy::RoundRobin] {
        let mut settings = lab(Threshold::Bytes(64 * MIB));
        settings.services[0].policy = policy;
        let mut harness = Harness::new(settings.clone());
        find(&mut harness, WorkerRoute::Missing);
        harness.start("worker1", 600);
        assert_eq!(harness.selected(), MANAGER, "{policy}");
        assert!(harness.kinds().contains(&"worker_ineligible".to_owned()));
        harness.start("worker2", 300);
        assert_eq!(harness.state("worker1"), Health::Unreachable);
        assert_eq!(harness.maps.backends[&BackendId(1)].0, Health::Unreachable);
        assert_eq!(takers(&harness), BTreeSet::from([BackendId(2)]), "{policy}");
        let backends = &harness.core.snapshot(harness.now).services[0].backends;
        let why = backends[0].ineligible_reason.as_deref().expect("a reason");
        assert!(why.contains("no route to worker1 at 192.168.57.1"), "{why}");

        // It outlasts a reload, and ends by itself.
        harness.reconfigure(settings);
        assert_eq!(harness.state("worker1"), Health::Unreachable);
        harness.kinds();
        find(&mut harness, WorkerRoute::Direct);
        assert_eq!(harness.state("worker1"), Health::Up);
        harness.advance(ms(50));
        assert!(takers(&harness).contains(&BackendId(1)), "{policy}");
        assert!(harness.kinds().contains(&"worker_eligible".to_owned()));
    }
}

#[test]
fn a_worker_beyond_an_interface_without_programs_is_out_of_reach_too() {
    let mut harness = Harness::new(lab(Threshold::Bytes(64 * MIB)));
    find(&mut harness, WorkerRoute::Unattached("eth7".to_owned()));
    harness.start("worker1", 600);
    assert_eq!(harness.selected(), MANAGER);
    assert_eq!(harness.state("worker1"), Health::Unreachable);
    let backends = &harness.core.snapshot(harness.now).services[0].backends;
    let why = backends[0].ineligible_reason.as_deref().expect("a reason");
    assert!(why.contains("leads through eth7"), "{why}");
    find(&mut harness, WorkerRoute::Direct);
    assert_eq!(harness.state("worker1"), Health::Up);
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn worker_that_a_reload_makes_unreachable_is_never_selected() {
    let mut harness = Harness::new(lab(Threshold::Bytes(64 * MIB)));
    harness.start("worker1", 600);
    harness.start("worker2", 300);
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].backends[0].id = BackendId(7);
    harness.kinds();
    let links = BTreeMap::from([(BackendId(7), WorkerRoute::Missing)]);
    harness.reconfigure_with(settings, &links);
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(harness.kinds(), ["worker_ineligible", "selection_changed"]);
}
