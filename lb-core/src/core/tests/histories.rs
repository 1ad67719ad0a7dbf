//! Random histories against what must always hold.

use proptest::prelude::*;

use super::*;

const WORKERS: [&str; 4] = ["worker1", "worker2", "worker3", "worker4"];

#[derive(Debug, Clone)]
enum Input {
    Heartbeat(Report),
    AdminCommand(AdminCommand),
    /// Time passes, and the shell is called at every deadline on the way.
    Pass(Duration),
    /// Time passes, and the shell is not called.
    Oversleep(Duration),
    /// The shell calls without need.
    Timeout,
    /// The shell counts open connections.
    Connections(Vec<(BackendId, u64)>),
    /// The route to a worker changes.
    WorkerRoute(BackendId, WorkerRoute),
    /// Both services' policies and holds are reconfigured.
    Reconfigure([(Policy, Duration); 2]),
}

fn settings() -> impl Strategy<Value = CoreSettings> {
    let threshold = prop_oneof![
        Just(Threshold::Auto),
        (0..100u64).prop_map(|mib| Threshold::Bytes(mib * MIB)),
        (0..50u32).prop_map(Threshold::Percent),
    ];
    let services = (threshold.clone(), threshold, policies());
    let mode = prop::sample::select(&Mode::ALL);
    (services, 0..4u32, max_share(), mode).prop_map(
        |((one, other, policies), up_after, max_share, mode)| {
            let mut services = vec![
                service(0, 1, &WORKERS[..3], one),
                service(1, 10, &[WORKERS[3], WORKERS[1]], other),
            ];
            services[0].mode = mode;
            set_policies(&mut services, policies);
            services[0].spread.max_share = max_share;
            CoreSettings {
                down_after: DOWN_AFTER,
                up_after,
                failing: FailingSettings::default(),
                panic_percent: None,
                services,
            }
        },
    )
}

fn set_policies(services: &mut [ServiceSettings], policies: [(Policy, Duration); 2]) {
    for (service, (policy, hold)) in services.iter_mut().zip(policies) {
        (service.policy, service.memory.hold) = (policy, hold);
    }
}

fn policies() -> impl Strategy<Value = [(Policy, Duration); 2]> {
    let hold = prop::sample::select(&[0, 250, 3_000]).prop_map(Duration::from_millis);
    prop::array::uniform2((policy(), hold))
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        2 => Just(Policy::Memory),
        2 => Just(Policy::Balanced),
        3 => prop::sample::select(&Policy::ALL),
    ]
}

fn max_share() -> impl Strategy<Value = MaxShare> {
    prop_oneof![
        Just(MaxShare::Auto),
        (1..=100u32).prop_map(MaxShare::Percent)
    ]
}

fn adopted() -> impl Strategy<Value = AdoptedState> {
    let selections = prop::collection::btree_map((0..2u32).prop_map(ServiceId), backend(), 0..3);
    let up = prop::collection::btree_set(backend(), 0..4);
    let draining = prop::collection::btree_set(backend(), 0..4);
    let spread = prop::collection::btree_set((0..2u32).prop_map(ServiceId), 0..3);
    let weights = prop::collection::btree_map(backend(), any::<u32>(), 0..8);
    let worker = prop::sample::select(&WORKERS).prop_map(str::to_owned);
    let silence = (0..2_000u64).prop_map(Duration::from_millis);
    let silent_for = prop::collection::btree_map(worker, silence, 0..3);
    (selections, up, draining, spread, weights, silent_for).prop_map(
        |(mut selections, up, draining, spread, weights, silent_for)| {
            // A service's connections go to one backend or are spread.
            selections.retain(|service, _| !spread.contains(service));
            AdoptedState {
                selections,
                up,
                draining,
                spread,
                weights,
                overrides: AdminOverrides::default(),
                pauses: BTreeMap::new(),
                silent_for,
                ejections: BTreeMap::new(),
            }
        },
    )
}

fn backend() -> impl Strategy<Value = BackendId> {
    (0..14u32).prop_map(BackendId)
}

fn heartbeat() -> impl Strategy<Value = Report> {
    let worker = prop::sample::select(&["worker1", "worker2", "worker3", "worker4", "stranger"]);
    let state = prop_oneof![
        8 => Just(WorkerState::Ready),
        1 => Just(WorkerState::Leaving),
        1 => Just(WorkerState::Maintenance),
    ];
    let sequence = prop::option::weighted(0.8, (0..3u64, 0..40u64));
    let healthy = prop::bool::weighted(0.9);
    let equipped = prop::bool::weighted(0.9);
    let signed = any::<bool>();
    let flags = (healthy, equipped, signed);
    (worker, state, sequence, flags, 0..700u64).prop_map(
        |(worker, state, sequence, (healthy, equipped, signed), mib)| Report {
            signed,
            sequence: sequence.map(|(boot, number)| Sequence {
                boot: BootId(boot),
                number,
            }),
            state,
            healthy,
            translates: match equipped {
                true => vec![service(0, 1, &[], Threshold::Auto).endpoint()],
                false => Vec::new(),
            },
            ..report(worker, 0, 0, mib)
        },
    )
}

