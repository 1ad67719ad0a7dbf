//! Heartbeats lost, repeated, out of order, late, replayed, and a manager that did not listen.

use super::*;
use HeartbeatOutcome::{
    Accepted, Duplicate, OldBoot, Reordered, SequenceReset, Superseded, UnknownWorker,
};

#[test]
fn worker_stays_up_while_most_heartbeats_are_lost() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    // 13 of 14 are lost.
    for number in (1..1000).step_by(14) {
        assert_eq!(harness.receive("worker1", 7, number, 400), Accepted);
        harness.advance(ms(1_400));
        assert_eq!(harness.state("worker1"), Health::Up);
    }
    assert!(!harness.kinds().contains(&"worker_down".to_owned()));
}

#[test]
fn duplicate_and_late_heartbeats_update_neither_memory_nor_deadline() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    assert_eq!(harness.receive("worker1", 7, 5, 400), Accepted);
    let deadline = harness.core.poll_timeout();
    harness.advance(ms(1_000));
    let before = harness.core.snapshot(harness.now);
    assert_eq!(harness.receive("worker1", 7, 5, 100), Duplicate);
    assert_eq!(harness.receive("worker1", 7, 4, 100), Reordered);
    assert_eq!(harness.core.snapshot(harness.now), before);
    assert_eq!(harness.core.poll_timeout(), deadline);
    harness.advance(ms(1_000));
    assert_eq!(harness.state("worker1"), Health::Down);
    // Nor do they bring a dead worker back.
    for number in [5, 4, 3, 2, 1] {
        assert_ne!(harness.receive("worker1", 7, number, 400), Accepted);
    }
    assert_eq!(harness.state("worker1"), Health::Down);
}

#[test]
fn a_restarted_agent_starts_again_and_its_former_boot_is_refused() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    assert_eq!(harness.receive("worker1", 7, 900, 400), Accepted);
    assert_eq!(harness.receive("worker1", 8, 1, 300), Accepted);
    // A late one from before the restart, with a higher number.
    assert_eq!(harness.receive("worker1", 7, 901, 400), OldBoot);
    assert_eq!(harness.receive("worker1", 8, 2, 300), Accepted);
    let kinds = harness.kinds();
    let restarts = kinds.iter().filter(|kind| *kind == "agent_restarted");
    assert_eq!(restarts.count(), 1);
}

#[test]
fn after_a_silence_unsigned_numbers_may_start_again() {
    let unsigned = |number| Report {
        signed: false,
        ..report("worker1", 7, number, 400)
    };
    let mut harness = Harness::new(lab(Threshold::Auto));
    assert_eq!(harness.handle_heartbeat(&unsigned(36_000)), Accepted);
    harness.advance(DOWN_AFTER);
    assert_eq!(harness.handle_heartbeat(&unsigned(1_000)), Reordered);
    harness.advance(ms(1));
    assert_eq!(harness.state("worker1"), Health::Down);
    for number in 1_001..1_003 {
        assert_eq!(harness.handle_heartbeat(&unsigned(number)), Accepted);
        harness.advance(HEARTBEAT_INTERVAL);
    }
    assert_eq!(harness.state("worker1"), Health::Up);
    assert_eq!(harness.handle_heartbeat(&unsigned(1_001)), Reordered);
    let kinds = harness.kinds();
    let resets = kinds.iter().filter(|kind| *kind == "sequence_reset");
    assert_eq!(resets.count(), 1);
}

#[test]
fn after_a_silence_a_signed_worker_needs_a_new_boot() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    assert_eq!(harness.receive("worker1", 7, 36_000, 400), Accepted);
    harness.advance(ms(60_000));
    for number in 1_000..1_010 {
        let recorded = harness.receive("worker1", 7, number, 400);
        assert_eq!(recorded, SequenceReset);
    }
    let last = harness.receive("worker1", 7, 36_000, 400);
    assert_eq!(last, Duplicate);
    assert_eq!(harness.state("worker1"), Health::Down);
    for number in 1_010..1_012 {
        let restored = harness.receive("worker1", 8, number, 400);
        assert_eq!(restored, Accepted);
        harness.advance(HEARTBEAT_INTERVAL);
    }
    assert_eq!(harness.state("worker1"), Health::Up);
    // What was recorded of the boot before counts no more, now or after the next silence.
    let before = report("worker1", 7, 1_009, 400);
    assert_eq!(harness.handle_heartbeat(&before), OldBoot);
    harness.advance(ms(60_000));
    assert_eq!(harness.handle_heartbeat(&before), SequenceReset);
    assert_eq!(harness.state("worker1"), Health::Down);
}

#[test]
fn stale_memory_figures_are_reported_once_and_the_worker_stays_up() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 400);
    harness.kinds();
    for (stale, kinds) in [
        (Some(ms(100)), vec!["memory_stale"]),
        (Some(ms(200)), vec![]),
        (None, vec!["memory_fresh"]),
    ] {
        let agent = harness.agents.get_mut("worker1").unwrap();
        agent.memory_stale = stale;
        harness.send_heartbeat("worker1");
        assert_eq!(harness.kinds(), kinds);
        assert_eq!(harness.state("worker1"), Health::Up);
        let snapshot = harness.core.snapshot(harness.now);
        let shown = snapshot.services[0].backends[0].memory_stale_ms;
        assert_eq!(shown, stale.map(milliseconds));
    }
}

