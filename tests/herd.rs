//! Herding: if all connections go to the worker whose last report had the most memory, it fills up; `balanced` avoids
//! that.

use std::time::Duration;

use memlb_tests::{herd::Herd, root_test};

#[root_test]
fn balanced_has_the_lowest_peak_memory() {
    let fullest = |policy| {
        let herd = Herd {
            policy,
            report_interval: Duration::from_millis(500),
            duration: Duration::from_secs(8),
            seed: 1,
        };
        let outcome = herd.run().expect("a herd");
        println!("{policy}: {outcome:?}");
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        outcome.fullest_percent()
    };
    let [balanced, memory, round_robin] = ["balanced", "memory", "round_robin"].map(fullest);
    assert!(balanced <= 0.7 * memory, "{balanced} against {memory}");
    assert!(balanced <= round_robin, "{balanced} against {round_robin}");
}
