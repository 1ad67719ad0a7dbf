//! Services whose connections are spread: weights and slots, when they change, and the events.

use super::*;

const SPREADING: [Policy; 4] = [
    Policy::Balanced,
    Policy::RoundRobin,
    Policy::LeastConnections,
    Policy::SourceHash,
];

fn spread(policy: Policy, workers: &[&str]) -> CoreSettings {
    let mut service = service(0, 1, workers, Threshold::Auto);
    service.policy = policy;
    CoreSettings {
        down_after: DOWN_AFTER,
        up_after: 2,
        failing: FailingSettings::default(),
        panic_percent: None,
        services: vec![service],
    }
}

fn three(policy: Policy) -> World {
    let names = ["worker1", "worker2", "worker3"];
    let mut world = World::new(spread(policy, &names));
    for name in names {
        world.start(name, 300);
    }
    world.pass(ms(300));
    world
}

impl World {
    fn shares(&self) -> Vec<u16> {
        let snapshot = self.core.snapshot(self.now);
        let backends = snapshot.services[0].backends.iter();
        backends.map(|backend| backend.share).collect()
    }

    fn slots(&self) -> Vec<u32> {
        let slots = self.maps.slots[&WEB].1.iter();
        slots.map(|backend| backend.0).collect()
    }

    fn weigh(&mut self, worker: &str, percent: u32) {
        let order = AdminCommand {
            worker: worker.to_owned(),
            service: None,
            action: AdminAction::Weight { percent },
            by: "alice".to_owned(),
            at_ms: 0,
            reason: None,
        };
        let result = self.core.handle_admin_command(&order, self.now).unwrap();
        assert_eq!(result.without_worker, [""; 0]);
        self.drain();
    }

    fn set_available(&mut self, worker: &str, mib: u64) {
        let agent = self.agents.get_mut(worker).expect("an agent");
        agent.memory.available_bytes = mib * MIB;
    }
}

#[test]
fn every_worker_that_is_up_gets_connections() {
    for policy in &SPREADING {
        let world = three(*policy);
        assert_eq!(world.selected(), ALL_WORKERS);
        assert_eq!(world.maps.selection[&WEB], None);
        assert_eq!(Some(world.maps.slots[&WEB].0), slot_kind(*policy));
        let shares = world.shares();
        assert_eq!(shares[..3], [3_333, 3_333, 3_333], "{policy}");
        assert_eq!(shares[3], 0);
    }
    assert_eq!(three(Policy::RoundRobin).slots(), [1, 2, 3]);
    assert_eq!(three(Policy::LeastConnections).slots(), [1, 2, 3]);
    assert_eq!(three(Policy::SourceHash).slots().len(), 4_096);
    assert_eq!(three(Policy::Balanced).slots().len(), 4_096);
}

#[test]
fn the_first_worker_is_used_at_once_and_the_others_soon() {
    for policy in &SPREADING {
        let mut world = World::new(spread(*policy, &["worker1", "worker2"]));
        assert_eq!(world.selected(), MANAGER);
        world.start("worker1", 300);
        assert_eq!(world.selected(), ALL_WORKERS);
        assert_eq!(world.shares(), [10_000, 0, 0]);
        world.start("worker2", 300);
        assert_eq!(world.shares(), [10_000, 0, 0]);
        world.pass(ms(25));
        assert_eq!(world.shares(), [5_000, 5_000, 0], "{policy}");
    }
}

#[test]
fn dead_worker_leaves_its_slots_at_its_deadline() {
    for policy in &SPREADING {
        let mut world = three(*policy);
        world.agents.remove("worker2");
        world.pass(DOWN_AFTER - ms(200));
        assert!(world.shares()[1] > 0);
        world.pass(ms(200) + Duration::from_nanos(1));
        assert_eq!(world.shares()[1], 0, "{policy}");
        assert!(!world.slots().contains(&2));
        let told = world.events.iter().any(|event| {
            matches!(
                event,
                Event::SharesChanged {
                    cause: Cause::Lost,
                    workers: 2,
                    ..
                }
            )
        });
        assert!(told, "{:?}", world.events);
    }
}