fn admin_command() -> impl Strategy<Value = AdminCommand> {
    let worker = prop::sample::select(&["worker1", "worker2", "worker3", "worker4", "stranger"]);
    let service = prop::option::of(prop::sample::select(&["service0", "service1"]));
    let hold = prop::sample::select(&[
        AdminState::Drain,
        AdminState::Maintenance,
        AdminState::Terminate,
    ]);
    let action = prop_oneof![
        hold.prop_map(|state| AdminAction::SetState { state }),
        Just(AdminAction::Undrain),
        (900..20_000u64).prop_map(|for_ms| AdminAction::Pause { for_ms }),
        Just(AdminAction::Resume),
        (0..1_100u32).prop_map(|percent| AdminAction::Weight { percent }),
    ];
    (worker, service, action).prop_map(|(worker, service, action)| AdminCommand {
        worker: worker.to_owned(),
        service: service.map(str::to_owned),
        action,
        by: "root".to_owned(),
        at_ms: 0,
        reason: None,
    })
}

fn link() -> impl Strategy<Value = WorkerRoute> {
    prop::sample::select(&[
        WorkerRoute::Direct,
        WorkerRoute::ViaRouter,
        WorkerRoute::Missing,
    ])
}

fn input() -> impl Strategy<Value = Input> {
    let milliseconds = |most: u64| (0..most).prop_map(Duration::from_millis);
    prop_oneof![
        12 => heartbeat().prop_map(Input::Heartbeat),
        2 => admin_command().prop_map(Input::AdminCommand),
        4 => milliseconds(600).prop_map(Input::Pass),
        1 => milliseconds(4_000).prop_map(Input::Pass),
        1 => milliseconds(8_000).prop_map(Input::Oversleep),
        1 => Just(Input::Timeout),
        2 => prop::collection::vec((backend(), 0..200u64), 0..6).prop_map(Input::Connections),
        1 => (backend(), link()).prop_map(|(of, link)| Input::WorkerRoute(of, link)),
        1 => policies().prop_map(Input::Reconfigure),
    ]
}

/// Runs a history, checks the invariants after each step, and returns all outputs.
fn live(
    settings: &CoreSettings,
    adopted: &AdoptedState,
    start: Instant,
    history: &[Input],
) -> Vec<String> {
    let mut settings = settings.clone();
    let core = Core::resume(settings.clone(), adopted, start);
    let mut harness = Harness::with_core(core, start);
    let mut log = Vec::new();
    check(&harness, &settings);
    for input in history {
        let down_before = log.len();
        match input {
            Input::Heartbeat(report) => {
                let outcome = harness.handle_heartbeat(report);
                assert!(outcome == HeartbeatOutcome::Accepted || outcome.refusal().is_some());
            }
            Input::AdminCommand(order) => {
                let before = harness.core.admin_overrides().clone();
                let outcome = harness.core.handle_admin_command(order, harness.now);
                if outcome.is_err() {
                    assert_eq!(*harness.core.admin_overrides(), before);
                }
                harness.handle_timeout();
            }
            Input::Pass(duration) => harness.advance_exactly(*duration),
            Input::Oversleep(duration) => {
                let due = harness.core.deadlines.earliest();
                harness.now += *duration;
                harness.handle_timeout();
                if due.is_some_and(|due| harness.now > due + DOWN_AFTER / 4) {
                    assert!(!harness.has_worker_down(), "judged while asleep");
                }
            }
            Input::Timeout => harness.handle_timeout(),
            Input::WorkerRoute(backend, link) => {
                let links = [(*backend, link.clone())].into();
                harness.core.handle_routes(&links, harness.now);
                harness.handle_timeout();
            }
            Input::Connections(open) => harness.core.handle_connections(open),
            Input::Reconfigure(policies) => {
                set_policies(&mut settings.services, *policies);
                harness.reconfigure(settings.clone());
            }
        }
        check(&harness, &settings);
        check_events(&harness.events);
        log.extend(
            harness
                .events
                .drain(..)
                .map(|event| format!("{event:?} {event}")),
        );
        let slots = harness.maps.slots.values();
        let slots: u64 = slots
            .flat_map(|(_, slots)| (1..).zip(slots))
            .map(|(place, backend)| place * u64::from(backend.0))
            .sum();
        log.push(format!(
            "{:?} {:?} {slots} {:?}",
            harness.maps.backends,
            harness.maps.selection,
            harness.core.snapshot(harness.now)
        ));
        assert!(log.len() > down_before);
    }
    log
}

