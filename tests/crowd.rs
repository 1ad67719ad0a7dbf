//! A thousand workers that sign: are they all heard, and what does it cost?

#[path = "../benchmarks/benches/control/crowd.rs"]
mod crowd;

use std::time::{Duration, Instant};

use memlb_tests::root_test;
use serde_json::Value;

use crate::crowd::{Crowd, processor_time};

/// A machine with other work falls behind, so that the death waits in the queue with the rest.
const PATIENCE: Duration = Duration::from_secs(17);

/// What the issue allows, and what a machine that builds and tests beside it may add.
const LATE: Duration = Duration::from_millis(20);
const TOLERANCE: Duration = Duration::from_millis(180);

#[root_test]
fn a_thousand_signed_workers_report_and_one_death_among_them_is_detected() {
    let (cluster, mut crowd) = Crowd::start("memory").unwrap();
    let (cost, begun) = (processor_time(&cluster).unwrap(), Instant::now());
    crowd.send_for(Duration::from_secs(3)).unwrap();
    let (dead, _) = crowd.silence_one().unwrap();
    let buried = Instant::now();
    let down = loop {
        crowd.send_for(Duration::from_millis(500)).unwrap();
        let down = cluster.events_of("worker_down").unwrap();
        if !down.is_empty() || buried.elapsed() > PATIENCE {
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
    // A machine with other work loses some, which must be no death.
    assert!(
        accepted > crowd.sent() / 4,
        "{accepted} of {}: {}",
        crowd.sent(),
        status["heartbeats"]
    );
    let refused = status["heartbeats"]["refused"].as_object().unwrap();
    assert_eq!(refused.keys().collect::<Vec<_>>(), ["not_fresh"]);
    assert_eq!(down.len(), 1, "{down:?}");
    assert_eq!(down[0]["worker"], Value::from(dead));
    let silent = Duration::from_millis(down[0]["silent_ms"].as_u64().unwrap());
    let late = silent.saturating_sub(lb_core::DEFAULT_DOWN_AFTER);
    println!("noticed {late:?} after its deadline");
    assert!(late <= LATE + TOLERANCE, "{late:?}");
}
