//! The panic threshold: heartbeats that stop all at once, while clients are answered or not.

use super::failing::{Counted, harness};
use super::*;

const WORKERS: [&str; 3] = ["worker1", "worker2", "worker3"];

/// Lets time pass in which the given backends answer a client every 50 ms.
fn advance_with_answers(
    harness: &mut Harness,
    counted: &mut Counted,
    time: Duration,
    answering: &[u32],
) {
    let end = harness.now + time;
    while harness.now < end {
        harness.advance(ms(50));
        answering.iter().for_each(|it| counted.answer(*it, harness));
        counted.sample(harness);
    }
}

fn states(harness: &Harness) -> [Health; 3] {
    WORKERS.map(|worker| harness.state(worker))
}

#[test]
fn workers_that_answer_clients_stay_up_without_heartbeats() {
    let (mut harness, mut counted) = harness(&WORKERS, |_| ());
    let agents = std::mem::take(&mut harness.agents);
    advance_with_answers(&mut harness, &mut counted, ms(5_000), &[1, 2]);
    // The third has no client.
    assert_eq!(states(&harness), [Health::Up, Health::Up, Health::Down]);
    assert_eq!(harness.selected(), "worker1");
    let kinds = harness.kinds();
    let missing = kinds
        .iter()
        .filter(|it| *it == "heartbeats_missing")
        .count();
    assert_eq!((missing, kinds.len()), (1, 2), "{kinds:?}");
    let problem = harness.core.snapshot(harness.now).services[0]
        .problem
        .clone();
    assert!(problem.is_some_and(|it| it.contains("2 stay up because their packets arrive")));

    harness.agents = agents;
    advance_with_answers(&mut harness, &mut counted, ms(1_000), &[1]);
    assert_eq!(states(&harness), [Health::Up; 3]);
    let kinds = harness.kinds();
    assert!(kinds.contains(&"heartbeats_back".to_owned()), "{kinds:?}");
    assert_eq!(harness.core.snapshot(harness.now).services[0].problem, None);
}

#[test]
fn without_heartbeats_and_traffic_the_service_fails_over_at_down_after() {
    let (mut harness, mut counted) = harness(&WORKERS, |_| ());
    advance_with_answers(&mut harness, &mut counted, ms(1_000), &[1, 2, 3]);
    harness.agents.clear();
    let last = harness.now;
    advance_with_answers(&mut harness, &mut counted, ms(1_450), &[]);
    assert_eq!(states(&harness), [Health::Up; 3]);
    harness.advance(last + DOWN_AFTER + ms(1) - harness.now);
    assert_eq!(states(&harness), [Health::Down; 3]);
    assert_eq!(harness.selected(), MANAGER);
}

#[test]
fn single_silent_worker_is_down_at_down_after_despite_its_packets() {
    let (mut harness, mut counted) = harness(&WORKERS, |_| ());
    harness.agents.remove("worker1");
    let last = harness.now;
    advance_with_answers(&mut harness, &mut counted, ms(1_450), &[1, 2, 3]);
    assert_eq!(harness.state("worker1"), Health::Up);
    harness.advance(last + DOWN_AFTER + ms(1) - harness.now);
    assert_eq!(harness.state("worker1"), Health::Down);
}

#[test]
fn a_worker_without_an_agent_is_not_silent_with_another_one() {
    let (mut harness, mut counted) = harness(&["worker1", "sorry"], |settings| {
        settings.services[0].backends[1].agent = false;
    });
    harness.agents.clear();
    advance_with_answers(&mut harness, &mut counted, ms(2_000), &[1, 2]);
    assert_eq!(harness.state("worker1"), Health::Down);
}

#[test]
fn handshakes_detect_a_dead_worker_during_a_heartbeat_outage() {
    let (mut harness, mut counted) = harness(&["worker1", "worker2"], |settings| {
        settings.services[0].fallback = None;
    });
    harness.agents.clear();
    advance_with_answers(&mut harness, &mut counted, ms(3_000), &[1, 2]);
    counted.ignore(1, 3);
    counted.sample(&mut harness);
    assert_eq!(harness.state("worker1"), Health::Failing);
    assert_eq!(harness.selected(), "worker2");
    // Silent in both ways, the last one goes, too.
    counted.ignore(2, 3);
    counted.sample(&mut harness);
    assert_eq!(harness.selected(), NO_BACKEND);
}

#[test]
fn without_panic_threshold_or_passive_checks_heartbeats_alone_decide() {
    let changes: [fn(&mut CoreSettings); 3] = [
        |settings| settings.panic_percent = None,
        |settings| settings.failing.after = 0,
        |settings| settings.services[0].passive_checks = false,
    ];
    for change in changes {
        let (mut harness, mut counted) = harness(&WORKERS, change);
        harness.agents.clear();
        advance_with_answers(&mut harness, &mut counted, ms(1_600), &[1, 2, 3]);
        assert_eq!(states(&harness), [Health::Down; 3]);
    }
}

#[test]
fn a_worker_that_stays_up_without_heartbeats_is_down_when_the_settings_no_longer_allow_that() {
    let settings = || {
        let mut settings = lab(Threshold::Bytes(64 * MIB));
        settings.services = vec![service(0, 1, &WORKERS, Threshold::Bytes(64 * MIB))];
        settings
    };
    type Change = fn(&mut CoreSettings);
    let changes: [(Change, Health); 5] = [
        (|_| (), Health::Up),
        (|settings| settings.panic_percent = None, Health::Down),
        (|settings| settings.failing.after = 0, Health::Down),
        (
            |settings| settings.services[0].passive_checks = false,
            Health::Down,
        ),
        (
            |settings| {
                let backends = settings.services[0].backends.iter_mut();
                backends.for_each(|it| it.agent = false);
            },
            Health::Up,
        ),
    ];
    for (number, (change, expected)) in changes.into_iter().enumerate() {
        let (mut harness, mut counted) = harness(&WORKERS, |_| ());
        harness.agents.clear();
        advance_with_answers(&mut harness, &mut counted, ms(3_000), &[1, 2, 3]);
        assert_eq!(states(&harness), [Health::Up; 3]);
        let mut changed = settings();
        change(&mut changed);
        harness.reconfigure(changed);
        assert_eq!(states(&harness), [expected; 3], "change {number}");
        let problem = harness.core.snapshot(harness.now).services[0]
            .problem
            .clone();
        let is_outage = problem.is_some_and(|it| it.contains("stay up because their packets"));
        assert_eq!(is_outage, number == 0, "change {number}");
    }
}
