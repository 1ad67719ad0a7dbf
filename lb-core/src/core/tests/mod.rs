//! The core in virtual time: a shell without a harness around it.

mod admin;
mod adoption;
mod direct;
mod failing;
mod heartbeats;
mod histories;
mod hold;
mod outage;
mod outputs;
mod pauses;
mod reasons;
mod rebalance;
mod reconfigure;
mod return_path;
mod routes;
mod stories;
mod tiers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::*;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const DOWN_AFTER: Duration = DEFAULT_DOWN_AFTER;
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// No backend: what a service without a fallback selects while no worker is up.
pub(super) const REFUSED: BackendId = BackendId(0);
pub(super) const WEB: ServiceId = ServiceId(0);

/// The three-node lab: worker1 is backend 1, worker2 backend 2, the manager backend 3.
pub(super) fn lab(threshold: Threshold) -> CoreSettings {
    CoreSettings {
        down_after: DOWN_AFTER,
        up_after: 2,
        failing: FailingSettings::default(),
        panic_percent: Some(60),
        services: vec![service(0, 1, &["worker1", "worker2"], threshold)],
    }
}

pub(super) fn service(
    id: u32,
    first_backend: u32,
    workers: &[&str],
    threshold: Threshold,
) -> ServiceSettings {
    let address = |port: u16| std::net::SocketAddr::from(([192, 168, 56, 101], port));
    let ids = first_backend..;
    let backends: Vec<BackendSettings> = ids
        .zip(workers)
        .map(|(id, worker)| BackendSettings {
            id: BackendId(id),
            worker: (*worker).to_owned(),
            address: ([192, 168, 57, u8::try_from(id).expect("few")], 8080).into(),
            weight_percent: 100,
            source: None,
            source_state: None,
            backup: false,
            agent: true,
            max_connections: 0,
        })
        .collect();
    ServiceSettings {
        id: ServiceId(id),
        name: format!("service{id}"),
        address: address(80),
        protocol: Protocol::Tcp,
        mode: Mode::Nat,
        policy: Policy::Memory,
        memory: MemorySettings {
            threshold,
            hold: Duration::ZERO,
        },
        spread: SpreadSettings::default(),
        passive_checks: true,
        retry_refused: true,
        fallback: Some(FallbackSettings {
            id: BackendId(first_backend + workers.len() as u32),
            address: address(8080),
        }),
        backends,
    }
}

pub(super) fn report(worker: &str, boot: u64, number: u64, available_mib: u64) -> Report {
    Report {
        worker: worker.to_owned(),
        sequence: Some(Sequence {
            boot: BootId(boot),
            number,
        }),
        memory: Memory {
            available_bytes: available_mib * MIB,
            total_bytes: Some(700 * MIB),
        },
        signed: true,
        memory_stale: None,
        pressure: None,
        state: WorkerState::Ready,
        healthy: true,
        checked: false,
        translates: Vec::new(),
        interval: Some(HEARTBEAT_INTERVAL),
    }
}

/// Returns how the kernel uses the slots of a policy that spreads connections.
pub(super) fn slot_kind(policy: Policy) -> Option<SlotKind> {
    let spread = crate::policy::Spread::new(policy, SpreadSettings::default(), &[]);
    spread.map(|it| it.slot_kind())
}

/// An operator's command for a worker in all services.
pub(super) fn admin_command(worker: &str, action: AdminAction) -> AdminCommand {
    AdminCommand {
        worker: worker.to_owned(),
        service: None,
        action,
        by: "root".to_owned(),
        at_ms: 1_000,
        reason: Some("new disk".to_owned()),
    }
}

/// The lab with both workers up, and worker1 selected.
pub(super) fn started() -> Harness {
    let mut harness = Harness::new(lab(Threshold::Bytes(64 * MIB)));
    harness.start("worker1", 600);
    harness.start("worker2", 300);
    harness.events.clear();
    harness
}

pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Applies map updates as the datapath does, and checks on the way what [`MapUpdate`] promises.
#[derive(Debug, Default)]
pub(super) struct Maps {
    pub backends: BTreeMap<BackendId, (Health, Option<Memory>, u32)>,
    /// Nothing where connections are spread.
    pub selection: BTreeMap<ServiceId, Option<BackendId>>,
    pub slots: BTreeMap<ServiceId, (SlotKind, Vec<BackendId>)>,
}

impl Maps {
    pub fn apply(&mut self, command: MapUpdate) {
        let text = format!("{command:?}");
        let mut select = |service, backend| {
            let before = self.selection.insert(service, backend);
            assert_ne!(before, Some(backend), "sent twice: {text}");
        };
        match command {
            MapUpdate::SetBackend {
                backend,
                state,
                memory,
                weight,
            } => {
                let description = (state, memory, weight);
                let before = self.backends.insert(backend, description);
                assert_ne!(before, Some(description), "sent twice: {text}");
            }
            MapUpdate::Select { service, backend } => {
                let known = backend == REFUSED || self.backends.contains_key(&backend);
                assert!(known, "unknown: {text}");
                select(service, Some(backend));
            }
            MapUpdate::SetSlots {
                service,
                kind,
                slots,
            } => {
                assert!((1..=4_096).contains(&slots.len()), "{text}");
                assert!(slots.iter().all(|id| self.backends[id].2 > 0), "{text}");
                let before = self.slots.insert(service, (kind, slots.clone()));
                let in_force = self.selection.get(&service) == Some(&None);
                assert!(
                    !in_force || before != Some((kind, slots)),
                    "sent twice: {text}"
                );
            }
            MapUpdate::Spread { service } => {
                assert!(self.slots.contains_key(&service), "no slots: {text}");
                select(service, None);
            }
        }
        for (service, backend) in self
            .selection
            .iter()
            .filter(|(_, it)| **it != Some(REFUSED))
        {
            for backend in self.takers(*service, *backend) {
                let state = self.backends[&backend].0;
                assert!(
                    state.is_up(),
                    "{service:?} sends connections to {backend}, which is {state}: {text}"
                );
            }
        }
    }

    /// Who takes a service's new connections.
    pub fn takers(&self, service: ServiceId, selected: Option<BackendId>) -> Vec<BackendId> {
        match selected {
            Some(backend) => vec![backend],
            None => self.slots[&service].1.clone(),
        }
    }
}

/// The core with a clock that is never late, its maps, and agents that send a heartbeat every 100 ms.
pub(super) struct Harness {
    pub core: Core,
    pub now: Instant,
    pub maps: Maps,
    pub events: Vec<Event>,
    /// When each service's connections last went from one worker to another.
    switched: BTreeMap<String, Instant>,
    /// What each running agent sends next.
    pub agents: BTreeMap<String, Report>,
    next_heartbeat: Instant,
    boots: u64,
}

impl Harness {
    pub fn new(settings: CoreSettings) -> Self {
        let now = Instant::now();
        Self::with_core(Core::new(settings, now), now)
    }

    pub fn with_core(core: Core, now: Instant) -> Self {
        let mut harness = Self {
            core,
            now,
            maps: Maps::default(),
            events: Vec::new(),
            switched: BTreeMap::new(),
            agents: BTreeMap::new(),
            next_heartbeat: now + HEARTBEAT_INTERVAL,
            boots: 0,
        };
        harness.drain();
        harness
    }

    /// Starts an agent; its first heartbeat is sent at once.
    pub fn start(&mut self, worker: &str, available_mib: u64) {
        self.boots += 1;
        let report = report(worker, self.boots, 1, available_mib);
        self.agents.insert(worker.to_owned(), report);
        self.send_heartbeat(worker);
    }

    /// Sends an agent's next heartbeat now.
    pub fn send_heartbeat(&mut self, worker: &str) {
        let Some(agent) = self.agents.get_mut(worker) else {
            return;
        };
        let report = agent.clone();
        if let Some(sequence) = &mut agent.sequence {
            sequence.number += 1;
        }
        assert_eq!(self.handle_heartbeat(&report), HeartbeatOutcome::Accepted);
    }

