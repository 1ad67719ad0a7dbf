//! One policy's life: arrivals, departures, reports and deadlines, each at its own instant.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use lb_core::{
    BackendId, BackendSettings, BootId, Core, CoreSettings, FallbackSettings, Memory, Mode, Policy,
    Protocol, Report, Sequence, ServiceId, ServiceSettings, WorkerState,
};

use crate::config::Failover;

use super::kernel::Kernel;
use super::random::Random;
use super::result::{Meter, Outcome};
use super::scenario::{Contender, Scenario};

/// How often the workers' memory is looked at for the figures.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// Addresses of clients, for the policy that looks at them.
const CLIENTS: u32 = 1_000;

/// What happens; of events at the same time, the one planned first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
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

struct World<'a> {
    scenario: &'a Scenario,
    contender: Contender,
    interval: Duration,
    core: Core,
    kernel: Kernel,
    start: Instant,
    now: Duration,
    agenda: BinaryHeap<Reverse<(Duration, u64, Happening)>>,
    planned: u64,
    /// Clients, the network and the kernel draw apart: what one does must not change the others.
    clients: Random,
    network: Random,
    draws: Random,
    /// What the connections of each worker take.
    taken: Vec<u64>,
    numbers: BTreeMap<usize, u64>,
    meter: Meter,
}

/// Lives through the scenario with reports at this interval.
pub fn live(scenario: &Scenario, contender: Contender, interval: Duration) -> Outcome {
    let start = Instant::now();
    let mut world = World {
        core: Core::new(settings(scenario, contender, interval), start),
        kernel: Kernel::default(),
        scenario,
        contender,
        interval,
        start,
        now: Duration::ZERO,
        agenda: BinaryHeap::new(),
        planned: 0,
        clients: Random::new(scenario.seed),
        network: Random::new(scenario.seed ^ 0x6e65_7477_6f72_6b00),
        draws: Random::new(scenario.seed ^ 0x6472_6177_7300_0000),
        taken: vec![0; scenario.workers.len()],
        numbers: BTreeMap::new(),
        meter: Meter::default(),
    };
    world.begin();
    world.run();
    world.meter.outcome(contender, interval)
}

/// How many heartbeat intervals fit into `down_after` by default.
fn default_intervals() -> u32 {
    let Failover {
        heartbeat_interval,
        down_after,
        ..
    } = Failover::default();
    u32::try_from(down_after.as_millis() / heartbeat_interval.as_millis().max(1)).unwrap_or(1)
}

fn settings(scenario: &Scenario, contender: Contender, interval: Duration) -> CoreSettings {
    let address =
        |number: u32, port| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), port));
    let backend = |(number, worker): (u32, &super::WorkerModel)| BackendSettings {
        id: BackendId(number),
        worker: worker.name.clone(),
        address: address(number, 8080),
        weight_percent: 100,
    };
    let backends: Vec<_> = (1..).zip(&scenario.workers).map(backend).collect();
    let fallback = BackendId(u32::try_from(backends.len()).unwrap_or(u32::MAX - 1) + 1);
    let policy = match contender {
        Contender::Policy(policy) => policy,
        // Chosen among the places, like the others.
        Contender::Random => Policy::LeastConnections,
    };
    CoreSettings {
        // As many intervals as by default.
        down_after: interval * default_intervals(),
        up_after: 1,
        services: vec![ServiceSettings {
            id: ServiceId(0),
            name: "simulated".to_owned(),
            address: address(0, 80),
            protocol: Protocol::Tcp,
            mode: Mode::Nat,
            policy,
            threshold: scenario.threshold,
            hold: scenario.hold,
            spread: scenario.spread,
            fallback: Some(FallbackSettings {
                id: fallback,
                address: address(0, 8080),
            }),
            backends,
        }],
    }
}

