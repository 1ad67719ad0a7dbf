use proptest::prelude::*;

use super::*;

fn table(workers: u8) -> SourceHash {
    let address = |host| SocketAddr::from(([10, 0, 0, host], 8080));
    SourceHash::new(&(0..workers).map(address).collect::<Vec<_>>())
}

fn changed(before: &[usize], after: &[usize]) -> usize {
    let pairs = before.iter().zip(after);
    pairs.filter(|(before, after)| before != after).count()
}

fn taken(slots: &[usize], worker: usize) -> usize {
    slots.iter().filter(|at| **at == worker).count()
}

#[test]
fn removing_or_adding_a_worker_moves_only_its_own_share() {
    for workers in 2..=20_u8 {
        let n = usize::from(workers);
        let mut table = table(workers);
        let whole = table.winners(&vec![100; n]);
        assert_eq!(whole.len(), SLOTS);
        for worker in 0..n {
            let mut weights = vec![100; n];
            weights[worker] = 0;
            let without = table.winners(&weights);
            let moved = changed(&whole, &without);
            assert_eq!(moved, taken(&whole, worker), "only its own slots move");
            let bound = SLOTS / n + SLOTS / 20;
            assert!(moved <= bound, "{moved} of {SLOTS} with {n} workers");
            assert_eq!(table.winners(&vec![100; n]), whole, "and come back");
        }
    }
}

#[test]
fn shares_follow_the_weights() {
    for weights in [
        vec![100, 100],
        vec![300, 100],
        vec![10, 20, 30, 40],
        vec![1, 99],
    ] {
        let slots = table(weights.len() as u8).winners(&weights);
        let sum: u32 = weights.iter().sum();
        for (worker, weight) in weights.iter().enumerate() {
            let exact = SLOTS * *weight as usize / sum as usize;
            let off = taken(&slots, worker).abs_diff(exact);
            assert!(
                off <= SLOTS / 40,
                "{off} slots off for {weight} of {weights:?}"
            );
        }
    }
}

#[test]
fn assignment_depends_only_on_addresses_and_weights() {
    let mut one = table(3);
    let mut other = table(3);
    other.winners(&[7, 0, 3]);
    other.winners(&[0, 0, 0]);
    assert_eq!(one.winners(&[100, 100, 50]), other.winners(&[100, 100, 50]));
    // The same in every manager, on every machine.
    assert_eq!(
        one.winners(&[100, 100, 100])[..16],
        [1, 1, 0, 0, 2, 2, 2, 0, 2, 2, 0, 0, 2, 0, 0, 0]
    );
}

#[test]
fn fixed_point_logarithm_is_accurate() {
    for number in [
        1,
        2,
        3,
        1 << 20,
        (1 << 40) + 12_345,
        u64::MAX / 3,
        u64::MAX - 5_000,
    ] {
        let exact = 64.0 - (number as f64).log2();
        let ours = negative_log2(number) as f64 / (1_u64 << 48) as f64;
        assert!((ours - exact).abs() < 1e-9, "{number}: {ours} {exact}");
    }
    assert!(negative_log2(u64::MAX) > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn incremental_assignment_equals_full_assignment(
        steps in prop::collection::vec(prop::collection::vec(0..4u32, 6), 1..6),
    ) {
        let mut gradual = table(6);
        let mut last = Vec::new();
        for weights in &steps {
            last = gradual.winners(weights);
        }
        prop_assert_eq!(last, table(6).winners(steps.last().expect("a step")));
    }
}
