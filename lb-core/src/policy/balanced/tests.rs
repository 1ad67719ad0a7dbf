use proptest::prelude::*;

use super::super::slots::tests::weights;
use super::super::weights::{shares_differ, weigh_equally};
use super::*;
use crate::memory::{Memory, Pressure};

const MIB: u64 = 1 << 20;
const DOWN_AFTER: Duration = Duration::from_secs(1);

fn fresh(available_mib: u64, total_mib: u64) -> WeightInput {
    WeightInput {
        memory: Some(Memory {
            available_bytes: available_mib * MIB,
            total_bytes: Some(total_mib * MIB),
        }),
        pressure: None,
        age: Duration::ZERO,
        drift_bytes: 0,
        ramp_percent: 100,
        manual_percent: 100,
    }
}

fn settings() -> SpreadSettings {
    SpreadSettings {
        reserve_percent: 0,
        ..SpreadSettings::default()
    }
}

/// The shares of the first weighing, in percent.
fn shares(settings: &SpreadSettings, inputs: &[WeightInput]) -> Vec<u64> {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    let weights = Balanced::new(inputs.len())
        .weigh(&inputs, settings, DOWN_AFTER)
        .expect("a worker has reported");
    percent(&weights)
}

fn percent(weights: &[u32]) -> Vec<u64> {
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let share = |weight: &u32| (u64::from(*weight) * 100 + sum / 2) / sum;
    weights.iter().map(share).collect()
}

#[test]
fn weight_follows_headroom() {
    assert_eq!(
        shares(&settings(), &[fresh(300, 700), fresh(100, 700)]),
        [75, 25]
    );
    // 20% of each machine is kept: 860 and 80 MiB are left.
    let reserve = SpreadSettings {
        reserve_percent: 20,
        max_share: MaxShare::Percent(100),
        ..settings()
    };
    assert_eq!(
        shares(&reserve, &[fresh(1_060, 1_000), fresh(280, 1_000)]),
        [91, 9]
    );
    // A 2018 worker says no total, so nothing is kept.
    let mut old = fresh(80, 1_000);
    old.memory.as_mut().expect("memory").total_bytes = None;
    assert_eq!(shares(&reserve, &[fresh(280, 1_000), old]), [50, 50]);
}

#[test]
fn worker_without_headroom_has_no_weight_while_another_has_headroom() {
    let reserve = SpreadSettings {
        reserve_percent: 10,
        ..settings()
    };
    let full = fresh(10, 100);
    assert_eq!(shares(&reserve, &[full, fresh(11, 100)]), [0, 100]);
    assert_eq!(shares(&reserve, &[full, fresh(9, 100)]), [50, 50]);
    let mut weighed_down = full;
    weighed_down.manual_percent = 50;
    assert_eq!(shares(&reserve, &[full, weighed_down]), [67, 33]);
}

#[test]
fn memory_pressure_lowers_the_weight() {
    let mut waiting = fresh(300, 700);
    for (pressure, share) in [(0, 50), (500, 43), (1_000, 33), (1_999, 14), (2_000, 0)] {
        waiting.pressure = Some(Pressure(pressure));
        let shares = shares(&settings(), &[waiting, fresh(300, 700)]);
        assert_eq!(shares[0], share, "{pressure}");
    }
}

#[test]
fn older_report_has_less_influence() {
    let mut old = fresh(100, 700);
    for (age, share) in [(0, 25), (500, 33), (1_000, 40), (9_000, 40)] {
        old.age = Duration::from_millis(age);
        let shares = shares(&settings(), &[old, fresh(300, 700)]);
        assert_eq!(shares[0], share, "{age} ms");
    }
}

#[test]
fn connections_since_the_report_lower_the_headroom() {
    let mut busier = fresh(300, 700);
    busier.drift_bytes = 200 * MIB as i64;
    assert_eq!(shares(&settings(), &[busier, fresh(300, 700)]), [25, 75]);
    busier.drift_bytes = i64::MAX;
    assert_eq!(shares(&settings(), &[busier, fresh(300, 700)])[0], 0);
    busier.drift_bytes = -100 * MIB as i64;
    assert_eq!(shares(&settings(), &[busier, fresh(400, 700)]), [50, 50]);
    busier.drift_bytes = i64::MIN;
    assert_eq!(shares(&settings(), &[busier, fresh(700, 700)]), [50, 50]);
}