#[test]
fn the_manager_serves_when_all_are_gone_and_the_first_back_takes_over() {
    for policy in &SPREADING {
        let mut world = three(*policy);
        let agents = std::mem::take(&mut world.agents);
        world.pass(ms(2_000));
        assert_eq!(world.selected(), MANAGER);
        assert_eq!(world.core.poll_timeout(), None, "no deadline is left");
        assert!(world.kinds().contains(&"all_workers_down".to_owned()));
        world.agents = agents;
        world.pass(ms(400));
        assert_eq!(world.selected(), ALL_WORKERS);
    }
}

#[test]
fn returned_worker_ramps_up_by_quarters() {
    for policy in SPREADING {
        let mut world = three(policy);
        let agent = world.agents.remove("worker2").expect("an agent");
        world.pass(ms(2_000));
        world.agents.insert("worker2".to_owned(), agent);
        world.pass(ms(600));
        assert_eq!(world.state("worker2"), Health::Up);
        let mut seen = Vec::new();
        for _ in 0..120 {
            world.pass(ms(100));
            // Of 400 parts when whole: 25 of 225, 50 of 250, 75 of 275, 100 of 300.
            seen.push(world.shares()[1]);
        }
        seen.dedup();
        assert_eq!(seen, [1_111, 2_000, 2_727, 3_333], "{policy}");
    }
}

#[test]
fn balanced_weights_follow_memory() {
    let mut world = three(Policy::Balanced);
    world.set_available("worker1", 635);
    world.pass(ms(5_000));
    // 5% of 700 MiB are kept of each: 600, 265 and 265 MiB are left.
    let shares = world.shares();
    assert!((5_100..=5_400).contains(&shares[0]), "{shares:?}");
    let slots = world.slots().iter().filter(|place| **place == 1).count();
    assert!(
        slots.abs_diff(4_096 * usize::from(shares[0]) / 10_000) <= 2,
        "{slots}"
    );
    world.set_available("worker1", 20);
    world.pass(ms(400));
    assert_eq!(world.shares()[0], 0, "down to its reserve");
    for worker in ["worker2", "worker3"] {
        world.set_available(worker, 35);
    }
    world.kinds();
    world.pass(ms(400));
    assert_eq!(world.shares()[..3], [3_333, 3_333, 3_333]);
    assert_eq!(
        world
            .kinds()
            .iter()
            .filter(|kind| *kind == "all_workers_hot")
            .count(),
        1
    );
}

#[test]
fn small_weight_changes_are_not_written() {
    let mut world = three(Policy::Balanced);
    let before = world.slots();
    for mib in [301, 299, 302, 298, 300] {
        world.set_available("worker1", mib);
        world.pass(ms(1_000));
    }
    assert_eq!(world.slots(), before);
}

#[test]
fn connections_since_the_report_move_weights_before_the_next_one() {
    let share_with = |open_in_the_end| {
        let mut world = three(Policy::Balanced);
        world.agents.remove("worker1");
        // Each connection takes 1 MiB, as the reports show.
        for (number, open) in (100..).zip([0, 20, 40, 10]) {
            let report = report("worker1", 1, number, 500 - open);
            assert_eq!(world.hear(&report), HeartbeatOutcome::Accepted);
            world.core.handle_connections(&[(BackendId(1), open)]);
            world.pass(ms(300));
        }
        world
            .core
            .handle_connections(&[(BackendId(1), open_in_the_end)]);
        world.pass(ms(1_000));
        world.shares()[0]
    };
    let (calm, crowded) = (share_with(10), share_with(410));
    assert!(crowded + 200 < calm, "{crowded} {calm}");
}

#[test]
fn a_policy_is_switched_at_once() {
    let mut world = three(Policy::Memory);
    assert_eq!(world.selected(), "worker1");
    for policy in [&Policy::ALL[..], &[Policy::Memory]].concat() {
        world.reconfigure(spread(policy, &["worker1", "worker2", "worker3"]));
        let everybody = policy != Policy::Memory;
        assert_eq!(
            world.selected(),
            if everybody { ALL_WORKERS } else { "worker1" }
        );
        if everybody {
            assert_eq!(world.shares()[..3], [3_333, 3_333, 3_333], "{policy}");
            assert_eq!(Some(world.maps.slots[&WEB].0), slot_kind(policy));
        }
        world.pass(ms(500));
    }
}

