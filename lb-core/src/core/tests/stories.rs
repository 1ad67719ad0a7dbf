//! Scenarios of the system of 2018: which worker serves while workers come, go and fill up.

use super::*;

/// What happens to the lab.
#[derive(Debug, Clone, Copy)]
enum Step {
    Nothing,
    /// The agent starts and sends heartbeats from now on.
    Start(&'static str, u64),
    /// The agent is silent from now on.
    Cut(&'static str),
    /// Available memory is another from the next heartbeat on, which is sent now.
    Memory(&'static str, u64),
    Unhealthy(&'static str),
    Healthy(&'static str),
    Leave(&'static str),
    Maintenance(&'static str),
    Ready(&'static str),
    /// One heartbeat only.
    Once(&'static str, u64),
}
use Step::*;

impl Harness {
    fn apply(&mut self, step: Step) {
        match step {
            Nothing => {}
            Start(worker, mib) => self.start(worker, mib),
            Cut(worker) => {
                self.agents.remove(worker);
            }
            Memory(worker, mib) => {
                self.change(worker, |agent| agent.memory.available_bytes = mib * MIB);
            }
            Unhealthy(worker) => self.change(worker, |agent| agent.healthy = false),
            Healthy(worker) => self.change(worker, |agent| agent.healthy = true),
            Leave(worker) => {
                self.change(worker, |agent| agent.state = WorkerState::Leaving);
                self.agents.remove(worker);
            }
            Maintenance(worker) => {
                self.change(worker, |agent| agent.state = WorkerState::Maintenance);
            }
            Ready(worker) => self.change(worker, |agent| agent.state = WorkerState::Ready),
            Once(worker, mib) => {
                self.start(worker, mib);
                self.agents.remove(worker);
            }
        }
    }

    fn change(&mut self, worker: &str, change: impl FnOnce(&mut Report)) {
        change(self.agents.get_mut(worker).expect("a running agent"));
        self.send_heartbeat(worker);
    }
}

/// The millisecond, the action, and which worker serves from then on.
type Story = &'static [(u64, Step, &'static str)];

const STORIES: &[(&str, Story)] = &[
    (
        "the manager serves until the first heartbeat; its worker takes over at once",
        &[
            (0, Nothing, "manager"),
            (60_000, Nothing, "manager"),
            (60_000, Start("worker2", 300), "worker2"),
            (60_010, Start("worker1", 320), "worker2"),
        ],
    ),
    (
        "worker1 is down: worker2 serves, whatever memory it has",
        &[
            (0, Start("worker1", 500), "worker1"),
            (10, Start("worker2", 100), "worker1"),
            (950, Cut("worker1"), "worker1"),
            // The last heartbeat was at 900 ms.
            (2_400, Nothing, "worker1"),
            (2_401, Nothing, "worker2"),
        ],
    ),
    (
        "worker2 is down: nothing changes, then it is missing when worker1 fails",
        &[
            (0, Start("worker1", 500), "worker1"),
            (10, Start("worker2", 100), "worker1"),
            (950, Cut("worker2"), "worker1"),
            (5_000, Nothing, "worker1"),
            (5_050, Unhealthy("worker1"), "manager"),
        ],
    ),
    (
        "both are down: the manager serves, until one comes back",
        &[
            (0, Start("worker1", 500), "worker1"),
            (10, Start("worker2", 450), "worker1"),
            (1_050, Cut("worker1"), "worker1"),
            (1_050, Cut("worker2"), "worker1"),
            (2_500, Nothing, "worker1"),
            (2_501, Nothing, "manager"),
            (20_000, Start("worker2", 450), "manager"),
            (20_100, Nothing, "worker2"),
        ],
    ),
    (
        "a recovered worker is chosen again only by its memory",
        &[
            (0, Start("worker1", 500), "worker1"),
            (10, Start("worker2", 300), "worker1"),
            (950, Cut("worker1"), "worker1"),
            (2_950, Start("worker1", 340), "worker2"),
            (3_500, Nothing, "worker2"),
            (4_000, Memory("worker1", 500), "worker1"),
        ],
    ),
    (
        "memory shifts within the threshold of 64 MiB: the selection stays",
        &[
            (0, Start("worker1", 400), "worker1"),
            (10, Start("worker2", 400), "worker1"),
            (1_000, Memory("worker2", 464), "worker1"),
            (2_000, Memory("worker1", 420), "worker1"),
        ],
    ),
    (
        "memory shifts beyond the threshold: the other worker, and back only beyond it again",
        &[
            (0, Start("worker1", 400), "worker1"),
            (10, Start("worker2", 400), "worker1"),
            (1_000, Memory("worker2", 465), "worker2"),
            (2_000, Memory("worker2", 340), "worker2"),
            (3_000, Memory("worker2", 335), "worker1"),
        ],
    ),
    (
        "the selected worker fills up: the same threshold holds",
        &[
            (0, Start("worker1", 400), "worker1"),
            (10, Start("worker2", 380), "worker1"),
            (1_000, Memory("worker1", 316), "worker1"),
            (2_000, Memory("worker1", 315), "worker2"),
        ],
    ),
    (
        "an unhealthy service acts at once; its way back takes two good heartbeats",
        &[
            (0, Start("worker1", 400), "worker1"),
            (10, Start("worker2", 100), "worker1"),
            (1_010, Unhealthy("worker1"), "worker2"),
            (1_020, Healthy("worker1"), "worker2"),
            (1_099, Nothing, "worker2"),
            (1_100, Nothing, "worker1"),
        ],
    ),
    (
        "an agent that leaves acts at once, and started again it proves itself first",
        &[
            (0, Start("worker1", 400), "worker1"),
            (10, Start("worker2", 100), "worker1"),
            (1_010, Leave("worker1"), "worker2"),
            (9_950, Start("worker1", 400), "worker2"),
            (10_000, Nothing, "worker1"),
        ],
    ),
    (
        "maintenance acts at once and lasts as long as heartbeats say so",
        &[
            (0, Start("worker1", 400), "worker1"),
            (10, Start("worker2", 100), "worker1"),
            (1_010, Maintenance("worker1"), "worker2"),
            (9_000, Nothing, "worker2"),
            (9_010, Ready("worker1"), "worker2"),
            (9_100, Nothing, "worker1"),
        ],
    ),
    (
        "a flapping worker does not flap the service",
        &[
            (0, Start("worker2", 100), "worker2"),
            (10, Once("worker1", 600), "worker1"),
            (1_511, Nothing, "worker2"),
            // One heartbeat now and then is never two in a row.
            (4_000, Once("worker1", 600), "worker2"),
            (6_000, Once("worker1", 600), "worker2"),
            (8_000, Once("worker1", 600), "worker2"),
            (9_000, Once("worker1", 600), "worker1"),
        ],
    ),
];

#[test]
fn each_story_selects_the_expected_workers() {
    for (title, story) in STORIES {
        let mut harness = Harness::new(lab(Threshold::Bytes(64 * MIB)));
        let start = harness.now;
        for (row, &(at, step, serves)) in story.iter().enumerate() {
            harness.advance(start + ms(at) - harness.now);
            harness.apply(step);
            let selected = harness.selected();
            assert_eq!(selected, serves, "{title}: row {row}, {at} ms, {step:?}");
        }
    }
}

#[test]
fn a_worker_is_up_at_exactly_down_after_and_down_a_nanosecond_later() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.apply(Once("worker1", 400));
    let deadline = harness.core.poll_timeout().expect("a deadline");
    assert_eq!(deadline, harness.now + DOWN_AFTER + Duration::from_nanos(1));

    harness.now += DOWN_AFTER;
    harness.handle_timeout();
    assert_eq!(harness.state("worker1"), Health::Up);
    assert_eq!(harness.core.poll_timeout(), Some(deadline));
    harness.now = deadline;
    harness.handle_timeout();
    assert_eq!(harness.state("worker1"), Health::Down);
    assert_eq!(harness.core.poll_timeout(), None);
}

#[test]
fn the_threshold_may_be_a_share_of_the_selected_workers_memory() {
    let mut harness = Harness::new(lab(Threshold::Percent(10)));
    harness.start("worker1", 400);
    harness.start("worker2", 440);
    assert_eq!(harness.selected(), "worker1");
    harness.apply(Memory("worker2", 441));
    assert_eq!(harness.selected(), "worker2");
    // It shrinks as the selected worker fills up.
    harness.apply(Memory("worker1", 100));
    harness.apply(Memory("worker2", 90));
    assert_eq!(
        harness.selected(),
        "worker1" /* failing to move would need 99 */
    );
}

#[test]
fn auto_threshold_is_the_first_difference_of_memory() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    let threshold =
        |harness: &Harness| harness.core.snapshot(harness.now).services[0].threshold_bytes;
    harness.start("worker1", 394);
    assert_eq!(threshold(&harness), None);
    harness.start("worker2", 424);
    assert_eq!(threshold(&harness), Some(30 * MIB));
    assert_eq!(
        harness.selected(),
        "worker2",
        "the first comparison selects the best worker, not the one whose heartbeat came first"
    );
    harness.apply(Memory("worker1", 454));
    assert_eq!(
        harness.selected(),
        "worker2",
        "not better by more than the threshold"
    );
    harness.apply(Memory("worker1", 455));
    assert_eq!(harness.selected(), "worker1");
    assert_eq!(threshold(&harness), Some(30 * MIB), "it is found once");
    let kinds = harness.kinds();
    let learned = kinds.iter().filter(|kind| *kind == "threshold_learned");
    assert_eq!(learned.count(), 1);
}

#[test]
fn auto_threshold_of_equal_workers_has_a_minimum() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 400);
    harness.start("worker2", 400);
    // Equal workers differ by up to a hundredth of their total.
    harness.apply(Memory("worker2", 407));
    assert_eq!(harness.selected(), "worker1");
    harness.apply(Memory("worker2", 408));
    assert_eq!(harness.selected(), "worker2");
}

#[test]
fn of_equal_workers_the_one_configured_first_takes_over() {
    let mut settings = lab(Threshold::Auto);
    settings.services[0] = service(0, 1, &["worker1", "worker2", "worker3"], Threshold::Auto);
    let mut harness = Harness::new(settings);
    harness.start("worker3", 500);
    harness.start("worker2", 300);
    harness.start("worker1", 300);
    harness.apply(Leave("worker3"));
    assert_eq!(harness.selected(), "worker1");
}

#[test]
fn a_worker_of_two_services_fails_over_in_both() {
    let mut settings = lab(Threshold::Auto);
    let other = service(1, 4, &["worker2", "worker1"], Threshold::Auto);
    settings.services.push(other);
    let mut harness = Harness::new(settings);
    harness.start("worker1", 500);
    harness.start("worker2", 300);
    let selections = |harness: &Harness| {
        let ids = harness.maps.selection.values();
        ids.map(|id| id.expect("a backend").0).collect::<Vec<_>>()
    };
    assert_eq!(selections(&harness), [1, 5]);
    harness.apply(Leave("worker1"));
    assert_eq!(selections(&harness), [2, 4]);
    harness.apply(Leave("worker2"));
    assert_eq!(selections(&harness), [3, 6]);
}

#[test]
fn two_workers_that_die_together_cause_one_change() {
    let mut harness = Harness::new(lab(Threshold::Auto));
    harness.start("worker1", 500);
    harness.start("worker2", 300);
    harness.agents.clear();
    harness.kinds();
    harness.advance(ms(2_000));
    assert_eq!(
        harness.kinds(),
        [
            "worker_down",
            "worker_down",
            "all_workers_down",
            "selection_changed"
        ]
    );
}

#[test]
fn the_worker_with_the_most_memory_ranks_after_the_selected_one() {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services = vec![service(
        0,
        1,
        &["worker1", "worker2", "worker3"],
        Threshold::Bytes(64 * MIB),
    )];
    let mut harness = Harness::new(settings);
    let ranked = |harness: &Harness| {
        let (kind, slots) = &harness.maps.slots[&WEB];
        assert_eq!(*kind, SlotKind::Ranked);
        slots.iter().map(|id| id.0).collect::<Vec<_>>()
    };
    harness.start("worker1", 300);
    harness.start("worker2", 100);
    assert_eq!(ranked(&harness), [1, 2]);
    // More than the selected one, but not beyond the threshold.
    harness.start("worker3", 310);
    assert_eq!(ranked(&harness), [1, 3, 2]);
    harness.agents.remove("worker1");
    harness.advance(DOWN_AFTER + ms(1));
    assert_eq!(harness.selected(), "worker3");
    assert_eq!(ranked(&harness), [3, 2]);
    harness.agents.clear();
    harness.advance(ms(2_000));
    assert_eq!(harness.selected(), MANAGER);
}

#[test]
fn without_a_fallback_new_connections_are_refused_while_no_worker_is_up() {
    let mut settings = lab(Threshold::Auto);
    settings.services[0].fallback = None;
    let mut harness = Harness::new(settings);
    assert_eq!(harness.selected(), NO_BACKEND);
    assert_eq!(harness.maps.selection[&WEB], Some(REFUSED));
    harness.start("worker1", 600);
    assert_eq!(harness.selected(), "worker1");
    harness.agents.clear();
    harness.events.clear();
    harness.advance(DOWN_AFTER + ms(1));
    assert_eq!(harness.selected(), NO_BACKEND);
    assert_eq!(harness.maps.selection[&WEB], Some(REFUSED));
    let text: Vec<String> = harness.events.iter().map(Event::to_string).collect();
    assert!(
        text[1].ends_with("no worker is up any more; new connections are refused"),
        "{text:?}"
    );
    let backends = harness
        .core
        .snapshot(harness.now)
        .services
        .remove(0)
        .backends;
    assert_eq!(backends.len(), 2);
}
