use proptest::prelude::*;

use super::*;

fn counts(slots: &[usize], workers: usize) -> Vec<usize> {
    let of = |worker| slots.iter().filter(|at| **at == worker).count();
    (0..workers).map(of).collect()
}

#[test]
fn neighbours_in_a_fresh_table_differ() {
    // The kernel looks at four slots for one whose worker is up.
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
fn the_worst_of_shares_is_right_to_a_place() {
    assert_eq!(counts(&proportional(&[], &[3, 1]), 2), [3_072, 1_024]);
    assert_eq!(counts(&proportional(&[], &[1, 0]), 2), [SLOTS, 0]);
    let three = counts(&proportional(&[], &[1, 1, 1]), 3);
    assert_eq!(three, [1_366, 1_365, 1_365]);
    let heavy = proportional(&[], &[u32::MAX, u32::MAX, 1]);
    assert_eq!(counts(&heavy, 3), [2_048, 2_048, 0]);
}

#[test]
fn turns_are_even_and_one_each_for_equals() {
    assert_eq!(turns(&[], &[100, 100, 100]), [0, 1, 2]);
    assert_eq!(turns(&[], &[7, 0, 7]), [0, 2]);
    assert_eq!(turns(&[], &[100, 50]), [0, 1, 0]);
    assert_eq!(turns(&[], &[25, 100, 100]), [1, 2, 1, 2, 0, 1, 2, 1, 2]);
    assert_eq!(turns(&[0, 1, 0], &[100, 100]), [0, 1]);
    assert_eq!(turns(&[], &[4_096, 4_097]).len(), SLOTS);
}

#[test]
fn who_goes_leaves_its_place_to_one_and_who_comes_takes_none() {
    assert_eq!(one_each(&[], &[1, 1, 1]), [0, 1, 2]);
    assert_eq!(one_each(&[0, 1, 2], &[1, 0, 1]), [0, 2]);
    assert_eq!(one_each(&[0, 1, 2], &[0, 1, 1]), [2, 1]);
    assert_eq!(one_each(&[2, 1], &[1, 1, 1]), [2, 1, 0]);
    assert_eq!(one_each(&[0, 1], &[1, 0, 1]), [0, 2]);
    assert_eq!(one_each(&[5, 1], &[1, 1]), [0, 1]);
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![1 => Just(0), 4 => 1..2_000u32], 5)
        .prop_filter("somebody", |weights| {
            weights.iter().any(|weight| *weight > 0)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn places_keep_to_the_weights_and_only_as_many_change_as_must(
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

    #[test]
    fn turns_come_as_often_as_a_worker_weighs_and_evenly(weights in weights()) {
        let turns = turns(&[], &weights);
        prop_assert!((1..=SLOTS).contains(&turns.len()));
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        for (worker, weight) in weights.iter().enumerate() {
            let count = turns.iter().filter(|at| **at == worker).count() as u64;
            let exact = u64::from(*weight) * turns.len() as u64;
            prop_assert!((count * sum).abs_diff(exact) < sum);
            // In any half of the round as often as its weight says, give or take one.
            let half = &turns[..turns.len() / 2];
            let early = half.iter().filter(|at| **at == worker).count() as u64;
            prop_assert!((2 * early).abs_diff(count) <= 5, "{} of {}", early, count);
        }
    }

    #[test]
    fn one_each_is_for_everybody_who_weighs_anything(before in weights(), after in weights()) {
        let old = one_each(&[], &before);
        let mut new = one_each(&old, &after);
        new.sort_unstable();
        let wanted: Vec<usize> = (0..5).filter(|worker| after[*worker] > 0).collect();
        prop_assert_eq!(new, wanted);
    }
}