#[test]
fn the_same_settings_again_leave_the_shares_as_they_are() {
    let names = ["worker1", "worker2", "worker3"];
    let mut world = three(Policy::Balanced);
    world.set_available("worker1", 600);
    world.pass(ms(5_000));
    let shares = world.shares();
    world.kinds();
    world.reconfigure(spread(Policy::Balanced, &names));
    assert!(world.shares()[0].abs_diff(shares[0]) < 150, "{shares:?}");
    assert_eq!(world.selected(), ALL_WORKERS);
    let kinds = world.kinds();
    assert!(
        !kinds.contains(&"selection_changed".to_owned()),
        "{kinds:?}"
    );
    // A worker that is taken out loses its slots at once; without a worker, there are no slots.
    world.reconfigure(spread(Policy::Balanced, &names[..2]));
    assert_eq!(world.shares().len(), 3);
    assert!(!world.slots().contains(&3));
    world.reconfigure(spread(Policy::Balanced, &["worker7"]));
    assert_eq!(world.selected(), MANAGER);
    assert!(world.kinds().contains(&"all_workers_down".to_owned()));
}

#[test]
fn the_operators_weight_counts_under_every_policy() {
    for policy in &SPREADING {
        let mut world = three(*policy);
        world.weigh("worker1", 50);
        assert_eq!(world.shares()[..3], [2_000, 4_000, 4_000], "{policy}");
        world.weigh("worker1", 0);
        assert_eq!(world.shares()[..3], [0, 5_000, 5_000], "{policy}");
        world.weigh("worker1", 100);
        world.pass(ms(500));
        assert_eq!(world.shares()[..3], [3_333, 3_333, 3_333], "{policy}");
    }
    let mut world = three(Policy::Memory);
    world.weigh("worker1", 10);
    assert_eq!(world.selected(), "worker2");
}

#[test]
fn restart_keeps_the_weights() {
    let adopted = AdoptedState {
        spread: [WEB].into(),
        up: [BackendId(1), BackendId(2)].into(),
        weights: [
            (BackendId(1), 300),
            (BackendId(2), 100),
            (BackendId(3), 500),
        ]
        .into(),
        ..AdoptedState::default()
    };
    let settings = spread(Policy::Balanced, &["worker1", "worker2", "worker3"]);
    let now = Instant::now();
    let mut world = World::around(Core::resume(settings.clone(), &adopted, now), now);
    assert_eq!(world.shares(), [7_500, 2_500, 0, 0]);
    assert!(world.kinds().contains(&"selection_adopted".to_owned()));
    world.pass(ms(1_000));
    assert_eq!(
        world.shares(),
        [7_500, 2_500, 0, 0],
        "until the first heartbeat"
    );
    world.start("worker1", 300);
    world.start("worker2", 300);
    world.pass(ms(300));
    assert_eq!(world.shares(), [5_000, 5_000, 0, 0]);

    // Where the policy is another one now, it holds from the start.
    let mut settings = settings;
    settings.services[0].policy = Policy::Memory;
    let world = World::around(Core::resume(settings.clone(), &adopted, now), now);
    assert_eq!(world.selected(), "worker1");
    settings.services[0].policy = Policy::RoundRobin;
    let selected = AdoptedState {
        selections: [(WEB, BackendId(2))].into(),
        spread: [].into(),
        ..adopted
    };
    let world = World::around(Core::resume(settings, &selected, now), now);
    assert_eq!(world.shares(), [5_000, 5_000, 0, 0]);
}

#[test]
fn restart_without_a_worker_up_adopts_the_fallback() {
    let adopted = AdoptedState {
        spread: [WEB].into(),
        ..AdoptedState::default()
    };
    let now = Instant::now();
    let core = Core::resume(spread(Policy::Balanced, &["worker1"]), &adopted, now);
    let world = World::around(core, now);
    assert_eq!(world.selected(), MANAGER);
}
