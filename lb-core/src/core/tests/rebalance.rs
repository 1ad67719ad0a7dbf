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

fn three(policy: Policy) -> Harness {
    let names = ["worker1", "worker2", "worker3"];
    let mut harness = Harness::new(spread(policy, &names));
    for name in names {
        harness.start(name, 300);
    }
    harness.advance(ms(300));
    harness
}

impl Harness {
    fn shares(&self) -> Vec<u16> {
        let snapshot = self.core.snapshot(self.now);
        let backends = snapshot.services[0].backends.iter();
        backends.map(|backend| backend.share).collect()
    }

    fn slots(&self) -> Vec<u32> {
        let slots = self.maps.slots[&WEB].1.iter();
        slots.map(|backend| backend.0).collect()
    }

    fn set_weight(&mut self, worker: &str, percent: u32) {
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
        let harness = three(*policy);
        assert_eq!(harness.selected(), ALL_WORKERS);
        assert_eq!(harness.maps.selection[&WEB], None);
        assert_eq!(Some(harness.maps.slots[&WEB].0), slot_kind(*policy));
        let shares = harness.shares();
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
        let mut harness = Harness::new(spread(*policy, &["worker1", "worker2"]));
        assert_eq!(harness.selected(), MANAGER);
        harness.start("worker1", 300);
        assert_eq!(harness.selected(), ALL_WORKERS);
        assert_eq!(harness.shares(), [10_000, 0, 0]);
        harness.start("worker2", 300);
        assert_eq!(harness.shares(), [10_000, 0, 0]);
        harness.advance(ms(25));
        assert_eq!(harness.shares(), [5_000, 5_000, 0], "{policy}");
    }
}

#[test]
fn dead_worker_leaves_its_slots_at_its_deadline() {
    for policy in &SPREADING {
        let mut harness = three(*policy);
        harness.agents.remove("worker2");
        harness.advance(DOWN_AFTER - ms(200));
        assert!(harness.shares()[1] > 0);
        harness.advance(ms(200) + Duration::from_nanos(1));
        assert_eq!(harness.shares()[1], 0, "{policy}");
        assert!(!harness.slots().contains(&2));
        let told = harness.events.iter().any(|event| {
            matches!(
                event,
                Event::SharesChanged {
                    cause: Cause::Lost,
                    workers: 2,
                    ..
                }
            )
        });
        assert!(told, "{:?}", harness.events);
    }
}

#[test]
fn the_manager_serves_when_all_are_gone_and_the_first_back_takes_over() {
    for policy in &SPREADING {
        let mut harness = three(*policy);
        let agents = std::mem::take(&mut harness.agents);
        harness.advance(ms(2_000));
        assert_eq!(harness.selected(), MANAGER);
        assert_eq!(harness.core.poll_timeout(), None, "no deadline is left");
        assert!(harness.kinds().contains(&"all_workers_down".to_owned()));
        harness.agents = agents;
        harness.advance(ms(400));
        assert_eq!(harness.selected(), ALL_WORKERS);
    }
}

#[test]
fn returned_worker_ramps_up_by_quarters() {
    for policy in SPREADING {
        let mut harness = three(policy);
        let agent = harness.agents.remove("worker2").expect("an agent");
        harness.advance(ms(2_000));
        harness.agents.insert("worker2".to_owned(), agent);
        harness.advance(ms(600));
        assert_eq!(harness.state("worker2"), Health::Up);
        let mut seen = Vec::new();
        for _ in 0..120 {
            harness.advance(ms(100));
            // Of 400 parts when whole: 25 of 225, 50 of 250, 75 of 275, 100 of 300.
            seen.push(harness.shares()[1]);
        }
        seen.dedup();
        assert_eq!(seen, [1_111, 2_000, 2_727, 3_333], "{policy}");
    }
}

#[test]
fn balanced_weights_follow_memory() {
    let mut harness = three(Policy::Balanced);
    harness.set_available("worker1", 635);
    harness.advance(ms(5_000));
    // 5% of 700 MiB are kept of each: 600, 265 and 265 MiB are left.
    let shares = harness.shares();
    assert!((5_100..=5_400).contains(&shares[0]), "{shares:?}");
    let slots = harness.slots().iter().filter(|place| **place == 1).count();
    assert!(
        slots.abs_diff(4_096 * usize::from(shares[0]) / 10_000) <= 2,
        "{slots}"
    );
    harness.set_available("worker1", 20);
    harness.advance(ms(400));
    assert_eq!(harness.shares()[0], 0, "down to its reserve");
    for worker in ["worker2", "worker3"] {
        harness.set_available(worker, 35);
    }
    harness.kinds();
    harness.advance(ms(400));
    assert_eq!(harness.shares()[..3], [3_333, 3_333, 3_333]);
    assert_eq!(
        harness
            .kinds()
            .iter()
            .filter(|kind| *kind == "all_workers_hot")
            .count(),
        1
    );
}

#[test]
fn small_weight_changes_are_not_written() {
    let mut harness = three(Policy::Balanced);
    let before = harness.slots();
    for mib in [301, 299, 302, 298, 300] {
        harness.set_available("worker1", mib);
        harness.advance(ms(1_000));
    }
    assert_eq!(harness.slots(), before);
}

