//! memlb's programs and the baselines, loaded with the same flows, and run alternately.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray, RingBuf},
    programs::{ProgramError, ProgramFd, SchedClassifier, TestRun, TestRunResult, Xdp},
};
use lb_common::{
    address::Address,
    headers::PROTOCOL_TCP,
    maps::{
        Backend, Counter, DEFAULT_FLOW_ENTRIES, DEFAULT_HANDSHAKES, DEFAULT_SERVICES,
        DEFAULT_SOURCE_WORDS, FLOW_EVENT_BYTES, Flow, FlowKey, Handshake, LAYOUT_VERSION, Mac,
        Neighbour, OwnerTags, PeerSwitch, PortPool, PortWord, SLOTS_PER_BUCKET, Service,
        ServiceKey, Settings, Traffic, direction, mode, name, port_bit, port_word,
        reverse_sync_shift, service_flag, state,
    },
};
use memlb_tests::command::output;
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use crate::{
    Case, Outcome, Ports,
    headers::{
        BACKEND_PORT, CLIENT, FIRST_PORT, Headers, LINK, MANAGER, NAT_PORT, SERVICE_PORT, SYN,
        WORKER,
    },
};

/// The build directory of the baselines.
pub const BASELINE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/ebpf/bpfel-unknown-none/release/baseline"
);

/// The default interface of a test run: the loopback one.
const HERE: u32 = 1;
/// Where the client of the replies is: anywhere else.
const ELSEWHERE: u32 = 7;
/// The baseline's backend that stands for the interface to the clients.
const BASELINE_CLIENTS: u32 = 0;

const TC_ACT_REDIRECT: u32 = 7;
const TC_ACT_UNSPEC: u32 = u32::MAX;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// The numbers of flows, services and workers.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// A power of two, as are the services; packets come from the flows in turn.
    pub flows: u32,
    pub services: u32,
    pub backends: u32,
}

impl Size {
    pub const fn of_flows(flows: u32) -> Self {
        Self {
            flows,
            services: 1,
            backends: 2,
        }
    }

    /// The capacity of memlb's maps.
    fn capacities(self) -> [(&'static str, u32); 10] {
        let (services, backends) = (self.services.max(DEFAULT_SERVICES), self.backends + 1);
        [
            (name::FLOWS, self.flow_entries()),
            (name::SERVICES, services),
            (name::SELECTION, services),
            (name::POLICIES, services),
            ("round_robin", services),
            (name::BACKENDS, backends),
            (name::NEIGHBOURS, backends),
            (name::TRAFFIC, backends),
            (name::ACTIVE, backends),
            (name::EVICTED, backends),
        ]
    }

    fn flow_entries(self) -> u32 {
        // Large enough that nothing is evicted.
        DEFAULT_FLOW_ENTRIES.max(4 * self.flows)
    }

    /// The backend of the flow of that `turn`.
    fn backend(self, turn: u32) -> u32 {
        1 + turn % self.backends
    }
}

/// The packets of one run, which takes some milliseconds.
const REPETITIONS: u32 = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Tc,
    Xdp,
}

impl Edge {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tc => "TC",
            Self::Xdp => "XDP",
        }
    }
}

/// Nanoseconds, or instructions, per packet over a program that returns at once.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    pub memlb: f64,
    pub translation: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    ReturnAtOnce,
    Translation,
    Memlb,
}

/// The baseline's entry of a flow, as lb-ebpf's `baseline.rs` has it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct BaselineFlow {
    translated: FlowKey,
    backend: u64,
}

// SAFETY: `repr(C)`, integers and byte arrays, 16 + 8 bytes without padding.
unsafe impl Pod for BaselineFlow {}

