//! Passive ejection: handshakes that fail, trials, and the limit.

use super::*;

/// What the programs have counted of each backend.
#[derive(Debug, Default)]
pub(super) struct Counted(BTreeMap<BackendId, TrafficCounters>);

impl Counted {
    pub fn refuse(&mut self, backend: u32, handshakes: u64) {
        self.0.entry(BackendId(backend)).or_default().refused += handshakes;
    }

    pub fn ignore(&mut self, backend: u32, handshakes: u64) {
        self.0.entry(BackendId(backend)).or_default().unanswered += handshakes;
    }

    pub fn answer(&mut self, backend: u32, harness: &Harness) {
        let counters = self.0.entry(BackendId(backend)).or_default();
        counters.answered += 1;
        counters.last_packet = Some(harness.now);
    }

    /// Passes them to the core.
    pub fn sample(&self, harness: &mut Harness) {
        let counters = self.0.iter().map(|(id, it)| (*id, *it));
        harness.core.handle_traffic(counters, harness.now);
        harness.handle_timeout();
    }
}

/// Workers with 600, 500, 400, … MiB, of which the first is selected.
pub(super) fn harness(
    workers: &[&str],
    change: impl FnOnce(&mut CoreSettings),
) -> (Harness, Counted) {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services = vec![service(0, 1, workers, Threshold::Bytes(64 * MIB))];
    change(&mut settings);
    let mut harness = Harness::new(settings);
    for (worker, mib) in workers.iter().zip((1..=6).rev()) {
        harness.start(worker, 100 * mib);
    }
    let mut counted = Counted::default();
    for backend in 1..=workers.len() {
        counted.ignore(u32::try_from(backend).expect("few"), 0);
    }
    counted.sample(&mut harness);
    harness.kinds();
    (harness, counted)
}

fn without_fallback(settings: &mut CoreSettings) {
    settings.services[0].fallback = None;
}

fn finish_trial(harness: &mut Harness, outcome: TrialOutcome) {
    let backend = harness.core.poll_trial().expect("a trial");
    assert_eq!(harness.core.poll_trial(), None);
    harness.core.handle_trial(backend, outcome, harness.now);
    harness.handle_timeout();
}

#[test]
fn refusals_in_a_row_eject_until_a_trial_is_answered() {
    let (mut harness, mut counted) = harness(&["worker1", "worker2"], |_| ());
    for _ in 0..3 {
        counted.refuse(1, 2);
        counted.sample(&mut harness);
        harness.advance(ms(100));
        counted.answer(1, &harness);
        counted.sample(&mut harness);
    }
    assert_eq!(harness.state("worker1"), Health::Up, "an answer between");
    counted.refuse(1, 2);
    counted.sample(&mut harness);
    harness.advance(ms(200));
    counted.refuse(1, 1);
    counted.sample(&mut harness);
    assert_eq!(harness.state("worker1"), Health::Failing);
    assert_eq!(harness.selected(), "worker2");
    let Event::WorkerFailing {
        evidence,
        trial_in_ms,
        ..
    } = &harness.events[0]
    else {
        panic!("{:?}", harness.events);
    };
    let expected = Evidence {
        refused: 3,
        unanswered: 0,
        within: ms(200),
    };
    assert_eq!((*evidence, *trial_in_ms), (expected, 1_000));
    assert_eq!(harness.kinds(), ["worker_failing", "selection_changed"]);
    let backend = harness.core.snapshot(harness.now).services[0].backends[0].clone();
    assert_eq!(
        backend.reason.expect("a reason").text,
        "refused 3 handshakes in a row within 200 ms 0.0 s ago, tried in 1.0 s"
    );

    // Each failed trial doubles the pause.
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        harness.advance(Duration::from_secs(seconds) - ms(1));
        assert_eq!(harness.core.poll_trial(), None);
        harness.advance(ms(1));
        finish_trial(&mut harness, TrialOutcome::Failed);
    }
    assert_eq!(harness.state("worker1"), Health::Failing);
    harness.advance(Duration::from_secs(30));
    finish_trial(&mut harness, TrialOutcome::Answered);
    assert_eq!(harness.state("worker1"), Health::Up);
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(harness.kinds(), ["worker_recovered", "selection_changed"]);
}