#[test]
fn connections_since_the_report_move_weights_before_the_next_one() {
    let share_with = |open_in_the_end| {
        let mut harness = three(Policy::Balanced);
        harness.agents.remove("worker1");
        // Each connection takes 1 MiB, as the reports show.
        for (number, open) in (100..).zip([0, 20, 40, 10]) {
            let report = report("worker1", 1, number, 500 - open);
            assert_eq!(
                harness.handle_heartbeat(&report),
                HeartbeatOutcome::Accepted
            );
            harness.core.handle_connections(&[(BackendId(1), open)]);
            harness.advance(ms(300));
        }
        harness
            .core
            .handle_connections(&[(BackendId(1), open_in_the_end)]);
        harness.advance(ms(1_000));
        harness.shares()[0]
    };
    let (calm, crowded) = (share_with(10), share_with(410));
    assert!(crowded + 200 < calm, "{crowded} {calm}");
}

#[test]
fn a_policy_is_switched_at_once() {
    let mut harness = three(Policy::Memory);
    assert_eq!(harness.selected(), "worker1");
    for policy in [&Policy::ALL[..], &[Policy::Memory]].concat() {
        harness.reconfigure(spread(policy, &["worker1", "worker2", "worker3"]));
        let everybody = policy != Policy::Memory;
        assert_eq!(
            harness.selected(),
            if everybody { ALL_WORKERS } else { "worker1" }
        );
        if everybody {
            assert_eq!(harness.shares()[..3], [3_333, 3_333, 3_333], "{policy}");
            assert_eq!(Some(harness.maps.slots[&WEB].0), slot_kind(policy));
        }
        harness.advance(ms(500));
    }
}

#[test]
fn the_same_settings_again_leave_the_shares_as_they_are() {
    let names = ["worker1", "worker2", "worker3"];
    let mut harness = three(Policy::Balanced);
    harness.set_available("worker1", 600);
    harness.advance(ms(5_000));
    let shares = harness.shares();
    harness.kinds();
    harness.reconfigure(spread(Policy::Balanced, &names));
    assert!(harness.shares()[0].abs_diff(shares[0]) < 150, "{shares:?}");
    assert_eq!(harness.selected(), ALL_WORKERS);
    let kinds = harness.kinds();
    assert!(
        !kinds.contains(&"selection_changed".to_owned()),
        "{kinds:?}"
    );
    // A worker that is taken out loses its slots at once; without a worker, there are no slots.
    harness.reconfigure(spread(Policy::Balanced, &names[..2]));
    assert_eq!(harness.shares().len(), 3);
    assert!(!harness.slots().contains(&3));
    harness.reconfigure(spread(Policy::Balanced, &["worker7"]));
    assert_eq!(harness.selected(), MANAGER);
    assert!(harness.kinds().contains(&"all_workers_down".to_owned()));
}

#[test]
fn the_operators_weight_counts_under_every_policy() {
    for policy in &SPREADING {
        let mut harness = three(*policy);
        harness.set_weight("worker1", 50);
        assert_eq!(harness.shares()[..3], [2_000, 4_000, 4_000], "{policy}");
        harness.set_weight("worker1", 0);
        assert_eq!(harness.shares()[..3], [0, 5_000, 5_000], "{policy}");
        harness.set_weight("worker1", 100);
        harness.advance(ms(500));
        assert_eq!(harness.shares()[..3], [3_333, 3_333, 3_333], "{policy}");
    }
    let mut harness = three(Policy::Memory);
    harness.set_weight("worker1", 10);
    assert_eq!(harness.selected(), "worker2");
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
    let mut harness = Harness::with_core(Core::resume(settings.clone(), &adopted, now), now);
    assert_eq!(harness.shares(), [7_500, 2_500, 0, 0]);
    assert!(harness.kinds().contains(&"selection_adopted".to_owned()));
    harness.advance(ms(1_000));
    assert_eq!(
        harness.shares(),
        [7_500, 2_500, 0, 0],
        "until the first heartbeat"
    );
    harness.start("worker1", 300);
    harness.start("worker2", 300);
    harness.advance(ms(300));
    assert_eq!(harness.shares(), [5_000, 5_000, 0, 0]);

    // Where the policy is another one now, it holds from the start.
    let mut settings = settings;
    settings.services[0].policy = Policy::Memory;
    let harness = Harness::with_core(Core::resume(settings.clone(), &adopted, now), now);
    assert_eq!(harness.selected(), "worker1");
    settings.services[0].policy = Policy::RoundRobin;
    let selected = AdoptedState {
        selections: [(WEB, BackendId(2))].into(),
        spread: [].into(),
        ..adopted
    };
    let harness = Harness::with_core(Core::resume(settings, &selected, now), now);
    assert_eq!(harness.shares(), [5_000, 5_000, 0, 0]);
}

#[test]
fn restart_without_a_worker_up_adopts_the_fallback() {
    let adopted = AdoptedState {
        spread: [WEB].into(),
        ..AdoptedState::default()
    };
    let now = Instant::now();
    let core = Core::resume(spread(Policy::Balanced, &["worker1"]), &adopted, now);
    let harness = Harness::with_core(core, now);
    assert_eq!(harness.selected(), MANAGER);
}