    pub fn handle_heartbeat(&mut self, report: &Report) -> HeartbeatOutcome {
        let outcome = self.core.handle_heartbeat(report, self.now);
        self.drain();
        outcome
    }

    /// Handles the heartbeat that [`report`] makes.
    pub fn receive(
        &mut self,
        worker: &str,
        boot: u64,
        number: u64,
        available_mib: u64,
    ) -> HeartbeatOutcome {
        self.handle_heartbeat(&report(worker, boot, number, available_mib))
    }

    /// Handles a command that must succeed.
    pub fn command(&mut self, command: &AdminCommand) -> CommandResult {
        let result = self.core.handle_admin_command(command, self.now).unwrap();
        self.handle_timeout();
        result
    }

    /// Handles a command that must be refused.
    pub fn refusal(&mut self, command: &AdminCommand) -> AdminError {
        let refused = self.core.handle_admin_command(command, self.now);
        refused.unwrap_err()
    }

    /// Advances the clock: agents send heartbeats and deadlines fire, each at its own instant.
    pub fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let timeout = self.core.poll_timeout().unwrap_or(end);
            let next = end.min(timeout).min(self.next_heartbeat);
            assert!(next >= self.now, "the core requests an instant in the past");
            self.now = next;
            if next == self.next_heartbeat {
                self.next_heartbeat += HEARTBEAT_INTERVAL;
                let workers: Vec<String> = self.agents.keys().cloned().collect();
                workers
                    .iter()
                    .for_each(|worker| self.send_heartbeat(worker));
            }
            self.handle_timeout();
            if next == end {
                return;
            }
        }
    }

    pub fn handle_timeout(&mut self) {
        self.core.handle_timeout(self.now);
        self.drain();
        let timeout = self.core.poll_timeout();
        assert!(
            timeout.is_none_or(|at| at > self.now),
            "{timeout:?} is not after {:?}",
            self.now
        );
    }

    pub fn drain(&mut self) {
        while let Some(command) = self.core.poll_map_update() {
            self.maps.apply(command);
        }
        while let Some(event) = self.core.poll_event() {
            self.check_hold(&event);
            self.events.push(event);
        }
    }

    /// No worker follows another by preference before the hold ends, unless the one has no memory to spare.
    fn check_hold(&mut self, event: &Event) {
        let Event::SelectionChanged {
            service,
            from: Some(from),
            to,
            rule,
            ..
        } = event
        else {
            return;
        };
        if [from, to]
            .map(String::as_str)
            .iter()
            .any(|it| [MANAGER, NO_BACKEND, ALL_WORKERS].contains(it))
        {
            return;
        }
        let mut services = self.core.services.iter();
        let settings =
            services.find_map(|it| (it.settings.name == *service).then_some(&it.settings));
        let hold = settings.expect("a service").memory.hold;
        if let Some(before) = self.switched.insert(service.clone(), self.now)
            && matches!(rule, Rule::MoreMemory | Rule::FirstComparison)
        {
            assert!(
                self.now - before >= hold,
                "{event} within the hold of {hold:?}"
            );
        }
    }

    pub fn selected(&self) -> String {
        self.core.snapshot(self.now).services[0].selected.clone()
    }

    pub fn state(&self, worker: &str) -> Health {
        let snapshot = self.core.snapshot(self.now);
        let mut backends = snapshot.services[0].backends.iter();
        let backend = backends.find(|backend| backend.name == worker);
        backend.expect("a worker of the service").state
    }

    /// Takes the kinds of the events since the last call.
    pub fn kinds(&mut self) -> Vec<String> {
        let events = self.events.drain(..);
        events
            .map(|event| {
                let json = serde_json::to_value(&event).expect("an event is JSON");
                json["event"].as_str().expect("a kind").to_owned()
            })
            .collect()
    }
}
