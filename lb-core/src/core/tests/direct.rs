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

fn ineligible_reason(harness: &Harness, worker: &str) -> Option<String> {
    let snapshot = harness.core.snapshot(harness.now);
    let mut backends = snapshot.services[0].backends.iter();
    let backend = backends.find(|backend| backend.name == worker);
    backend.expect("a worker").ineligible_reason.clone()
}

#[test]
fn a_worker_without_dsr_translator_is_not_chosen_and_one_event_has_the_reason() {
    let mut harness = Harness::new(settings(Mode::Dsr));
    assert_eq!(harness.receive("worker1", 1, 1, 600), Accepted);
    assert_eq!(
        harness.handle_heartbeat(&equipped("worker2", 1, 1, 300)),
        Accepted
    );
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(harness.state("worker1"), Health::Ineligible);
    assert_eq!(harness.maps.backends[&BackendId(1)].0, Health::Ineligible);
    let why = "worker1 has no DSR translator for 192.168.56.101:80/tcp: start its agent with --dsr";
    assert_eq!(ineligible_reason(&harness, "worker1").as_deref(), Some(why));
    assert_eq!(ineligible_reason(&harness, "worker2"), None);
    assert_eq!(harness.receive("worker1", 1, 2, 600), Accepted);
    let told: Vec<String> = harness
        .events
        .iter()
        .filter(|event| matches!(event, Event::WorkerIneligible { .. }))
        .map(Event::to_string)
        .collect();
    assert_eq!(told, [format!("service0: {why}")]);
    harness.events.clear();

    // Another service's DSR translator does not help, its own does.
    let other = Endpoint {
        protocol: Protocol::Udp,
        ..web()
    };
    let mut elsewhere = report("worker1", 1, 3, 600);
    elsewhere.translates = vec![other];
    assert_eq!(harness.handle_heartbeat(&elsewhere), Accepted);
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(
        harness.handle_heartbeat(&equipped("worker1", 1, 4, 600)),
        Accepted
    );
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(harness.kinds(), ["worker_eligible", "selection_changed"]);

    // The DSR translator is gone: so are the connections.
    assert_eq!(harness.receive("worker1", 1, 5, 600), Accepted);
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(harness.maps.backends[&BackendId(1)].0, Health::Ineligible);
    assert_eq!(harness.kinds(), ["worker_ineligible", "selection_changed"]);
}

#[test]
fn a_worker_behind_a_router_is_not_chosen() {
    let mut harness = Harness::new(settings(Mode::Dsr));
    for (worker, mib) in [("worker1", 600), ("worker2", 300)] {
        assert_eq!(
            harness.handle_heartbeat(&equipped(worker, 1, 1, mib)),
            Accepted
        );
    }
    assert_eq!(harness.selected(), "worker1");
    let mut links = BTreeMap::from([
        (BackendId(1), WorkerRoute::ViaRouter),
        (BackendId(2), WorkerRoute::Direct),
    ]);
    harness.core.handle_routes(&links, harness.now);
    harness.handle_timeout();
    assert_eq!(harness.selected(), "worker2");
    let why = ineligible_reason(&harness, "worker1").expect("a reason");
    assert!(why.contains("behind a router"), "{why}");

    // Known routes outlast a change of the configuration.
    harness.reconfigure(settings(Mode::Dsr));
    assert_eq!(harness.state("worker1"), Health::Ineligible);
    links.insert(BackendId(1), WorkerRoute::Direct);
    harness.core.handle_routes(&links, harness.now);
    harness.handle_timeout();
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn without_an_eligible_worker_the_manager_serves() {
    let mut harness = Harness::new(settings(Mode::Dsr));
    harness.start("worker1", 600);
    assert_eq!(harness.selected(), MANAGER);
    assert_eq!(harness.state("worker1"), Health::Ineligible);
}

#[test]
fn services_of_other_modes_need_no_dsr_translator() {
    let mut harness = Harness::new(settings(Mode::Nat));
    harness.start("worker1", 600);
    let links = BTreeMap::from([(BackendId(1), WorkerRoute::ViaRouter)]);
    harness.core.handle_routes(&links, harness.now);
    harness.handle_timeout();
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(ineligible_reason(&harness, "worker1"), None);
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
    let mut harness = Harness::with_core(Core::resume(settings, &adopted, now), now);
    assert_eq!(harness.state("worker1"), Health::Up);
    assert_eq!(harness.maps.backends[&BackendId(10)].0, Health::Ineligible);
    assert!(
        !harness.kinds().contains(&"worker_ineligible".to_owned()),
        "not heard yet"
    );
    assert_eq!(harness.receive("worker1", 1, 1, 600), Accepted);
    assert_eq!(harness.kinds(), ["worker_ineligible", "selection_changed"]);
}

#[test]
fn a_restart_makes_no_worker_ineligible_before_its_first_heartbeat() {
    let now = Instant::now();
    let adopted = AdoptedState {
        selections: [(WEB, BackendId(1))].into(),
        ..AdoptedState::default()
    };
    let core = Core::resume(settings(Mode::Dsr), &adopted, now);
    let mut harness = Harness::with_core(core, now);
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(harness.state("worker1"), Health::Up);
    assert_eq!(harness.receive("worker1", 1, 1, 600), Accepted);
    assert_eq!(harness.state("worker1"), Health::Ineligible);
    assert_eq!(harness.selected(), MANAGER);
}