pub struct Rig {
    edge: Edge,
    memlb: Ebpf,
    baseline: Ebpf,
    under_test: ProgramArray<MapData>,
    template: Array<MapData, [u8; 68]>,
    flows: HashMap<MapData, FlowKey, Flow>,
    half_open: Array<MapData, Handshake>,
    owner_tags: Array<MapData, OwnerTags>,
    port_pools: Array<MapData, PortPool>,
    port_words: Array<MapData, PortWord>,
    tracked: HashMap<MapData, FlowKey, BaselineFlow>,
    verdicts: PerCpuArray<MapData, Counter>,
    traffic: PerCpuArray<MapData, Traffic>,
    switch: Array<MapData, PeerSwitch>,
    /// Map `flow_events`.
    reports: RingBuf<MapData>,
}

/// The interface of [`LINK`].
const INTERFACE: &str = "bench";

/// Makes the interface, in a new network namespace of this process.
pub fn make_interface() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    let [a, b, c, d, e, f] = LINK;
    let link = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let mut ip = Command::new("ip");
    ip.args(["link", "add", INTERFACE, "address", &link]);
    output(ip.args(["type", "veth", "peer", "name", "other"])).map(drop)
}

impl Rig {
    /// Loads everything, with capacity for that size.
    pub fn load(baseline: &str, edge: Edge, size: Size) -> Result<Self> {
        let object = fs::read(baseline).with_context(|| format!("read {baseline}"))?;
        let mut baseline = EbpfLoader::new()
            .map_max_entries("base_flows", size.flow_entries())
            .map_max_entries("base_backends", size.backends + 1)
            .load(&object)
            .context("load the baselines")?;
        let mut loader = EbpfLoader::new();
        for (map, entries) in size.capacities() {
            loader.map_max_entries(map, entries);
        }
        loader.map_max_entries(name::FLOW_EVENTS, FLOW_EVENT_BYTES);
        let mut memlb = loader.load(memlb::datapath::OBJECT)?;
        for program in [Program::ReturnAtOnce, Program::Translation] {
            load_program(&mut baseline, program.name(edge), edge)?;
        }
        load_program(&mut baseline, wrapper(edge), edge)?;
        load_program(&mut memlb, Program::Memlb.name(edge), edge)?;
        fill_maps(&mut memlb, &mut baseline, size)?;
        let take = |ebpf: &mut Ebpf, name: &str| {
            let map = ebpf.take_map(name);
            map.with_context(|| format!("there is no map {name}"))
        };
        Ok(Self {
            edge,
            under_test: take(&mut baseline, "under_test")?.try_into()?,
            template: take(&mut baseline, "template")?.try_into()?,
            tracked: take(&mut baseline, "base_flows")?.try_into()?,
            flows: take(&mut memlb, name::FLOWS)?.try_into()?,
            half_open: take(&mut memlb, name::HALF_OPEN)?.try_into()?,
            owner_tags: take(&mut memlb, name::OWNER_TAGS)?.try_into()?,
            port_pools: take(&mut memlb, name::PORT_POOLS)?.try_into()?,
            port_words: take(&mut memlb, name::PORT_WORDS)?.try_into()?,
            verdicts: take(&mut memlb, name::VERDICTS)?.try_into()?,
            traffic: take(&mut memlb, name::TRAFFIC)?.try_into()?,
            switch: take(&mut memlb, name::PEER_SWITCH)?.try_into()?,
            reports: take(&mut memlb, name::FLOW_EVENTS)?.try_into()?,
            memlb,
            baseline,
        })
    }

    /// Runs every program in each round and returns the medians of the differences.
    pub fn measure(&mut self, case: &Case, rounds: usize) -> Result<Costs> {
        self.prepare(case)?;
        if case.begins_flows() {
            let ((flow, _), _) = pair(case, 0);
            let translated = flow.translated;
            shuffle_free_entries(&mut self.flows, flow)?;
            shuffle_free_entries(
                &mut self.tracked,
                BaselineFlow {
                    translated,
                    backend: 1,
                },
            )?;
        }
        let mut translation = Vec::new();
        let mut memlb = Vec::new();
        // The first round warms up.
        for round in 0..=rounds {
            if case.begins_flows() {
                self.prepare(case)?;
            }
            let baseline = self.run(Program::ReturnAtOnce, case)?;
            let over = |cost: f64| cost - baseline;
            let costs = [
                over(self.run(Program::Translation, case)?),
                over(self.run(Program::Memlb, case)?),
            ];
            if round > 0 {
                translation.push(costs[0]);
                memlb.push(costs[1]);
            }
        }
        Ok(Costs {
            memlb: median(memlb).context("at least one round")?,
            translation: median(translation).context("at least one round")?,
        })
    }

