//! A thousand workers that send signed heartbeats: their cost, and the delay until one is marked as down.

#[path = "../benchmarks/benches/control/crowd.rs"]
mod crowd;

use std::time::{Duration, Instant};

use memlb_tests::root_test;
use serde_json::Value;

use crate::crowd::{Crowd, processor_time};

/// On a busy machine the manager falls behind its queue.
const PATIENCE: Duration = Duration::from_secs(17);

/// The allowed delay after the deadline, and the addition for a machine that builds and tests at the same time.
const LATE: Duration = Duration::from_millis(20);
const TOLERANCE: Duration = Duration::from_millis(180);

#[root_test]
fn one_stopped_worker_of_a_thousand_is_detected_in_time() {
    let (cluster, mut crowd) = Crowd::start("memory").unwrap();
    let (cost, begun) = (processor_time(&cluster).unwrap(), Instant::now());
    crowd.send_for(Duration::from_secs(3)).unwrap();
    let (worker, _) = crowd.stop_one().unwrap();
    let stopped = Instant::now();
    let down = loop {
        crowd.send_for(Duration::from_millis(500)).unwrap();
        let down = cluster.events_of("worker_down").unwrap();
        if !down.is_empty() || stopped.elapsed() > PATIENCE {
            break down;
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    let share = (processor_time(&cluster).unwrap() - cost).as_secs_f64() / seconds;
    let status = cluster.status().unwrap();
    let accepted = status["heartbeats"]["accepted"].as_u64().unwrap();
    println!(
        "{:.0} signed heartbeats/s cost {:.0} % of a core; {}",
        accepted as f64 / seconds,
        share * 100.0,
        status["heartbeats"]
    );
    // A busy machine loses some heartbeats, which must not mark a worker as down.
    assert!(
        accepted > crowd.sent() / 4,
        "{accepted} of {}: {}",
        crowd.sent(),
        status["heartbeats"]
    );
    let refused = status["heartbeats"]["refused"].as_object().unwrap();
    assert_eq!(refused.keys().collect::<Vec<_>>(), ["not_fresh"]);
    assert_eq!(down.len(), 1, "{down:?}");
    assert_eq!(down[0]["worker"], Value::from(worker));
    let silent = Duration::from_millis(down[0]["silent_ms"].as_u64().unwrap());
    let late = silent.saturating_sub(lb_core::DEFAULT_DOWN_AFTER);
    println!("noticed {late:?} after its deadline");
    assert!(late <= LATE + TOLERANCE, "{late:?}");
}