#[test]
fn a_worker_that_fails_again_soon_waits_longer_and_after_a_while_does_not() {
    let (mut harness, mut counted) = harness(&["worker1", "worker2"], |_| ());
    let mut fail = |harness: &mut Harness| {
        counted.ignore(1, 3);
        counted.sample(harness);
        assert_eq!(harness.state("worker1"), Health::Failing);
    };
    fail(&mut harness);
    harness.advance(ms(1_000));
    finish_trial(&mut harness, TrialOutcome::Answered);
    harness.advance(ms(500));
    fail(&mut harness);
    harness.advance(ms(1_999));
    assert_eq!(harness.core.poll_trial(), None);
    harness.advance(ms(1));
    finish_trial(&mut harness, TrialOutcome::Answered);
    harness.advance(Duration::from_secs(30));
    fail(&mut harness);
    harness.advance(ms(1_000));
    finish_trial(&mut harness, TrialOutcome::Answered);
}

#[test]
fn old_refusals_do_not_count() {
    let (mut harness, mut counted) = harness(&["worker1", "worker2"], |_| ());
    for _ in 0..5 {
        counted.refuse(1, 2);
        counted.sample(&mut harness);
        harness.advance(ms(10_001));
    }
    assert_eq!(harness.state("worker1"), Health::Up);
}

#[test]
fn overload_does_not_eject_all_workers() {
    let (mut harness, mut counted) = harness(&["a", "b", "c", "d"], without_fallback);
    for backend in [1, 2, 3, 4, 3, 4] {
        counted.ignore(backend, 3);
        counted.sample(&mut harness);
    }
    let states = ["a", "b", "c", "d"].map(|it| harness.state(it));
    assert_eq!(
        states,
        [Health::Failing, Health::Failing, Health::Up, Health::Up]
    );
    let kinds = harness.kinds();
    let kept = kinds.iter().filter(|it| *it == "failing_worker_kept");
    assert_eq!(kept.count(), 2, "{kinds:?}");
}

#[test]
fn the_last_worker_stays_unless_a_fallback_serves() {
    let (mut lonely, mut counted) = harness(&["worker1"], without_fallback);
    counted.refuse(1, 9);
    counted.sample(&mut lonely);
    assert_eq!(lonely.state("worker1"), Health::Up);
    assert_eq!(lonely.kinds(), ["failing_worker_kept"]);

    let (mut harness, mut counted) = harness(&["worker1", "worker2"], |_| ());
    counted.refuse(1, 3);
    counted.refuse(2, 3);
    counted.sample(&mut harness);
    assert_eq!(harness.selected(), MANAGER);
    let problem = harness.core.snapshot(harness.now).services[0]
        .problem
        .clone();
    assert_eq!(
        problem.as_deref(),
        Some("no worker can serve (worker1, worker2 failing): the fallback on the manager serves")
    );
}

#[test]
fn a_check_that_fails_has_precedence_and_its_success_ends_the_ejection() {
    let (mut harness, mut counted) = harness(&["worker1", "worker2"], |_| ());
    counted.refuse(1, 3);
    counted.sample(&mut harness);
    harness.agents.get_mut("worker1").expect("an agent").healthy = false;
    harness.advance(ms(100));
    assert_eq!(harness.state("worker1"), Health::Unhealthy);
    harness.agents.get_mut("worker1").expect("an agent").healthy = true;
    harness.advance(ms(200));
    assert_eq!(harness.state("worker1"), Health::Up);
    harness.advance(Duration::from_secs(60));
    assert_eq!(harness.core.poll_trial(), None);
}

#[test]
fn a_reload_keeps_an_ejection_and_the_switch_ends_it() {
    let (mut harness, mut counted) = harness(&["worker1", "worker2"], |_| ());
    counted.refuse(1, 3);
    counted.sample(&mut harness);
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    harness.reconfigure(settings.clone());
    assert_eq!(harness.state("worker1"), Health::Failing);
    settings.services[0].passive_checks = false;
    harness.reconfigure(settings);
    assert_eq!(harness.state("worker1"), Health::Up);
    counted.refuse(1, 9);
    counted.sample(&mut harness);
    assert_eq!(harness.state("worker1"), Health::Up);
}
