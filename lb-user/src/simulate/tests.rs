//! The known results of load balancing theory.

use lb_core::{MemorySettings, Policy, Threshold};

use super::*;

const REPORTS: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

fn short() -> Scenario {
    Scenario {
        duration: Duration::from_secs(30),
        ..Scenario::default()
    }
}

fn policy(policy: Policy) -> Contender {
    Contender::Policy(policy)
}

fn outcome(scenario: &Scenario, contender: Contender, interval: Duration) -> Outcome {
    simulation::simulate(scenario, contender, interval)
}

/// Mitzenmacher, How useful is old information? (2000): the emptiest by fresh reports is better than
/// chance, by old ones worse, and the worse the older; two choices are never worse than chance.
#[test]
fn policy_memory_with_old_reports_is_worse_than_random() {
    // Follows every report, however little it differs.
    let scenario = Scenario {
        memory: MemorySettings {
            threshold: Threshold::Bytes(0),
            hold: Duration::ZERO,
        },
        ..short()
    };
    let imbalance = |contender, milliseconds| {
        outcome(&scenario, contender, Duration::from_millis(milliseconds)).imbalance
    };
    let chance = imbalance(Contender::Random, 1_000);
    let herd = [10, 500, 2_000, 5_000].map(|every| imbalance(policy(Policy::Memory), every));
    assert!(herd[0] < chance, "fresh: {herd:?} {chance}");
    assert!(herd[1] > chance, "old: {herd:?} {chance}");
    assert!(herd.is_sorted(), "the older the worse: {herd:?}");
    for every in [10, 500, 2_000, 5_000] {
        let balanced = imbalance(policy(Policy::Balanced), every);
        assert!(balanced < chance, "{every} ms: {balanced} {chance}");
    }
}

#[test]
fn the_default_hold_fills_no_worker_and_a_long_one_is_like_old_reports() {
    let peak = |hold| {
        let mut scenario = short();
        scenario.memory.hold = hold;
        outcome(
            &scenario,
            policy(Policy::Memory),
            Duration::from_millis(100),
        )
        .peak_percent
    };
    assert!(peak(lb_core::DEFAULT_HOLD) < 90.0);
    assert!(peak(Duration::from_secs(3)) > 99.0);
}

#[test]
fn balanced_keeps_the_fullest_worker_far_below_the_emptiest_first() {
    let scenario = short();
    for every in REPORTS {
        let peak = |it| outcome(&scenario, policy(it), every).peak_percent;
        let (memory, balanced) = (peak(Policy::Memory), peak(Policy::Balanced));
        assert!(balanced <= 0.7 * memory, "{every:?}: {balanced} {memory}");
    }
}

#[test]
fn balanced_never_fills_unequal_workers_more_than_taking_turns() {
    let sizes = [
        vec![2 << 30, 1 << 30, 512 << 20, 512 << 20, 256 << 20],
        vec![2 << 30, 512 << 20, 512 << 20, 512 << 20],
        vec![
            700 << 20,
            600 << 20,
            800 << 20,
            700 << 20,
            500 << 20,
            900 << 20,
        ],
    ];
    for sizes in sizes {
        for arrivals_per_second in [150.0, 450.0] {
            let scenario = Scenario {
                workers: WorkerModel::of_sizes(&sizes, 50 << 20),
                arrivals_per_second,
                ..short()
            };
            let turns = outcome(&scenario, policy(Policy::RoundRobin), REPORTS[0]);
            for every in REPORTS {
                let balanced = outcome(&scenario, policy(Policy::Balanced), every);
                assert!(
                    balanced.peak_percent <= turns.peak_percent
                        && balanced.rejected <= turns.rejected,
                    "{sizes:?} {every:?}: {balanced:?} {turns:?}"
                );
            }
        }
    }
}

#[test]
fn same_seed_gives_the_same_result() {
    let scenario = Scenario {
        duration: Duration::from_secs(5),
        ..Scenario::default()
    };
    let results = compare(&scenario, &Contender::all(), &REPORTS[..2]);
    let again = compare(&scenario, &Contender::all(), &REPORTS[..2]);
    assert_eq!(results.outcomes, again.outcomes);
    let first = &results.outcomes[0];
    assert!(first.accepted > 2_000, "{first:?}");
    for outcome in &results.outcomes {
        let came = outcome.accepted + outcome.rejected;
        assert_eq!(came, first.accepted + first.rejected, "{outcome:?}");
    }
    let other = Scenario {
        seed: 2,
        ..scenario
    };
    let other = compare(&other, &Contender::all(), &REPORTS[..2]);
    assert_ne!(results.outcomes, other.outcomes);
}

#[test]
fn lost_and_late_reports_make_balanced_worse_but_not_wrong() {
    let scenario = Scenario {
        loss: 0.3,
        delay: Duration::from_millis(300),
        duration: Duration::from_secs(120),
        ..Scenario::default()
    };
    let chance = outcome(&scenario, Contender::Random, REPORTS[1]);
    let balanced = outcome(&scenario, policy(Policy::Balanced), REPORTS[1]);
    assert!(
        balanced.imbalance < chance.imbalance,
        "{balanced:?} {chance:?}"
    );
    assert_eq!(balanced.rejected, 0);
}

#[test]
fn worker_filled_by_its_own_processes_gets_fewer_connections() {
    // Its own use grows after ten seconds, as an event log might tell.
    let mut scenario = short();
    scenario.arrivals_per_second = 150.0;
    scenario.workers[0].background = BackgroundLoad::Recorded(vec![
        (Duration::ZERO, 100 << 20),
        (Duration::from_secs(10), 600 << 20),
    ]);
    let turns = outcome(&scenario, policy(Policy::RoundRobin), REPORTS[0]);
    let balanced = outcome(&scenario, policy(Policy::Balanced), REPORTS[0]);
    assert!(turns.peak_percent.round() >= 100.0, "{turns:?}");
    assert!(
        // What comes before the next report may still be turned away.
        turns.rejected > 20 && balanced.rejected <= 2,
        "{turns:?} {balanced:?}"
    );
}

#[test]
fn the_picture_shows_every_policy() {
    let scenario = Scenario {
        duration: Duration::from_secs(1),
        ..Scenario::default()
    };
    let results = compare(&scenario, &Contender::all(), &REPORTS[..2]);
    let picture = plot(&results);
    for contender in Contender::all() {
        assert!(picture.contains(&format!(">{}</text>", contender.name())));
    }
    // Two panels, each with a line for each policy and its name at the end.
    assert_eq!(picture.matches("<polyline").count(), 12);
    assert_eq!(picture.matches(">random</text>").count(), 2);
    let dashes = picture.split("stroke-dasharray=").skip(1);
    let dashes: std::collections::BTreeSet<_> =
        dashes.filter_map(|it| it.split('>').next()).collect();
    assert_eq!(dashes.len(), 6);
    assert!(picture.contains(">refused, % of all</text>"));
    assert!(picture.contains(">6 workers of 700.0 MiB; 450 connections/s"));
    assert!(picture.contains(">500ms</text>") && picture.ends_with("</svg>\n"));
    let table = results.to_string();
    assert_eq!(table.matches("least_connections").count(), 2);
}
