//! No sequence of reloads ends a connection to a worker that lives.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_common::maps::Backend;
use lb_core::{
    BootId, Core, Endpoint, HeartbeatOutcome, Memory, Policy, Report, Sequence, ServiceId,
    WorkerState,
};
use proptest::prelude::*;

use super::{tables::retired_state, *};
use crate::config::Overrides;

const BEAT: Duration = Duration::from_millis(100);
const MACHINES: usize = 4;
/// Few, so that removed workers' connections can take all numbers.
const BACKENDS: u32 = 13;

#[derive(Debug, Clone)]
struct WantedService {
    port: u16,
    mode: Mode,
    policy: Policy,
    has_fallback: bool,
    /// Each with whether it has its other name there.
    workers: Vec<(usize, bool)>,
}

#[derive(Debug, Clone)]
enum Step {
    /// Web, API and DNS, each where it is wanted.
    Reload([Option<WantedService>; 3]),
    /// A client's connection to one of the backends that take new ones.
    Connect(prop::sample::Index),
    Disconnect(prop::sample::Index),
    /// A machine's agent is started under its other name.
    Rename(usize),
    Pass(u32),
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let service = |ports: &'static [u16]| {
        let workers = prop::collection::vec((0..MACHINES, prop::bool::weighted(0.2)), 1..4);
        let service = (
            prop::sample::select(ports),
            prop::sample::select(&Mode::ALL),
            prop::sample::select(&Policy::ALL),
            any::<bool>(),
            workers,
        );
        let service = service.prop_map(|(port, mode, policy, has_fallback, mut workers)| {
            workers.sort_unstable();
            workers.dedup_by_key(|it| it.0);
            WantedService {
                port,
                mode,
                policy,
                has_fallback,
                workers,
            }
        });
        prop::option::weighted(0.8, service)
    };
    let reload = (service(&[80, 180]), service(&[81]), service(&[53]));
    let step = prop_oneof![
        3 => reload.prop_map(|(web, api, dns)| Step::Reload([web, api, dns])),
        4 => any::<prop::sample::Index>().prop_map(Step::Connect),
        1 => any::<prop::sample::Index>().prop_map(Step::Disconnect),
        1 => (0..MACHINES).prop_map(Step::Rename),
        2 => (1..30u32).prop_map(Step::Pass),
        1 => Just(Step::Sweep),
    ];
    prop::collection::vec(step, 1..40)
}

fn name(machine: usize, is_other: bool) -> String {
    let kind = if is_other { "other" } else { "worker" };
    format!("{kind}{machine}")
}

fn config(services: &[Option<WantedService>; 3]) -> Config {
    let mut text = format!(
        "manager.interfaces = [\"eth1\"]\nlimits = {{ backends = {BACKENDS}, services = 4 }}\n"
    );
    for (service, protocol) in services.iter().zip(["tcp", "tcp", "udp"]) {
        let Some(wanted) = service else {
            continue;
        };
        // In mode `routed`, a worker has a port for each of its services.
        let server = match wanted.mode {
            Mode::Routed => 9_000 + wanted.port,
            _ => 8_081,
        };
        let workers = wanted.workers.iter().map(|(machine, is_other)| {
            let (name, last) = (name(*machine, *is_other), 110 + machine);
            format!("{{ name = \"{name}\", address = \"192.168.56.{last}:{server}\" }}")
        });
        let WantedService {
            port, mode, policy, ..
        } = wanted;
        let fallback = if wanted.has_fallback {
            "192.168.56.101:8080"
        } else {
            "reject"
        };
        text += &format!(
            "[[service]]\nname = \"s{port}\"\naddress = \"192.168.56.101:{port}\"\n\
             protocol = \"{protocol}\"\nmode = \"{mode}\"\npolicy = \"{policy}\"\n\
             fallback = \"{fallback}\"\nworkers = [{}]\n",
            workers.collect::<Vec<_>>().join(", ")
        );
    }
    Config::parse(&text, "memlb.toml", &Overrides::default(), None).expect("a good file")
}

/// Every service that there may be.
fn translated() -> Vec<Endpoint> {
    ["80/tcp", "180/tcp", "81/tcp", "53/udp"]
        .map(|port| {
            format!("192.168.56.101:{port}")
                .parse()
                .expect("an endpoint")
        })
        .to_vec()
}

#[derive(Debug, Clone, Copy)]
struct OpenConnection {
    backend: u32,
    to: SocketAddr,
    mode: u8,
    /// Of mode `dsr`: the address that its packets carry to the worker.
    service: Option<Endpoint>,
}

/// A manager without a kernel: the core, what the datapath knows, and the maps that it would write.
struct Harness {
    now: Instant,
    core: Core,
    known: BTreeMap<BackendId, BackendState>,
    identities: BTreeMap<BackendId, Identity>,
    entries: BTreeMap<u32, Backend>,
    services: Vec<(ServiceId, Endpoint)>,
    connections: Vec<OpenConnection>,
    /// Whether each machine's agent has its other name, and the number of its next heartbeat.
    agents: [(bool, u64); MACHINES],
    refused: usize,
}

