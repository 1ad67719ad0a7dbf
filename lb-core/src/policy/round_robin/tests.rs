use proptest::prelude::*;

use super::super::slots::{SLOTS, tests::weights};
use super::*;

#[test]
fn turns_are_even_and_one_each_for_equals() {
    assert_eq!(turns(&[], &[100, 100, 100]), [0, 1, 2]);
    assert_eq!(turns(&[], &[7, 0, 7]), [0, 2]);
    assert_eq!(turns(&[], &[100, 50]), [0, 1, 0]);
    assert_eq!(turns(&[], &[25, 100, 100]), [1, 2, 1, 2, 0, 1, 2, 1, 2]);
    assert_eq!(turns(&[0, 1, 0], &[100, 100]), [0, 1]);
    assert_eq!(turns(&[], &[4_096, 4_097]).len(), SLOTS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn turns_are_proportional_to_weight_and_evenly_spaced(weights in weights()) {
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
}
