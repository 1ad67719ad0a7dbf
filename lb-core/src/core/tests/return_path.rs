//! Mode `routed`: a worker whose answers do not pass the manager is not chosen; an event says why, and it is tried
//! again.

use super::*;

fn harness() -> Harness {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].mode = Mode::Routed;
    let mut harness = Harness::new(settings);
    harness.start("worker1", 600);
    harness.start("worker2", 300);
    count(&mut harness, 0, 0);
    harness.kinds();
    harness
}

/// What the programs have counted of worker 1 until now.
fn count(harness: &mut Harness, packets: u64, unanswered: u64) {
    let answers = ReplyCounters {
        packets,
        unanswered,
    };
    let answers = BTreeMap::from([(BackendId(1), answers)]);
    harness.core.handle_reply_counters(&answers, harness.now);
    harness.handle_timeout();
}

#[test]
fn a_worker_whose_answers_do_not_pass_is_not_chosen_until_a_pause_is_over() {
    let mut harness = harness();
    let mut unanswered = 0;
    for seconds in [10, 20, 40] {
        assert_eq!(harness.selected(), "worker1");
        unanswered += 2;
        count(&mut harness, 0, unanswered);
        assert_eq!(harness.selected(), "worker1");
        unanswered += 1;
        count(&mut harness, 0, unanswered);
        assert_eq!(harness.selected(), "worker2");
        assert_eq!(harness.state("worker1"), Health::Unreachable);
        assert_eq!(harness.kinds(), ["worker_ineligible", "selection_changed"]);
        let backends = &harness.core.snapshot(harness.now).services[0].backends;
        let why = backends[0].ineligible_reason.as_deref().expect("a reason");
        assert!(
            why.starts_with("no answer of worker1 passes the manager"),
            "{why}"
        );

        harness.advance(Duration::from_secs(seconds) - ms(1));
        count(&mut harness, 0, unanswered);
        assert_eq!(harness.selected(), "worker2");
        harness.advance(ms(1));
        count(&mut harness, 0, unanswered);
        assert_eq!(harness.kinds(), ["worker_eligible", "selection_changed"]);
    }
}

#[test]
fn one_answer_shows_that_there_is_a_return_path() {
    let mut harness = harness();
    for turn in 1..10 {
        count(&mut harness, turn, 100 * turn);
    }
    count(&mut harness, 9, 902);
    assert_eq!(harness.selected(), "worker1");
    count(&mut harness, 9, 903);
    assert_eq!(harness.selected(), "worker2");
    // One that was on its way.
    count(&mut harness, 10, 903);
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn return_path_state_is_reset_when_the_worker_was_down() {
    let mut harness = harness();
    count(&mut harness, 0, 3);
    assert_eq!(harness.state("worker1"), Health::Unreachable);
    harness.agents.remove("worker1");
    harness.advance(Duration::from_secs(2));
    count(&mut harness, 0, 9);
    assert_eq!(harness.state("worker1"), Health::Down);
    harness.start("worker1", 600);
    harness.advance(Duration::from_secs(1));
    count(&mut harness, 0, 9);
    assert_eq!(harness.state("worker1"), Health::Up);
}

#[test]
fn return_path_state_persists_over_a_reload_but_not_a_change_of_mode() {
    let mut harness = harness();
    count(&mut harness, 0, 3);
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].mode = Mode::Routed;
    harness.reconfigure(settings);
    assert_eq!(harness.state("worker1"), Health::Unreachable);
    harness.reconfigure(lab(Threshold::Bytes(64 * MIB)));
    assert_eq!(harness.state("worker1"), Health::Up);
}