impl Harness {
    /// Like [`Harness::advance`], but also calls one nanosecond before each deadline.
    fn advance_exactly(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(due) = self.core.poll_timeout().filter(|due| *due <= end) {
            let moment_before = due - Duration::from_nanos(1);
            assert!(moment_before >= self.now);
            self.now = moment_before;
            let events = self.events.len();
            self.handle_timeout();
            assert_eq!(self.events.len(), events, "fired before its deadline");
            assert_eq!(self.core.poll_timeout(), Some(due));
            self.now = due;
            let rebalances = self.core.wants_connections(due);
            self.handle_timeout();
            let new = &self.events[events..];
            let switched = |it: &Event| {
                matches!(
                    it,
                    Event::SelectionChanged { .. } | Event::PauseEnded { .. }
                )
            };
            let happened = self.has_worker_down() || rebalances || new.iter().any(switched);
            assert!(happened, "nothing was due");
        }
        self.now = end;
        self.handle_timeout();
    }

    /// Whether a worker's death is among the events not taken yet, other than one at the end of a pause.
    fn has_worker_down(&self) -> bool {
        let mut events = self.events.iter();
        events.any(|event| matches!(event, Event::WorkerDown { was, .. } if *was != Health::Paused))
    }
}

fn check(harness: &Harness, settings: &CoreSettings) {
    let snapshot = harness.core.snapshot(harness.now);
    for (service, settings) in snapshot.services.iter().zip(&settings.services) {
        let (manager, workers) = service.backends.split_last().expect("a fallback");
        assert_eq!(
            (manager.name.as_str(), manager.state),
            (MANAGER, Health::Up)
        );
        for backend in workers {
            let held = backend.admin_state.is_some()
                || backend.pause.is_some()
                || (backend.weight_percent.as_ref()).is_some_and(|mark| mark.value == 0);
            assert!(!(held && backend.state.is_up()), "{backend:?}");
        }
        let any_up = workers.iter().any(|worker| worker.state.is_up());
        let all = || service.backends.iter();
        for backend in all() {
            assert!(backend.share == 0 || backend.state.is_up(), "{service:?}");
        }
        let shares: i32 = all().map(|backend| i32::from(backend.share)).sum();
        assert!((shares - 10_000).abs() <= 2, "{service:?}");
        if service.selected == ALL_WORKERS {
            assert!(any_up && service.policy != Policy::Memory, "{service:?}");
            assert_eq!(harness.maps.selection[&settings.id], None);
            assert_eq!(
                Some(harness.maps.slots[&settings.id].0),
                slot_kind(service.policy)
            );
            check_backends(harness, service);
            continue;
        }
        let selected = all().find(|backend| backend.name == service.selected);
        let selected = selected.expect("the selected backend");
        // A manager that adopted its fallback as selection keeps it until the first heartbeat.
        let heard = workers.iter().any(|worker| worker.age_ms.is_some());
        assert_eq!(
            selected.name == MANAGER,
            !any_up || !heard && service.rule == Rule::NoHeartbeat
        );
        assert_eq!(
            harness.maps.selection[&settings.id],
            Some(selected.backend_id)
        );
        check_backends(harness, service);
    }
}

fn check_backends(harness: &Harness, service: &ServiceSnapshot) {
    for backend in &service.backends {
        let (state, memory, weight) = harness.maps.backends[&backend.backend_id];
        assert_eq!((state, weight), (backend.state, backend.weight));
        let available = memory.map(|memory| memory.available_bytes);
        assert_eq!(available, backend.memory_available_bytes);
        let age = backend.age_ms.unwrap_or(0);
        assert!(
            state != Health::Unknown || backend.age_ms.is_none(),
            "{age} {state}"
        );
    }
}

fn check_events(events: &[Event]) {
    for (index, event) in events.iter().enumerate() {
        let Event::SelectionChanged {
            rule,
            from_memory_available_bytes: from,
            to_memory_available_bytes: to,
            threshold_bytes: threshold,
            ..
        } = event
        else {
            continue;
        };
        if matches!(rule, Rule::MoreMemory | Rule::SelectedHot) {
            assert!(to.expect("known") - from.expect("known") > threshold.expect("known"));
        }
        let alarm = index > 0 && matches!(events[index - 1], Event::AllWorkersDown { .. });
        assert_eq!(
            *rule == Rule::NoWorkerUp,
            alarm,
            "one alarm for each transition"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_histories_keep_the_invariants_and_are_deterministic(
        settings in settings(),
        adopted in adopted(),
        history in prop::collection::vec(input(), 1..120),
    ) {
        let start = Instant::now();
        let one = live(&settings, &adopted, start, &history);
        let other = live(&settings, &adopted, start, &history);
        prop_assert_eq!(one, other);
    }
}