    fn run(&mut self, program: Program, case: &Case) -> Result<f64> {
        let object = if program == Program::Memlb {
            &self.memlb
        } else {
            &self.baseline
        };
        let fd = program_fd(object, program.name(self.edge), self.edge)?;
        self.under_test
            .set(0, fd, 0)
            .context("choose the program")?;
        self.template.set(0, template(&case.packet, case.size), 0)?;
        let repetitions = if case.begins_flows() {
            case.size.flows
        } else {
            REPETITIONS.max(case.size.flows)
        };
        let switch = PeerSwitch {
            reports: case.peers.into(),
            interfaces: case.peers.into(),
            ..PeerSwitch::default()
        };
        self.switch.set(0, switch, 0)?;
        let mut reported = 0;
        if case.outcome == Outcome::Establishes {
            if program != Program::ReturnAtOnce {
                self.begin_handshakes(case)?;
            }
            if case.peers && program == Program::Memlb {
                reported = repetitions;
            }
        }
        let before = self.count(case.outcome)?;
        let result = test_run(&self.baseline, self.edge, &case.packet, repetitions)?;
        let records = std::iter::from_fn(|| self.reports.next().map(drop)).count();
        ensure!(
            records == reported as usize,
            "memlb reported {records} of {reported} connections"
        );
        if program == Program::Memlb {
            let counted = self.count(case.outcome)? - before;
            ensure!(
                counted == u64::from(repetitions),
                "memlb counted {counted} of {repetitions} packets as {:?}",
                case.outcome
            );
        }
        let action = program.action(self.edge, case.outcome);
        ensure!(
            result.return_value == action,
            "{program:?} returned {} instead of {action}",
            result.return_value
        );
        Ok(result.duration.as_nanos() as f64)
    }

    /// Begins the connections, with the workers' answers.
    fn begin_handshakes(&mut self, case: &Case) -> Result<()> {
        let syn = Headers {
            flags: SYN,
            ..case.packet
        };
        self.template.set(0, template(&syn, case.size), 0)?;
        test_run(&self.baseline, self.edge, &syn, case.size.flows)?;
        for place in 0..self.half_open.len() {
            let handshake = self.half_open.get(&place, 0)?;
            if handshake.backend != 0 {
                let answered = Handshake {
                    answered: 1,
                    // The client acknowledges number 0.
                    worker_sequence: u32::MAX,
                    ..handshake
                };
                self.half_open.set(place, answered, 0)?;
            }
        }
        self.template.set(0, template(&case.packet, case.size), 0)?;
        Ok(())
    }

    /// Empties every table and fills in the flows that the packets belong to.
    fn prepare(&mut self, case: &Case) -> Result<()> {
        clear(&mut self.flows)?;
        for place in 0..self.half_open.len() {
            self.half_open.set(place, Handshake::FREE, 0)?;
        }
        // Otherwise the last round's clients would still have handshakes.
        for bucket in 0..self.owner_tags.len() {
            self.owner_tags.set(bucket, OwnerTags::default(), 0)?;
        }
        let [used, waiting] = match case.outcome {
            Outcome::Begins(Ports::InTimeWait) => [u64::MAX; 2],
            Outcome::Begins(Ports::Used) => [u64::MAX, 0],
            _ => [0; 2],
        };
        for word in 0..DEFAULT_SOURCE_WORDS {
            self.port_words.set(word, PortWord { used, waiting }, 0)?;
        }
        self.port_pools.set(0, PortPool::default(), 0)?;
        clear(&mut self.tracked)?;
        if !matches!(case.outcome, Outcome::ToBackend | Outcome::ToClient) {
            return Ok(());
        }
        for turn in 0..case.size.flows {
            let (request, reply) = pair(case, turn);
            for (key, flow) in [(request.1, request.0), (reply.1, reply.0)] {
                self.flows.insert(key, flow, 0)?;
                let tracked = BaselineFlow {
                    translated: flow.translated,
                    backend: match flow.direction {
                        direction::REPLY => BASELINE_CLIENTS.into(),
                        _ => flow.backend.into(),
                    },
                };
                self.tracked.insert(key, tracked, 0)?;
            }
        }
        Ok(())
    }

