//! One simulation: arrivals, departures, reports and deadlines, each at its own instant.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use lb_common::steer::ChoiceTables;
use lb_core::{
    BackendId, BackendSettings, BootId, Core, CoreSettings, FailingSettings, FallbackSettings,
    Memory, Mode, Policy, Protocol, Report, Sequence, ServiceId, ServiceSettings, WorkerState,
};

use super::random::Random;
use super::result::{Meter, Outcome};
use super::scenario::{Contender, Scenario, WorkerModel};
use super::tables::MapTables;
use crate::config::FailoverSettings;

/// How often the workers' memory is sampled for the figures.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// The number of client addresses.
const CLIENTS: u32 = 1_000;

/// An event of the simulation. Of events at the same time, the one that was scheduled first is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum SimEvent {
    Arrival,
    Departure {
        worker: usize,
        bytes: u64,
    },
    Send {
        worker: usize,
    },
    Receive {
        worker: usize,
        number: u64,
        available_bytes: u64,
    },
    Sample,
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    contender: Contender,
    interval: Duration,
    core: Core,
    tables: MapTables,
    start: Instant,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64, SimEvent)>>,
    scheduled: u64,
    /// Clients, network and kernel have separate random numbers, so that none changes the others.
    clients: Random,
    network: Random,
    /// Memory of the open connections of each worker.
    connection_bytes: Vec<u64>,
    /// The sequence number of the last report of each worker.
    sequence_numbers: BTreeMap<usize, u64>,
    meter: Meter,
}

/// Simulates the scenario with reports at this interval.
pub fn simulate(scenario: &Scenario, contender: Contender, interval: Duration) -> Outcome {
    let start = Instant::now();
    let mut simulation = Simulation {
        core: Core::new(settings(scenario, contender, interval), start),
        tables: MapTables::new(Random::new(scenario.seed ^ 0x6472_6177_7300_0000)),
        scenario,
        contender,
        interval,
        start,
        now: Duration::ZERO,
        queue: BinaryHeap::new(),
        scheduled: 0,
        clients: Random::new(scenario.seed),
        network: Random::new(scenario.seed ^ 0x6e65_7477_6f72_6b00),
        connection_bytes: vec![0; scenario.workers.len()],
        sequence_numbers: BTreeMap::new(),
        meter: Meter::default(),
    };
    simulation.begin();
    simulation.run();
    simulation.meter.outcome(contender, interval)
}

/// The number of heartbeat intervals in `down_after` by default.
fn default_intervals() -> u32 {
    let FailoverSettings {
        heartbeat_interval,
        down_after,
        ..
    } = FailoverSettings::default();
    u32::try_from(down_after.as_millis() / heartbeat_interval.as_millis().max(1)).unwrap_or(1)
}

fn settings(scenario: &Scenario, contender: Contender, interval: Duration) -> CoreSettings {
    let address =
        |number: u32, port| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), port));
    let backend = |(number, worker): (u32, &WorkerModel)| BackendSettings {
        id: BackendId(number),
        worker: worker.name.clone(),
        address: address(number, 8080),
        weight_percent: 100,
        source: None,
        source_state: None,
        backup: false,
        agent: true,
        max_connections: 0,
    };
    let backends: Vec<_> = (1..).zip(&scenario.workers).map(backend).collect();
    let fallback = BackendId(u32::try_from(backends.len()).unwrap_or(u32::MAX - 1) + 1);
    let policy = match contender {
        Contender::Policy(policy) => policy,
        // Unused: the simulation itself draws the worker.
        Contender::Random => Policy::LeastConnections,
    };
    CoreSettings {
        // The same number of intervals as by default.
        down_after: interval * default_intervals(),
        up_after: 1,
        failing: FailingSettings::default(),
        panic_percent: None,
        services: vec![ServiceSettings {
            id: ServiceId(0),
            name: "simulated".to_owned(),
            address: address(0, 80),
            protocol: Protocol::Tcp,
            mode: Mode::Nat,
            policy,
            memory: scenario.memory,
            spread: scenario.spread,
            passive_checks: true,
            retry_refused: true,
            fallback: Some(FallbackSettings {
                id: fallback,
                address: address(0, 8080),
            }),
            backends,
        }],
    }
}