impl Harness {
    fn new() -> Self {
        let now = Instant::now();
        let nothing = CoreSettings {
            down_after: lb_core::DEFAULT_DOWN_AFTER,
            up_after: 2,
            failing: lb_core::FailingSettings::default(),
            panic_percent: None,
            services: Vec::new(),
        };
        Self {
            now,
            core: Core::new(nothing, now),
            known: BTreeMap::new(),
            identities: BTreeMap::new(),
            entries: BTreeMap::new(),
            services: Vec::new(),
            connections: Vec::new(),
            agents: [(false, 1); MACHINES],
            refused: 0,
        }
    }

    fn numbers(&self) -> PinnedIds {
        let id = |id: &u32| BackendId(*id);
        let goes_on = |it: &&Backend| matches!(it.state, state::UP | state::DRAINING);
        PinnedIds {
            services: self.services.clone(),
            backends: self
                .entries
                .keys()
                .map(|it| (id(it), self.identities[&id(it)]))
                .collect(),
            keeps_flows: self
                .entries
                .iter()
                .filter(|(_, entry)| goes_on(entry))
                .map(|(it, _)| id(it))
                .collect(),
        }
    }

    fn reload(&mut self, config: &Config) {
        let numbers = self.numbers();
        let settings = config.settings(&numbers);
        if numbers.reused_by(&settings) > 0 {
            self.refused += 1;
            return;
        }
        self.known = replace_backends(&self.known, &settings, &numbers);
        self.identities.extend(identities(&settings));
        let links = self
            .known
            .keys()
            .map(|id| (*id, WorkerRoute::Direct))
            .collect();
        self.core.reconfigure(settings.clone(), &links, self.now);
        self.apply_map_updates();
        for (id, entry) in &mut self.entries {
            if !self.known.contains_key(&BackendId(*id)) {
                entry.state = retired_state(entry);
            }
        }
        self.services = (settings.services.iter())
            .map(|service| (service.id, service.endpoint()))
            .collect();
    }

    fn apply_map_updates(&mut self) {
        while let Some(command) = self.core.poll_map_update() {
            let MapUpdate::SetBackend { backend, state, .. } = command else {
                continue;
            };
            let known = self.known.get_mut(&backend).expect("a backend");
            known.health = Some(state);
            self.entries.insert(backend.0, known.value(state));
        }
        while self.core.poll_event().is_some() {}
    }

    fn connect(&mut self, pick: &prop::sample::Index) {
        let taking = self.known.iter().filter(|(id, known)| {
            !known.is_fallback
                && self
                    .entries
                    .get(&id.0)
                    .is_some_and(|it| it.state == state::UP)
        });
        let taking: Vec<_> = taking.collect();
        if taking.is_empty() {
            return;
        }
        let (id, known) = pick.get(&taking);
        let is_dsr = known.mode == Mode::Dsr;
        self.connections.push(OpenConnection {
            backend: id.0,
            to: known.address,
            mode: self.entries[&id.0].mode,
            service: self.identities[id].service.filter(|_| is_dsr),
        });
    }

    /// Every machine's agent says that it is well, and that its DSR translator serves all services.
    fn send_heartbeats(&mut self) {
        self.now += BEAT;
        for (machine, (is_other, number)) in self.agents.iter_mut().enumerate() {
            *number += 1;
            let report = Report {
                worker: name(machine, *is_other),
                sequence: Some(Sequence {
                    boot: BootId(machine as u64),
                    number: *number,
                }),
                memory: Memory {
                    available_bytes: 1 << 30,
                    total_bytes: Some(2 << 30),
                },
                pressure: None,
                state: WorkerState::Ready,
                healthy: true,
                checked: false,
                translates: translated(),
                signed: true,
                memory_stale: None,
                interval: Some(BEAT),
            };
            let outcome = self.core.handle_heartbeat(&report, self.now);
            assert!(matches!(
                outcome,
                HeartbeatOutcome::Accepted | HeartbeatOutcome::UnknownWorker
            ));
        }
        self.core.handle_timeout(self.now);
        self.apply_map_updates();
    }

    /// Who is configured under the name that its agent has would rightly be missed.
    fn rename(&mut self, machine: usize) {
        let (is_other, _) = &mut self.agents[machine];
        if !self.core.has_worker(&name(machine, *is_other)) {
            *is_other = !*is_other;
        }
    }