    fn count(&self, outcome: Outcome) -> Result<u64> {
        if let Outcome::Passes(verdict) = outcome {
            let counters = self.verdicts.get(&(verdict as u32), 0)?;
            return Ok(counters.iter().map(|counter| counter.packets).sum());
        }
        let count = |one: &Traffic| match outcome {
            Outcome::ToBackend | Outcome::Establishes => one.packets_in,
            Outcome::ToClient => one.packets_out,
            Outcome::Begins(_) | Outcome::Passes(_) => one.connections,
        };
        let mut sum = 0;
        for traffic in self.traffic.iter() {
            sum += traffic?.iter().map(count).sum::<u64>();
        }
        Ok(sum)
    }
}

impl Program {
    fn name(self, edge: Edge) -> &'static str {
        match (self, edge) {
            (Self::ReturnAtOnce, Edge::Tc) => "return_tc",
            (Self::ReturnAtOnce, Edge::Xdp) => "return_xdp",
            (Self::Translation, Edge::Tc) => "translate_tc",
            (Self::Translation, Edge::Xdp) => "translate_xdp",
            (Self::Memlb, Edge::Tc) => "memlb_ingress",
            (Self::Memlb, Edge::Xdp) => "memlb_xdp",
        }
    }

    /// Returns the program's result for a packet with that `outcome`.
    fn action(self, edge: Edge, outcome: Outcome) -> u32 {
        let passes = matches!(outcome, Outcome::Passes(_)) || self == Self::ReturnAtOnce;
        match edge {
            Edge::Tc if passes => TC_ACT_UNSPEC,
            Edge::Tc => TC_ACT_REDIRECT,
            Edge::Xdp if passes => XDP_PASS,
            Edge::Xdp if outcome == Outcome::ToClient => XDP_REDIRECT,
            Edge::Xdp => XDP_TX,
        }
    }
}

fn wrapper(edge: Edge) -> &'static str {
    match edge {
        Edge::Tc => "wrapper_tc",
        Edge::Xdp => "wrapper_xdp",
    }
}

fn load_program(ebpf: &mut Ebpf, name: &str, edge: Edge) -> Result<()> {
    let program = ebpf.program_mut(name);
    let program = program.with_context(|| format!("there is no program {name}"))?;
    match edge {
        Edge::Tc => <&mut SchedClassifier>::try_from(program)?.load(),
        Edge::Xdp => <&mut Xdp>::try_from(program)?.load(),
    }
    .with_context(|| format!("load {name}"))
}

fn program_fd<'a>(ebpf: &'a Ebpf, name: &str, edge: Edge) -> Result<&'a ProgramFd> {
    let program = ebpf.program(name);
    let program = program.with_context(|| format!("there is no program {name}"))?;
    Ok(match edge {
        Edge::Tc => <&SchedClassifier>::try_from(program)?.fd()?,
        Edge::Xdp => <&Xdp>::try_from(program)?.fd()?,
    })
}

fn test_run(baseline: &Ebpf, edge: Edge, packet: &Headers, repeat: u32) -> Result<TestRunResult> {
    let context = context(packet)?;
    let options = TestRunOptions {
        data_in: Some(&packet.bytes()),
        ctx_in: context.as_ref().map(|it| &it[..]),
        repeat,
        ..TestRunOptions::new()
    };
    let program = baseline.program(wrapper(edge));
    let program = program.context("there is a wrapper")?;
    let result: Result<TestRunResult, ProgramError> = match edge {
        Edge::Tc => <&SchedClassifier>::try_from(program)?.test_run(options),
        Edge::Xdp => <&Xdp>::try_from(program)?.test_run(options),
    };
    result.map_err(|error| anyhow!("run the wrapper: {error:?}"))
}

