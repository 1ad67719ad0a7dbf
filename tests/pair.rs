//! Two managers with a real keepalived, and no connection lost.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    pair::{Pair, PairOptions, Turnover},
    root_test,
};

const SOON: Duration = Duration::from_secs(10);

#[root_test]
fn addresses_move_when_the_active_machine_dies() {
    let pair = Pair::start(&PairOptions::default()).unwrap();
    pair.wait_until_active(0, SOON).unwrap();
    let turnover = Turnover::start(&pair.network.client, 200).unwrap();
    thread::sleep(Duration::from_secs(2));
    pair.network.cut_off(0).unwrap();
    let died = Instant::now();
    thread::sleep(Duration::from_secs(2));
    let report = turnover.finish().unwrap();
    let took = report.first_answer_after(died).unwrap();
    println!(
        "first answer after {took:?}; lost {:?}",
        report.ages_of_lost(died).len()
    );
    assert!(took < Duration::from_secs(1), "{took:?}");
}