#[test]
fn max_share_limits_a_worker_that_overstates_its_memory() {
    let honest = fresh(300, 700);
    let liar = fresh(u64::MAX >> 20, u64::MAX >> 20);
    assert_eq!(shares(&settings(), &[liar, honest])[0], 86);
    let crowd = [liar, honest, honest, honest, honest];
    assert_eq!(shares(&settings(), &crowd)[0], 60);
    let capped = SpreadSettings {
        max_share: MaxShare::Percent(30),
        ..settings()
    };
    assert_eq!(shares(&capped, &crowd), [30, 18, 18, 18, 18]);
    assert_eq!(
        shares(&capped, &[liar, liar, honest, honest])[..2],
        [30, 30]
    );
    assert_eq!(
        shares(&capped, &[liar, honest]),
        [50, 50],
        "never less than an equal share"
    );
}

#[test]
fn ramp_and_manual_weight_multiply() {
    let (mut back, mut half) = (fresh(300, 700), fresh(300, 700));
    back.ramp_percent = 25;
    half.manual_percent = 50;
    assert_eq!(
        shares(&settings(), &[back, half, fresh(300, 700)]),
        [14, 29, 57]
    );
    let equal = weigh_equally(&[Some(back), Some(half), None], MaxShare::Auto);
    assert_eq!(equal, [25, 50, 0]);
    half.manual_percent = 0;
    let equal = weigh_equally(&[Some(back), Some(half), None], MaxShare::Auto);
    assert_eq!(equal, [25, 0, 0]);
    let alone = weigh_equally(&[None, Some(half), None], MaxShare::Auto);
    assert_eq!(alone, [0, 1, 0], "one worker must serve");
}

#[test]
fn weights_are_smoothed_but_a_full_worker_loses_its_weight_at_once() {
    let mut policy = Balanced::new(2);
    let mut first_share = |available| {
        let inputs = [Some(fresh(available, 1_000)), Some(fresh(400, 1_000))];
        let weights = policy.weigh(&inputs, &settings(), DOWN_AFTER);
        percent(&weights.expect("a worker has reported"))[0]
    };
    assert_eq!(first_share(400), 50);
    assert_eq!(first_share(800), 56);
    assert_eq!(first_share(800), 59);
    assert!((0..40).map(|_| first_share(800)).all(|share| share <= 67));
    assert_eq!(first_share(800), 67);
    assert_eq!(first_share(0), 0);
    assert_eq!(first_share(400), 50);
}

#[test]
fn small_weight_change_is_not_written() {
    for (before, after, worth) in [
        ([100, 100], [100, 103], false),
        ([100, 100], [100, 107], true),
        ([1_000, 1_000], [100, 100], false),
        ([1, 1_000_000], [2, 1_000_000], true),
        ([0, 100], [1, 100], true),
        ([1, 100], [0, 100], true),
    ] {
        assert_eq!(
            shares_differ(&before, &after),
            worth,
            "{before:?} {after:?}"
        );
    }
}

#[test]
fn no_weights_before_the_first_heartbeat() {
    let mut silent = fresh(1, 1);
    silent.memory = None;
    let mut policy = Balanced::new(2);
    let inputs = [Some(silent), None];
    assert_eq!(policy.weigh(&inputs, &settings(), DOWN_AFTER), None);
    // With a worker that has reported, it weighs the same.
    let inputs = [Some(silent), Some(fresh(300, 700))];
    let weights = policy.weigh(&inputs, &settings(), DOWN_AFTER);
    assert_eq!(percent(&weights.expect("weights")), [50, 50]);
}

fn counts(slots: &[usize], workers: usize) -> Vec<usize> {
    let of = |worker| slots.iter().filter(|at| **at == worker).count();
    (0..workers).map(of).collect()
}