impl Simulation<'_> {
    fn begin(&mut self) {
        self.apply_updates();
        for worker in 0..self.scenario.workers.len() {
            self.receive(worker, 0, self.available(worker));
            let phase = self.network.up_to(self.interval);
            self.schedule(phase, SimEvent::Send { worker });
        }
        self.schedule(Duration::ZERO, SimEvent::Arrival);
        self.schedule(SAMPLE_INTERVAL, SimEvent::Sample);
    }

    fn run(&mut self) {
        loop {
            let due = self.core.poll_timeout().map(|at| at - self.start);
            let next = self.queue.peek().map(|Reverse((at, ..))| *at);
            let wakes = due.is_some_and(|due| next.is_none_or(|next| due <= next));
            let Some(at) = (if wakes { due } else { next }) else {
                return;
            };
            if at > self.scenario.duration {
                return;
            }
            self.now = at;
            if wakes {
                self.handle_timeout();
            } else if let Some(Reverse((.., event))) = self.queue.pop() {
                self.handle(event);
            }
        }
    }

    fn handle(&mut self, event: SimEvent) {
        match event {
            SimEvent::Arrival => self.arrive(),
            SimEvent::Departure { worker, bytes } => {
                self.connection_bytes[worker] -= bytes;
                self.tables.closed(id(worker));
            }
            SimEvent::Send { worker } => self.send(worker),
            SimEvent::Receive {
                worker,
                number,
                available_bytes,
            } => self.receive(worker, number, available_bytes),
            SimEvent::Sample => {
                let workers = 0..self.scenario.workers.len();
                let fills: Vec<f64> = workers.map(|it| self.memory_usage(it)).collect();
                self.meter.sample(&fills);
                self.schedule(SAMPLE_INTERVAL, SimEvent::Sample);
            }
        }
    }

    /// Opens a connection. The random numbers do not depend on the chosen worker.
    fn arrive(&mut self) {
        let next = Duration::from_secs_f64(1.0 / self.scenario.arrivals_per_second);
        let (next, stay) = (
            self.clients.time(next),
            self.clients.time(self.scenario.stay),
        );
        let bytes = self.clients.amount(self.scenario.connection_bytes);
        let client = Ipv4Addr::from(0x0a01_0000 + self.clients.word() % CLIENTS).octets();
        self.schedule(next, SimEvent::Arrival);
        let workers = self.scenario.workers.len();
        let worker = match self.contender {
            Contender::Random => Some(self.tables.random() as usize % workers),
            Contender::Policy(_) => self
                .tables
                .choose(client)
                .map(|backend| backend.0 as usize - 1)
                .filter(|worker| *worker < workers),
        };
        // The worker rejects a connection for which it has no memory.
        match worker.filter(|worker| bytes <= self.available(*worker)) {
            Some(worker) => {
                self.meter.accepted += 1;
                self.connection_bytes[worker] += bytes;
                self.tables.opened(id(worker));
                self.schedule(stay, SimEvent::Departure { worker, bytes });
                self.meter.record_fill(self.memory_usage(worker));
            }
            None => self.meter.rejected += 1,
        }
    }

    fn send(&mut self, worker: usize) {
        let number = self.sequence_numbers.entry(worker).or_default();
        *number += 1;
        let number = *number;
        let available_bytes = self.available(worker);
        if !self.network.happens(self.scenario.loss) {
            let delay = self.network.time(self.scenario.delay);
            let receive = SimEvent::Receive {
                worker,
                number,
                available_bytes,
            };
            self.schedule(delay, receive);
        }
        self.schedule(self.interval, SimEvent::Send { worker });
    }

    fn receive(&mut self, worker: usize, number: u64, available_bytes: u64) {
        let model = &self.scenario.workers[worker];
        let report = Report {
            worker: model.name.clone(),
            sequence: Some(Sequence {
                boot: BootId(1),
                number,
            }),
            signed: true,
            memory: Memory {
                available_bytes,
                total_bytes: Some(model.total_bytes),
            },
            memory_stale: None,
            pressure: None,
            state: WorkerState::Ready,
            healthy: true,
            checked: false,
            translates: Vec::new(),
            interval: Some(self.interval),
        };
        // The core refuses a report that arrives after a later one.
        _ = self.core.handle_heartbeat(&report, self.instant());
        self.handle_timeout();
    }

    fn handle_timeout(&mut self) {
        let now = self.instant();
        if self.core.wants_connections(now) {
            self.core
                .handle_connections(&self.tables.open_connections());
        }
        self.core.handle_timeout(now);
        self.apply_updates();
    }

    fn apply_updates(&mut self) {
        while let Some(update) = self.core.poll_map_update() {
            self.tables.apply(update);
        }
        while self.core.poll_event().is_some() {}
    }

    fn schedule(&mut self, after: Duration, event: SimEvent) {
        self.scheduled += 1;
        let entry = (self.now + after, self.scheduled, event);
        self.queue.push(Reverse(entry));
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    fn used(&self, worker: usize) -> u64 {
        let background = self.scenario.workers[worker].background.at(self.now);
        background + self.connection_bytes[worker]
    }

    /// The part of a worker's memory that is in use, 0 to 1.
    fn memory_usage(&self, worker: usize) -> f64 {
        self.used(worker) as f64 / self.scenario.workers[worker].total_bytes as f64
    }

    fn available(&self, worker: usize) -> u64 {
        let total = self.scenario.workers[worker].total_bytes;
        total.saturating_sub(self.used(worker))
    }
}

fn id(worker: usize) -> BackendId {
    BackendId(u32::try_from(worker).unwrap_or(u32::MAX - 1) + 1)
}