#[test]
fn of_two_agents_with_one_name_the_remaining_one_counts() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    for number in 1..10 {
        let one = harness.receive("worker1", 7, number, 400);
        let other = harness.receive("worker1", 8, number, 300);
        let expected = if number == 1 { Accepted } else { OldBoot };
        assert_eq!((one, other), (expected, Accepted));
        harness.advance(HEARTBEAT_INTERVAL);
    }
    harness.advance(ms(2_000));
    assert_eq!(harness.state("worker1"), Health::Down);
    assert_eq!(harness.receive("worker1", 7, 9, 400), Accepted);
    assert_eq!(harness.receive("worker1", 7, 10, 400), Accepted);
    assert_eq!(harness.state("worker1"), Health::Up);
    assert_eq!(harness.receive("worker1", 8, 10, 300), OldBoot);
}

#[test]
fn heartbeats_of_unknown_workers_are_refused() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    let before = harness.core.snapshot(harness.now);
    assert_eq!(harness.receive("worker3", 7, 1, 400), UnknownWorker);
    assert_eq!(harness.receive("manager", 7, 1, 400), UnknownWorker);
    assert_eq!(harness.core.snapshot(harness.now), before);
}

fn legacy(worker: &str, available_mib: u64) -> Report {
    let mut report = report(worker, 0, 0, available_mib);
    report.sequence = None;
    report.interval = None;
    report.memory.total_bytes = None;
    report
}

#[test]
fn a_2018_worker_is_up_by_the_same_rules() {
    let mut harness = Harness::new(lab(Threshold::Bytes(64 * MIB)));
    harness.start("worker1", 300);
    assert_eq!(harness.handle_heartbeat(&legacy("worker2", 394)), Accepted);
    assert_eq!(harness.selected(), "worker2");
    harness.advance(ms(1_500));
    assert_eq!(harness.selected(), "worker2");
    harness.advance(ms(1));
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn a_worker_that_sends_both_formats_is_judged_by_version_1() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    assert_eq!(harness.handle_heartbeat(&legacy("worker1", 100)), Accepted);
    assert_eq!(harness.receive("worker1", 7, 1, 400), Accepted);
    assert_eq!(
        harness.handle_heartbeat(&legacy("worker1", 100)),
        Superseded
    );
    harness.advance(ms(2_000));
    assert_eq!(harness.state("worker1"), Health::Down);
    assert_eq!(harness.handle_heartbeat(&legacy("worker1", 100)), Accepted);
}

#[test]
fn reports_once_that_a_worker_sends_too_seldom() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    for number in 1..5 {
        let mut slow = report("worker1", 7, number, 400);
        slow.interval = Some(ms(501));
        assert_eq!(harness.handle_heartbeat(&slow), Accepted);
    }
    let kinds = harness.kinds();
    let text = kinds.iter().filter(|kind| *kind == "interval_too_long");
    assert_eq!(text.count(), 1);
}

#[test]
fn resumed_manager_with_a_full_queue_marks_no_worker_down() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 500);
    harness.start("worker2", 300);
    harness.advance(ms(1_000));
    harness.kinds();
    // Stopped for ten seconds: then the queue is read before the deadlines are checked.
    harness.now += ms(10_000);
    for _ in 0..100 {
        harness.send_heartbeat("worker1");
        harness.send_heartbeat("worker2");
    }
    harness.handle_timeout();
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(harness.kinds(), ["manager_stalled"]);
}

#[test]
fn resumed_manager_with_an_empty_queue_waits_for_heartbeats() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 500);
    harness.start("worker2", 300);
    harness.advance(ms(1_050));
    // Worker1 was last heard at 1,000 ms and dies; the manager stops for ten seconds.
    harness.agents.remove("worker1");
    harness.kinds();
    let asleep = ms(10_000);
    harness.now += asleep;
    harness.next_heartbeat += asleep;
    harness.handle_timeout();
    assert_eq!(harness.kinds(), ["manager_stalled"]);
    // Of the silence it had 1,450 ms left, which it now gets.
    harness.advance(ms(1_450));
    assert_eq!(harness.selected(), "worker1");
    harness.advance(ms(1));
    assert_eq!(harness.selected(), "worker2");
    assert_eq!(harness.state("worker2"), Health::Up);
}

#[test]
fn slightly_late_manager_still_marks_silent_workers_down() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 500);
    harness.now += DOWN_AFTER + ms(300);
    harness.handle_timeout();
    assert_eq!(harness.state("worker1"), Health::Down);
}

#[test]
fn flood_that_delays_timeouts_does_not_hide_a_dead_worker() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 500);
    let flood = report("stranger", 0, 0, 1);
    for _ in 0..10_000 {
        harness.now += ms(1);
        assert_eq!(harness.handle_heartbeat(&flood), UnknownWorker);
    }
    // A pause after the deadline was missed excuses nothing.
    harness.now += DOWN_AFTER / 3;
    harness.handle_timeout();
    assert_eq!(harness.state("worker1"), Health::Down);
    assert!(!harness.kinds().contains(&"manager_stalled".to_owned()));
}