impl World<'_> {
    fn begin(&mut self) {
        self.obey();
        for worker in 0..self.scenario.workers.len() {
            self.receive(worker, 0, self.available(worker));
            let phase = self.network.up_to(self.interval);
            self.plan(phase, Happening::Send { worker });
        }
        self.plan(Duration::ZERO, Happening::Arrival);
        self.plan(SAMPLE_INTERVAL, Happening::Sample);
    }

    fn run(&mut self) {
        loop {
            let due = self.core.poll_timeout().map(|at| at - self.start);
            let next = self.agenda.peek().map(|Reverse((at, ..))| *at);
            let wakes = due.is_some_and(|due| next.is_none_or(|next| due <= next));
            let Some(at) = (if wakes { due } else { next }) else {
                return;
            };
            if at > self.scenario.duration {
                return;
            }
            self.now = at;
            if wakes {
                self.wake();
            } else if let Some(Reverse((.., happening))) = self.agenda.pop() {
                self.happen(happening);
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrival => self.arrive(),
            Happening::Departure { worker, bytes } => {
                self.taken[worker] -= bytes;
                self.kernel.closed(id(worker));
            }
            Happening::Send { worker } => self.send(worker),
            Happening::Receive {
                worker,
                number,
                available_bytes,
            } => self.receive(worker, number, available_bytes),
            Happening::Sample => {
                let workers = self.scenario.workers.iter();
                let fill = |(worker, model): (usize, &super::WorkerModel)| {
                    self.used(worker) as f64 / model.total_bytes as f64
                };
                let fills: Vec<f64> = workers.enumerate().map(fill).collect();
                self.meter.sample(&fills);
                self.plan(SAMPLE_INTERVAL, Happening::Sample);
            }
        }
    }

    /// A connection comes. What the clients draw does not depend on where it goes.
    fn arrive(&mut self) {
        let next = Duration::from_secs_f64(1.0 / self.scenario.arrivals_per_second);
        let (next, stay) = (
            self.clients.time(next),
            self.clients.time(self.scenario.stay),
        );
        let bytes = self.clients.amount(self.scenario.connection_bytes);
        let client = (self.clients.word() % CLIENTS).wrapping_mul(0x9e37_79b1);
        self.plan(next, Happening::Arrival);
        let workers = self.scenario.workers.len();
        let worker = match self.contender {
            Contender::Random => Some(self.draws.word() as usize % workers),
            Contender::Policy(_) => self
                .kernel
                .choose(client, &mut self.draws)
                .map(|backend| backend.0 as usize - 1)
                .filter(|worker| *worker < workers),
        };
        // A connection that does not fit is turned away, and takes nothing.
        match worker.filter(|worker| bytes <= self.available(*worker)) {
            Some(worker) => {
                self.meter.accepted += 1;
                self.taken[worker] += bytes;
                self.kernel.opened(id(worker));
                self.plan(stay, Happening::Departure { worker, bytes });
                let fill =
                    self.used(worker) as f64 / self.scenario.workers[worker].total_bytes as f64;
                self.meter.fills(fill);
            }
            None => self.meter.rejected += 1,
        }
    }

    fn send(&mut self, worker: usize) {
        let number = self.numbers.entry(worker).or_default();
        *number += 1;
        let number = *number;
        let available_bytes = self.available(worker);
        if !self.network.happens(self.scenario.loss) {
            let delay = self.network.time(self.scenario.delay);
            let receive = Happening::Receive {
                worker,
                number,
                available_bytes,
            };
            self.plan(delay, receive);
        }
        self.plan(self.interval, Happening::Send { worker });
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
            translates: Vec::new(),
            interval: Some(self.interval),
        };
        // One that comes late, after the next, is refused: as in life.
        _ = self.core.handle_heartbeat(&report, self.instant());
        self.wake();
    }

    fn wake(&mut self) {
        let now = self.instant();
        if self.core.wants_connections(now) {
            self.core
                .handle_connections(&self.kernel.open_connections());
        }
        self.core.handle_timeout(now);
        self.obey();
    }

    fn obey(&mut self) {
        while let Some(command) = self.core.poll_map_update() {
            self.kernel.apply(command);
        }
        while self.core.poll_event().is_some() {}
    }

    fn plan(&mut self, after: Duration, happening: Happening) {
        self.planned += 1;
        let entry = (self.now + after, self.planned, happening);
        self.agenda.push(Reverse(entry));
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    fn used(&self, worker: usize) -> u64 {
        let background = self.scenario.workers[worker].background.at(self.now);
        background + self.taken[worker]
    }

    fn available(&self, worker: usize) -> u64 {
        let total = self.scenario.workers[worker].total_bytes;
        total.saturating_sub(self.used(worker))
    }
}

fn id(worker: usize) -> BackendId {
    BackendId(u32::try_from(worker).unwrap_or(u32::MAX - 1) + 1)
}
