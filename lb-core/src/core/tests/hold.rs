//! Policy `memory` does not oscillate: it keeps a worker for the hold's time after a switch.

use super::*;

const DEFAULT_HOLD: Duration = Duration::from_millis(1_000);

/// The lab with both workers up, worker2 selected by preference just now, and worker1 the better again.
fn waiting() -> Harness {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services[0].memory.hold = DEFAULT_HOLD;
    let mut harness = Harness::new(settings);
    harness.start("worker1", 300);
    harness.start("worker2", 290);
    harness.advance(ms(5_000));
    harness.report_memory("worker2", 500);
    assert_eq!(harness.selected(), "worker2");
    harness.report_memory("worker1", 690);
    harness
}

impl Harness {
    fn report_memory(&mut self, worker: &str, available_mib: u64) {
        let agent = self.agents.get_mut(worker).expect("a running agent");
        agent.memory.available_bytes = available_mib * MIB;
        self.send_heartbeat(worker);
    }

    fn waits_for(&self) -> Option<WaitingSnapshot> {
        self.core.snapshot(self.now).services[0].waiting.clone()
    }
}

#[test]
fn better_worker_takes_over_exactly_at_the_end_of_the_hold() {
    let mut harness = waiting();
    let waits = harness.waits_for().expect("worker1 waits");
    assert_eq!((waits.worker.as_str(), waits.left_ms), ("worker1", 1_000));
    harness.events.clear();
    harness.advance(DEFAULT_HOLD - Duration::from_nanos(1));
    assert_eq!(harness.selected(), "worker2");
    // No heartbeat comes now: the hold ends by itself.
    assert_eq!(
        harness.core.poll_timeout(),
        Some(harness.now + Duration::from_nanos(1))
    );
    harness.advance(Duration::from_nanos(1));
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(harness.waits_for(), None);
    assert_eq!(harness.kinds(), ["selection_changed"]);
}

#[test]
fn worker_that_is_no_longer_better_does_not_take_over() {
    let mut harness = waiting();
    harness.report_memory("worker1", 510);
    assert_eq!(harness.waits_for(), None);
    harness.advance(ms(5_000));
    assert_eq!(harness.selected(), "worker2");
}

#[test]
fn failover_does_not_wait_and_begins_a_hold() {
    let mut harness = waiting();
    harness.advance(ms(500));
    let agent = harness.agents.get_mut("worker2").expect("an agent");
    agent.healthy = false;
    harness.send_heartbeat("worker2");
    assert_eq!(harness.selected(), "worker1");
    harness.agents.get_mut("worker2").expect("an agent").healthy = true;
    harness.report_memory("worker1", 100);
    harness.advance(ms(999));
    assert_eq!(harness.selected(), "worker1");
    harness.advance(ms(1));
    assert_eq!(harness.selected(), "worker2");
}

#[test]
fn drain_does_not_wait_for_the_end_of_the_hold() {
    let mut harness = waiting();
    let drain = AdminCommand {
        worker: "worker2".to_owned(),
        service: None,
        action: AdminAction::SetState {
            state: AdminState::Drain,
        },
        by: "root".to_owned(),
        at_ms: 0,
        reason: None,
    };
    harness
        .core
        .handle_admin_command(&drain, harness.now)
        .expect("a worker");
    harness.drain();
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn worker_without_headroom_is_left_at_once_for_one_with_headroom() {
    let mut harness = waiting();
    // 35 MiB, a twentieth, are its reserve.
    harness.report_memory("worker2", 35);
    assert_eq!(harness.selected(), "worker1");
    let text = harness.events.last().expect("an event").to_string();
    assert!(text.ends_with("worker2 has none to spare"), "{text}");

    let mut settings = lab(Threshold::Bytes(MIB));
    settings.services[0].memory.hold = DEFAULT_HOLD;
    let mut harness = Harness::new(settings);
    harness.start("worker1", 10);
    harness.start("worker2", 12);
    assert_eq!(harness.selected(), "worker2");
    harness.report_memory("worker1", 20);
    assert_eq!(harness.selected(), "worker2");
}

#[test]
fn a_reload_changes_the_hold_and_a_restart_begins_one() {
    let mut harness = waiting();
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    harness.reconfigure(settings.clone());
    assert_eq!(harness.selected(), "worker1");

    settings.services[0].memory.hold = DEFAULT_HOLD;
    let adopted = AdoptedState {
        selections: [(WEB, BackendId(1))].into(),
        ..AdoptedState::default()
    };
    let core = Core::resume(settings, &adopted, harness.now);
    let mut harness = Harness::with_core(core, harness.now);
    harness.start("worker1", 100);
    harness.start("worker2", 500);
    assert_eq!(harness.selected(), "worker1");
    harness.advance(DEFAULT_HOLD);
    assert_eq!(harness.selected(), "worker2");
}

#[test]
fn first_selection_begins_no_hold() {
    let mut settings = lab(Threshold::Auto);
    settings.services[0].memory.hold = DEFAULT_HOLD;
    let mut harness = Harness::new(settings);
    harness.start("worker1", 100);
    harness.start("worker2", 500);
    assert_eq!(
        harness.selected(),
        "worker2",
        "the worker of the first heartbeat does not stay selected"
    );
}
