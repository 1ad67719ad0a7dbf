use proptest::prelude::*;

use super::*;

#[test]
fn a_lost_worker_leaves_its_slot_to_a_new_one() {
    assert_eq!(one_each(&[], &[1, 1, 1]), [0, 1, 2]);
    assert_eq!(one_each(&[0, 1, 2], &[1, 0, 1]), [0, 2]);
    assert_eq!(one_each(&[0, 1, 2], &[0, 1, 1]), [2, 1]);
    assert_eq!(one_each(&[2, 1], &[1, 1, 1]), [2, 1, 0]);
    assert_eq!(one_each(&[0, 1], &[1, 0, 1]), [0, 2]);
    assert_eq!(one_each(&[5, 1], &[1, 1]), [0, 1]);
}

pub fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![1 => Just(0), 4 => 1..2_000u32], 5)
        .prop_filter("one weight at least", |weights| {
            weights.iter().any(|weight| *weight > 0)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_worker_with_a_weight_has_one_slot(before in weights(), after in weights()) {
        let old = one_each(&[], &before);
        let mut new = one_each(&old, &after);
        new.sort_unstable();
        let wanted: Vec<usize> = (0..5).filter(|worker| after[*worker] > 0).collect();
        prop_assert_eq!(new, wanted);
    }
}