/// The kernel's `struct __sk_buff` up to its `ifindex`, for a packet that does not arrive at the loopback interface.
fn context(packet: &Headers) -> Result<Option<[u8; 44]>> {
    if packet.link != LINK {
        return Ok(None);
    }
    let index = if_nametoindex(INTERFACE).context("find the interface")?;
    let mut context = [0; 44];
    context[40..].copy_from_slice(&index.to_ne_bytes());
    Ok(Some(context))
}

/// The wrapper's instructions, as lb-ebpf's `baseline.rs` has them.
fn template(packet: &Headers, size: Size) -> [u8; 68] {
    let mut template = [0; 68];
    template[..54].copy_from_slice(&packet.bytes());
    template[54..56].copy_from_slice(&packet.source_port.to_ne_bytes());
    template[56..60].copy_from_slice(&(size.flows - 1).to_ne_bytes());
    template[60..64].copy_from_slice(&(size.services - 1).to_ne_bytes());
    template
}

/// Both entries of the flow of that `turn`, each with its key.
fn pair(case: &Case, turn: u32) -> ((Flow, FlowKey), (Flow, FlowKey)) {
    let port = FIRST_PORT.wrapping_add(turn as u16).to_be_bytes();
    let next = |[a, b, c, last]: [u8; 4]| [a, b, c, last + (turn >> 16) as u8];
    let (client, source) = (next(CLIENT), next(MANAGER));
    let server = service_address(turn & (case.size.services - 1));
    let tuple = |source, source_port, destination, destination_port| FlowKey {
        source,
        destination,
        source_port,
        destination_port,
        protocol: PROTOCOL_TCP.into(),
    };
    let service = SERVICE_PORT.to_be_bytes();
    let (from_client, to_backend, client_interface) = if case.outcome == Outcome::ToBackend {
        (
            tuple(client, port, server, service),
            tuple(source, port, WORKER, BACKEND_PORT.to_be_bytes()),
            HERE,
        )
    } else {
        (
            tuple(CLIENT, port, MANAGER, service),
            tuple(MANAGER, NAT_PORT.to_be_bytes(), WORKER, port),
            ELSEWHERE,
        )
    };
    // As if the client acknowledged everything: otherwise its replies would take another path after a second.
    let client_seen = 1 << 30;
    let flow = |translated, direction, last_seen_ticks| Flow {
        translated,
        client_mac: Mac::default(),
        manager_mac: Mac::default(),
        backend: case.size.backend(turn),
        client_interface,
        direction,
        ended: 0,
        counted: 1,
        superseded: 0,
        created_ticks: 0,
        last_seen_ticks,
        sequence: 0,
        bytes: 0,
    };
    let request = flow(to_backend, direction::REQUEST, client_seen);
    let reply = flow(from_client.reversed(), direction::REPLY, 0);
    ((request, from_client), (reply, to_backend.reversed()))
}

/// The address of the service of that number.
fn service_address(number: u32) -> [u8; 4] {
    (u32::from_be_bytes(MANAGER) + number).to_be_bytes()
}