#[test]
fn neighbours_in_a_fresh_table_differ() {
    // The kernel looks at four slots for a worker that is up.
    for workers in [2, 3, 10, 1_000] {
        let slots = proportional(&[], &vec![1; workers]);
        let alike = (0..SLOTS).filter(|slot| {
            let next = |step: usize| slots[(slot + step) % SLOTS];
            (1..4).all(|step| next(step) == next(0))
        });
        assert_eq!(alike.count(), 0, "{workers} workers");
    }
}

#[test]
fn shares_are_accurate_to_one_slot() {
    assert_eq!(counts(&proportional(&[], &[3, 1]), 2), [3_072, 1_024]);
    assert_eq!(counts(&proportional(&[], &[1, 0]), 2), [SLOTS, 0]);
    let three = counts(&proportional(&[], &[1, 1, 1]), 3);
    assert_eq!(three, [1_366, 1_365, 1_365]);
    let heavy = proportional(&[], &[u32::MAX, u32::MAX, 1]);
    assert_eq!(counts(&heavy, 3), [2_048, 2_048, 0]);
}

fn input() -> impl Strategy<Value = Option<WeightInput>> {
    let memory = prop::option::of((any::<u64>(), prop::option::of(any::<u64>())));
    let percents = (
        prop::sample::select(&[25, 50, 75, 100]),
        0..1_000_000u32,
        any::<i64>(),
    );
    let times = (prop::option::of(0..=10_000u16), 0..100_000u64);
    prop::option::weighted(
        0.8,
        (memory, percents, times).prop_map(|(memory, (ramp, manual, drift), (pressure, age))| {
            WeightInput {
                memory: memory.map(|(available_bytes, total_bytes)| Memory {
                    available_bytes,
                    total_bytes,
                }),
                pressure: pressure.map(Pressure),
                age: Duration::from_millis(age),
                drift_bytes: drift,
                ramp_percent: ramp,
                manual_percent: manual,
            }
        }),
    )
}

proptest! {
    #[test]
    fn only_workers_that_are_up_have_weight_and_at_least_one_has(
        inputs in prop::collection::vec(input(), 1..8),
        percent in 0..=100u32,
    ) {
        let settings = SpreadSettings {
            max_share: if percent == 0 { MaxShare::Auto } else { MaxShare::Percent(percent) },
            ..settings()
        };
        let mut policy = Balanced::new(inputs.len());
        for _ in 0..3 {
            let Some(weights) = policy.weigh(&inputs, &settings, DOWN_AFTER) else {
                prop_assert!(inputs.iter().flatten().all(|it| it.memory.is_none()));
                return Ok(());
            };
            prop_assert!(weights.iter().any(|weight| *weight > 0));
            let up = inputs.iter().zip(&weights);
            prop_assert!(up.clone().all(|(it, weight)| it.is_some() || *weight == 0));
            let some = weights.iter().filter(|weight| **weight > 0).count() as u64;
            if percent > 0 {
                let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
                let cap = (u64::from(percent) * sum).max(100 * sum / some) / 100 + 1;
                prop_assert!(weights.iter().all(|weight| u64::from(*weight) <= cap));
            }
        }
    }

    #[test]
    fn slots_follow_the_weights_with_the_fewest_changes(
        before in weights(),
        after in weights(),
    ) {
        let old = proportional(&[], &before);
        let new = proportional(&old, &after);
        prop_assert_eq!(new.len(), SLOTS);
        let sum: u64 = after.iter().map(|weight| u64::from(*weight)).sum();
        let (had, has) = (counts(&old, 5), counts(&new, 5));
        for (weight, count) in after.iter().zip(&has) {
            let exact = u64::from(*weight) * SLOTS as u64;
            prop_assert!((*count as u64 * sum).abs_diff(exact) < sum);
        }
        let must: usize = had.iter().zip(&has).map(|(had, has)| has.saturating_sub(*had)).sum();
        let changed = old.iter().zip(&new).filter(|(old, new)| old != new).count();
        prop_assert_eq!(changed, must);
    }
}