    fn sweep(&mut self) {
        let (connections, known) = (&self.connections, &self.known);
        let is_used = |id: &u32| connections.iter().any(|it| it.backend == *id);
        self.entries
            .retain(|id, _| known.contains_key(&BackendId(*id)) || is_used(id));
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Reload(services) => {
                if services.iter().any(Option::is_some) {
                    self.reload(&config(services));
                }
            }
            Step::Connect(pick) => self.connect(pick),
            Step::Disconnect(pick) if !self.connections.is_empty() => {
                self.connections
                    .swap_remove(pick.index(self.connections.len()));
            }
            Step::Disconnect(_) => {}
            Step::Rename(machine) => self.rename(*machine),
            Step::Pass(beats) => (0..*beats).for_each(|_| self.send_heartbeats()),
            Step::Sweep => self.sweep(),
        }
    }

    fn check(&self) {
        for connection in &self.connections {
            let entry = &self.entries[&connection.backend];
            let identity = &self.identities[&BackendId(connection.backend)];
            let at = SocketAddr::new(from_mapped(entry.address), entry.port);
            assert_eq!((at, entry.mode), (connection.to, connection.mode));
            if let Some(service) = connection.service {
                assert_eq!(identity.service, Some(service));
            }
            let goes_on = matches!(entry.state, state::UP | state::DRAINING);
            assert!(goes_on, "{connection:?} ends: {entry:?}");
        }
    }
}

proptest! {
    #[test]
    fn reloads_end_no_connection(steps in steps()) {
        let mut harness = Harness::new();
        for step in &steps {
            harness.step(step);
            harness.check();
        }
    }
}

fn web(workers: &[(usize, bool)]) -> [Option<WantedService>; 3] {
    let web = WantedService {
        port: 80,
        mode: Mode::Nat,
        policy: Policy::Balanced,
        has_fallback: true,
        workers: workers.to_vec(),
    };
    [Some(web), None, None]
}

/// A harness in which each of these workers has a connection.
fn started(workers: &[(usize, bool)]) -> Harness {
    let mut harness = Harness::new();
    harness.step(&Step::Reload(web(workers)));
    harness.step(&Step::Pass(3));
    for (id, known) in harness.known.iter().filter(|(_, it)| !it.is_fallback) {
        harness.connections.push(OpenConnection {
            backend: id.0,
            to: known.address,
            mode: mode::NAT,
            service: None,
        });
    }
    assert_eq!(harness.connections.len(), workers.len());
    harness.check();
    harness
}

#[test]
fn readded_worker_keeps_its_connections_and_its_id() {
    let mut harness = started(&[(0, false), (1, false)]);
    for _ in 0..3 {
        harness.step(&Step::Reload(web(&[(0, false)])));
        harness.step(&Step::Pass(30));
        harness.step(&Step::Sweep);
        harness.check();
        harness.step(&Step::Reload(web(&[(0, false), (1, false)])));
        // Before its first heartbeat, too.
        harness.check();
        assert!(harness.known.contains_key(&BackendId(2)));
        harness.step(&Step::Pass(3));
        assert_eq!(harness.entries[&2].state, state::UP);
    }
}

#[test]
fn a_renamed_worker_keeps_its_connections_however_late_its_agent_follows() {
    let mut harness = started(&[(0, false), (1, false)]);
    harness.step(&Step::Reload(web(&[(0, false), (1, true)])));
    harness.step(&Step::Pass(100));
    harness.check();
    assert_eq!(harness.entries[&2].state, state::DRAINING);
    harness.step(&Step::Rename(1));
    harness.step(&Step::Pass(3));
    harness.check();
    assert_eq!(harness.entries[&2].state, state::UP);
}

#[test]
fn readded_dead_worker_stays_down_until_it_reports() {
    let mut harness = started(&[(0, false), (1, false)]);
    harness.entries.get_mut(&2).expect("worker1").state = state::DOWN;
    harness.connections.clear();
    harness.step(&Step::Reload(web(&[(0, false)])));
    assert_eq!(harness.entries[&2].state, state::DOWN);
    harness.step(&Step::Reload(web(&[(0, false), (1, false)])));
    assert_eq!(harness.entries[&2].state, state::UNKNOWN);
}

#[test]
fn an_id_with_connections_is_given_to_no_other_backend() {
    let all = [(0, false), (1, false), (2, false)];
    let mut harness = started(&all);
    let [web_service, ..] = web(&all);
    let other = |port| {
        let mut service = web_service.clone().expect("a service");
        (service.port, service.has_fallback) = (port, false);
        Some(service)
    };
    // Of 12 numbers, three are taken by connections in mode `nat`, and one by the fallback, which stays.
    let mut dsr = [web_service.clone(), other(81), other(53)];
    dsr.iter_mut().flatten().for_each(|it| it.mode = Mode::Dsr);
    harness.step(&Step::Reload(dsr.clone()));
    assert_eq!(harness.refused, 1);
    harness.check();
    harness.connections.clear();
    harness.step(&Step::Reload(web(&[(3, false)])));
    harness.step(&Step::Sweep);
    harness.step(&Step::Reload(dsr));
    assert_eq!((harness.refused, harness.known.len()), (1, 10));
}