fn fill_maps(memlb: &mut Ebpf, baseline: &mut Ebpf, size: Size) -> Result<()> {
    let backend = Backend {
        address: WORKER.mapped(),
        port: BACKEND_PORT,
        state: state::UP,
        mode: mode::NAT,
        source: MANAGER.mapped(),
        next_hop: WORKER.mapped(),
        interface: HERE,
        reply_interface: HERE,
        ..Backend::default()
    };
    let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos());
    let settings = Settings {
        layout_version: LAYOUT_VERSION,
        nat_port_first: 4096,
        nat_port_count: 28_672,
        established_idle_ns: nanoseconds(Duration::from_secs(3600))?,
        datagram_idle_ns: nanoseconds(Duration::from_secs(60))?,
        closing_idle_ns: nanoseconds(Duration::from_secs(10))?,
        half_open_idle_ns: nanoseconds(Duration::from_secs(30))?,
        half_open_buckets: DEFAULT_HANDSHAKES / SLOTS_PER_BUCKET,
        secret: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
        pool_words: DEFAULT_SOURCE_WORDS,
        source_words: DEFAULT_SOURCE_WORDS,
        direct_flows: u32::MAX,
        reverse_sync_shift: reverse_sync_shift(size.flow_entries()),
        ..Settings::default()
    };
    let neighbour = Neighbour {
        worker: [2, 0, 0, 0, 0, 103].into(),
        manager: [2, 0, 0, 0, 0, 101].into(),
    };
    let at = |map: &str| format!("there is a map {map}");
    let mut map = |map: &str| memlb.take_map(map).with_context(|| at(map));
    Array::try_from(map(name::SETTINGS)?)?.set(0, settings, 0)?;
    let mut selection = Array::try_from(map(name::SELECTION)?)?;
    let mut services = HashMap::try_from(map(name::SERVICES)?)?;
    for id in 0..size.services {
        let service = ServiceKey {
            address: service_address(id).mapped(),
            port: SERVICE_PORT.to_be_bytes(),
            protocol: PROTOCOL_TCP,
            reserved: 0,
        };
        services.insert(
            service,
            Service {
                id,
                flags: service_flag::RETRY_REFUSED,
            },
            0,
        )?;
        selection.set(id, size.backend(id), 0)?;
    }
    let endpoint = ServiceKey {
        address: WORKER.mapped(),
        port: BACKEND_PORT.to_be_bytes(),
        protocol: PROTOCOL_TCP,
        reserved: 0,
    };
    HashMap::try_from(map(name::ENDPOINTS)?)?.insert(endpoint, 0, 0)?;
    let baseline = baseline
        .take_map("base_backends")
        .context("the baseline's")?;
    let mut baseline = Array::try_from(baseline)?;
    let mut backends = Array::try_from(map(name::BACKENDS)?)?;
    let mut neighbours = Array::try_from(map(name::NEIGHBOURS)?)?;
    let clients = Backend {
        interface: ELSEWHERE,
        ..backend
    };
    baseline.set(BASELINE_CLIENTS, clients, 0)?;
    for id in 1..=size.backends {
        backends.set(id, backend, 0)?;
        neighbours.set(id, neighbour, 0)?;
        baseline.set(id, backend, 0)?;
    }
    let mut ports: Array<_, u64> = Array::try_from(map(name::PORTS)?)?;
    for port in (4096..32_768).chain([SERVICE_PORT]).map(u16::to_be_bytes) {
        let (word, bit) = (port_word(PROTOCOL_TCP, port, false), port_bit(port));
        let before = ports.get(&word, 0)?;
        ports.set(word, before | bit, 0)?;
    }
    Ok(())
}

/// How many free entries of a flow table are put out of order.
const SHUFFLED: u32 = 1 << 16;

/// Leaves the free entries of an empty table in random order, as connections leave them that end. The kernel hands out
/// the entries of a new table in the order of memory, which the processor fetches in advance.
fn shuffle_free_entries<V: Pod>(table: &mut HashMap<MapData, FlowKey, V>, value: V) -> Result<()> {
    let mut keys: Vec<_> = (0..SHUFFLED)
        .map(|number| FlowKey {
            source: number.to_be_bytes(),
            ..FlowKey::default()
        })
        .collect();
    for key in &keys {
        table.insert(key, value, 0)?;
    }
    fastrand::Rng::with_seed(1).shuffle(&mut keys);
    for key in &keys {
        table.remove(key)?;
    }
    Ok(())
}

fn clear<V: Pod>(table: &mut HashMap<MapData, FlowKey, V>) -> Result<()> {
    let keys = table.keys().collect::<Result<Vec<_>, _>>()?;
    for key in keys {
        table.remove(&key)?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
