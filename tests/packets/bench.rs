//! The compiled programs with maps of their own, fed frame by frame by `BPF_PROG_TEST_RUN`.
//!
//! A [`Bench`] stands in a network namespace without a name, which is gone with its thread. Time
//! passes by ageing the flows, so that no test waits.

use std::{
    collections::BTreeMap, fs, io::Write as _, ops::RangeInclusive, panic::resume_unwind,
    process::Stdio, thread, time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, TestRunAttrs, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{ProgramError, SchedClassifier, TestRun, TestRunResult, Xdp, XdpMode},
};
use lb_common::{
    headers::PROTOCOL_TCP,
    maps::{
        Backend, Counter, Flow, FlowKey, LAYOUT_VERSION, Neighbour, Service, ServiceKey, Settings,
        Traffic, mode, name, state,
    },
    verdict::Verdict,
};
use memlb_tests::require_root;
use nix::sched::{CloneFlags, unshare};

use crate::{
    call::Call,
    frame::Segment,
    lan::{self, Station},
    outcome::{Action, Counted, Outcome},
};

/// Silence after which a flow is over. Real time between the steps of a test is far shorter.
pub const CLOSING_IDLE: Duration = Duration::from_millis(2_500);
pub const HALF_OPEN_IDLE: Duration = Duration::from_millis(4_500);
pub const ESTABLISHED_IDLE: Duration = Duration::from_millis(8_500);

/// Flows that fit each table, far more than a test opens.
const FLOW_ENTRIES: u32 = 8_192;
const BACKENDS: u32 = 8;

/// The service's index in `selection`.
const SERVICE_ID: u32 = 3;

/// Which program meets the packets that arrive from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    Tc,
    Xdp,
}

/// Where a frame meets a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Received from the network, by the bench's edge.
    Ingress,
    /// Sent to the network by the manager itself (TC).
    Egress,
    /// Sent by the manager to itself (TC).
    Loopback,
}

/// What the kernel says of a frame beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    pub hook: Hook,
    /// The interface it is on.
    pub interface: u32,
    /// The interface it was received on, for a frame that leaves; 0 for the manager's own.
    pub forwarded_from: u32,
    /// Size and number of the packets that it stands for.
    pub gso: Option<(u32, u32)>,
}

pub struct Bench {
    pub edge: Edge,
    ebpf: Ebpf,
    maps: Maps,
}

struct Maps {
    settings: Array<MapData, Settings>,
    services: HashMap<MapData, ServiceKey, Service>,
    selection: Array<MapData, u32>,
    backends: Array<MapData, Backend>,
    neighbours: Array<MapData, Neighbour>,
    established: HashMap<MapData, FlowKey, Flow>,
    half_open: HashMap<MapData, FlowKey, Flow>,
    verdicts: PerCpuArray<MapData, Counter>,
    traffic: PerCpuArray<MapData, Traffic>,
}

/// A table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Established,
    HalfOpen,
}

/// Tells `story` twice: with the TC program at the edge of the network, and with the XDP program.
pub fn at_both_edges(story: impl Fn(&mut Bench) + Sync) {
    for edge in [Edge::Tc, Edge::Xdp] {
        at_edge(edge, &story);
    }
}

/// Tells `story` on a thread of its own, in a namespace of its own.
pub fn at_edge(edge: Edge, story: impl FnOnce(&mut Bench) + Send) {
    if !require_root() {
        return;
    }
    let told = thread::scope(|scope| scope.spawn(|| story(&mut Bench::new(edge).unwrap())).join());
    if let Err(panic) = told {
        eprintln!("… at the {edge:?} edge");
        resume_unwind(panic);
    }
}

impl Bench {
    /// The lab with worker 1 selected, both workers up, and nothing under way.
    fn new(edge: Edge) -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        make_interfaces()?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(name::FLOWS, FLOW_ENTRIES)
            .map_max_entries(name::HALF_OPEN, FLOW_ENTRIES)
            .map_max_entries(name::BACKENDS, BACKENDS)
            .map_max_entries(name::NEIGHBOURS, BACKENDS)
            .map_max_entries(name::TRAFFIC, BACKENDS)
            .load(memlb::datapath::OBJECT)?;
        for program in ["memlb_ingress", "memlb_egress", "memlb_loopback"] {
            classifier_mut(&mut ebpf, program).load()?;
        }
        let xdp: &mut Xdp = ebpf.program_mut("memlb_xdp").unwrap().try_into()?;
        xdp.load()?;
        if edge == Edge::Xdp {
            // A test run may name only an interface whose driver has XDP switched on.
            for interface in [lan::ETH1, lan::ETH2] {
                xdp.attach_to_if_index(interface, XdpMode::Driver)?;
            }
        }
        let maps = Maps::take(&mut ebpf)?;
        let mut bench = Self { edge, ebpf, maps };
        bench.furnish();
        Ok(bench)
    }

    fn furnish(&mut self) {
        self.settings(|_| {});
        let address = lan::SERVICE;
        let key = ServiceKey {
            address: address.ip().octets(),
            port: address.port().to_be_bytes(),
            protocol: PROTOCOL_TCP,
            reserved: 0,
        };
        let service = Service { id: SERVICE_ID };
        self.maps.services.insert(key, service, 0).unwrap();
        for worker in [lan::WORKER1, lan::WORKER2] {
            self.backend(worker.id, |backend| *backend = lan::backend(worker));
            self.neighbour(
                worker.id,
                Neighbour {
                    worker: worker.station.mac.into(),
                    manager: lan::MANAGER.mac.into(),
                },
            );
        }
        self.backend(lan::FALLBACK.id, |backend| {
            *backend = lan::backend(lan::FALLBACK);
            backend.mode = mode::LOCAL;
            backend.interface = 0;
        });
        self.select(lan::WORKER1.id);
    }

    /// Changes the settings, beginning from the usual ones.
    pub fn settings(&mut self, change: impl FnOnce(&mut Settings)) {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap();
        let mut settings = Settings {
            layout_version: LAYOUT_VERSION,
            nat_port_first: lan::FIRST_NAT_PORT,
            nat_port_count: 32_768 - lan::FIRST_NAT_PORT,
            established_idle_ns: nanoseconds(ESTABLISHED_IDLE),
            closing_idle_ns: nanoseconds(CLOSING_IDLE),
            half_open_idle_ns: nanoseconds(HALF_OPEN_IDLE),
            accept_local_before: 0,
            reserved: 0,
        };
        change(&mut settings);
        self.maps.settings.set(0, settings, 0).unwrap();
    }

    pub fn nat_ports(&mut self, ports: RangeInclusive<u16>) {
        self.settings(|settings| {
            settings.nat_port_first = *ports.start();
            settings.nat_port_count = ports.end() - ports.start() + 1;
        });
    }

    pub fn select(&mut self, backend: u32) {
        self.maps.selection.set(SERVICE_ID, backend, 0).unwrap();
    }

    /// Changes a backend's entry.
    pub fn backend(&mut self, id: u32, change: impl FnOnce(&mut Backend)) {
        let mut backend = self.maps.backends.get(&id, 0).unwrap();
        change(&mut backend);
        self.maps.backends.set(id, backend, 0).unwrap();
    }

    pub fn state(&mut self, id: u32, to: u8) {
        self.backend(id, |backend| backend.state = to);
    }

    pub fn goes_down(&mut self, id: u32) {
        self.state(id, state::DOWN);
    }

    pub fn neighbour(&mut self, id: u32, neighbour: Neighbour) {
        self.maps.neighbours.set(id, neighbour, 0).unwrap();
    }

    pub fn known_neighbour(&self, id: u32) -> Neighbour {
        self.maps.neighbours.get(&id, 0).unwrap()
    }

    /// A call from `client` that has not begun.
    pub fn call(&self, client: Station, port: u16) -> Call {
        Call::new(self.edge, client, port)
    }

    /// Feeds a frame that arrives from the network on the first interface.
    pub fn receives(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        self.meets(frame, Circumstances::received_on(lan::ETH1))
    }

    /// Feeds a frame that XDP has left to the TC program behind it.
    pub fn behind_xdp(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        self.meets_at(Edge::Tc, frame, Circumstances::received_on(lan::ETH1))
    }

    /// Feeds a frame that the manager itself sends to the network.
    pub fn sends(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        self.meets(
            frame,
            Circumstances {
                hook: Hook::Egress,
                ..Circumstances::received_on(lan::ETH1)
            },
        )
    }

    /// Feeds a frame that the manager sends to itself.
    pub fn loops(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        self.meets(
            frame,
            Circumstances {
                hook: Hook::Loopback,
                ..Circumstances::received_on(lan::LOOPBACK)
            },
        )
    }

    /// Runs the program that meets `frame` in these circumstances.
    pub fn meets(&self, frame: impl Into<Vec<u8>>, circumstances: Circumstances) -> Outcome {
        let edge = match circumstances.hook {
            Hook::Ingress => self.edge,
            Hook::Egress | Hook::Loopback => Edge::Tc,
        };
        self.meets_at(edge, frame, circumstances)
    }

    fn meets_at(
        &self,
        edge: Edge,
        frame: impl Into<Vec<u8>>,
        circumstances: Circumstances,
    ) -> Outcome {
        let sent = frame.into();
        let before = self.counters();
        let mut out = vec![0; sent.len() + 256];
        let result = match edge {
            Edge::Tc => self.run_tc(&sent, &mut out, circumstances),
            Edge::Xdp => self.run_xdp(&sent, &mut out, circumstances),
        };
        let result = result.unwrap_or_else(|error| panic!("{} bytes: {error:?}", sent.len()));
        out.truncate(result.data_size_out as usize);
        Outcome {
            edge,
            action: Action::named(edge, result.return_value),
            packets: circumstances.gso.map_or(1, |(_, segments)| segments.into()),
            counted: Counted::between(&before, &self.counters()),
            sent,
            left: out,
        }
    }

    fn run_tc(
        &self,
        frame: &[u8],
        out: &mut [u8],
        circumstances: Circumstances,
    ) -> Result<TestRunResult, ProgramError> {
        let program = match circumstances.hook {
            Hook::Ingress => "memlb_ingress",
            Hook::Egress => "memlb_egress",
            Hook::Loopback => "memlb_loopback",
        };
        let program: &SchedClassifier = self.ebpf.program(program).unwrap().try_into()?;
        let context = socket_buffer(circumstances);
        program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })
    }

    fn run_xdp(
        &self,
        frame: &[u8],
        out: &mut [u8],
        circumstances: Circumstances,
    ) -> Result<TestRunResult, ProgramError> {
        let program: &Xdp = self.ebpf.program("memlb_xdp").unwrap().try_into()?;
        let context = xdp_metadata(frame.len(), circumstances.interface);
        program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })
    }

    fn counters(&self) -> Counters {
        let verdicts = Verdict::ALL.iter().map(|verdict| {
            let values = self.maps.verdicts.get(&(*verdict as u32), 0).unwrap();
            values.iter().fold(Counter::default(), |sum, one| Counter {
                packets: sum.packets + one.packets,
                bytes: sum.bytes + one.bytes,
            })
        });
        let traffic = (0..BACKENDS).map(|id| {
            let values = self.maps.traffic.get(&id, 0).unwrap();
            values.iter().fold(Traffic::default(), |sum, one| Traffic {
                connections: sum.connections + one.connections,
                packets_in: sum.packets_in + one.packets_in,
                bytes_in: sum.bytes_in + one.bytes_in,
                packets_out: sum.packets_out + one.packets_out,
                bytes_out: sum.bytes_out + one.bytes_out,
            })
        });
        Counters {
            verdicts: verdicts.collect(),
            traffic: traffic.collect(),
        }
    }

    /// Connections counted for a backend so far.
    pub fn connections(&self, backend: u32) -> u64 {
        self.counters().traffic[backend as usize].connections
    }

    pub fn entries(&self, table: Table) -> BTreeMap<FlowKey, Flow> {
        self.table(table).iter().collect::<Result<_, _>>().unwrap()
    }

    pub fn entry(&self, table: Table, key: FlowKey) -> Option<Flow> {
        self.table(table).get(&key, 0).ok()
    }

    pub fn put(&mut self, table: Table, key: FlowKey, flow: Flow) {
        self.table_mut(table).insert(key, flow, 0).unwrap();
    }

    /// What the kernel does when a table is full.
    pub fn evict(&mut self, table: Table, key: FlowKey) {
        self.table_mut(table).remove(&key).unwrap();
    }

    /// Lets time pass, as far as flows can tell.
    pub fn wait(&mut self, duration: Duration) {
        let age = u64::try_from(duration.as_nanos()).unwrap();
        for table in [Table::Established, Table::HalfOpen] {
            for (key, mut flow) in self.entries(table) {
                for time in [
                    &mut flow.created_ns,
                    &mut flow.last_seen_ns,
                    &mut flow.twin_seen_ns,
                ] {
                    *time = time.checked_sub(age).expect("booted before the test");
                }
                self.put(table, key, flow);
            }
        }
    }

    fn table(&self, table: Table) -> &HashMap<MapData, FlowKey, Flow> {
        match table {
            Table::Established => &self.maps.established,
            Table::HalfOpen => &self.maps.half_open,
        }
    }

    fn table_mut(&mut self, table: Table) -> &mut HashMap<MapData, FlowKey, Flow> {
        match table {
            Table::Established => &mut self.maps.established,
            Table::HalfOpen => &mut self.maps.half_open,
        }
    }

    /// Attaches the TC ingress program to the first interface, for frames that really travel.
    pub fn attach_ingress(&mut self) {
        let program = classifier_mut(&mut self.ebpf, "memlb_ingress");
        program
            .attach("eth1", aya::programs::TcAttachType::Ingress)
            .unwrap();
    }

    /// Lets a frame really arrive on the first interface, through XDP and the stack behind it, and
    /// returns every counter that moved.
    pub fn lets_in(&self, frame: &[u8]) -> Vec<Counted> {
        let before = self.counters();
        let program: &Xdp = self.ebpf.program("memlb_xdp").unwrap().try_into().unwrap();
        let context = xdp_metadata(frame.len(), lan::ETH1);
        let run = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::new()
        };
        program.test_run(run).unwrap();
        Counted::between(&before, &self.counters())
    }
}

/// All counters at one moment, summed over the CPUs.
pub struct Counters {
    pub verdicts: Vec<Counter>,
    pub traffic: Vec<Traffic>,
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let mut map = |name| ebpf.take_map(name).unwrap();
        Ok(Self {
            settings: map(name::SETTINGS).try_into()?,
            services: map(name::SERVICES).try_into()?,
            selection: map(name::SELECTION).try_into()?,
            backends: map(name::BACKENDS).try_into()?,
            neighbours: map(name::NEIGHBOURS).try_into()?,
            established: map(name::FLOWS).try_into()?,
            half_open: map(name::HALF_OPEN).try_into()?,
            verdicts: map(name::VERDICTS).try_into()?,
            traffic: map(name::TRAFFIC).try_into()?,
        })
    }
}

impl Circumstances {
    pub fn received_on(interface: u32) -> Self {
        Self {
            hook: Hook::Ingress,
            interface,
            forwarded_from: 0,
            gso: None,
        }
    }
}

impl From<&Segment> for Vec<u8> {
    fn from(segment: &Segment) -> Self {
        segment.frame()
    }
}

fn classifier_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    ebpf.program_mut(name).unwrap().try_into().unwrap()
}

/// `eth1` and `eth2` under known indices and link addresses, silent by themselves.
fn make_interfaces() -> anyhow::Result<()> {
    let ipv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    if fs::exists(ipv6)? {
        fs::write(ipv6, "1")?;
    }
    let [eth1, eth2] = [lan::MANAGER.mac, lan::MANAGER_ETH2].map(lan::written);
    let mut ip = std::process::Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    let script = format!(
        "link set lo up\n\
         link add eth1 index {} address {eth1} type veth peer name far1 index {}\n\
         link add eth2 index {} address {eth2} type veth peer name far2 index {}\n\
         link set eth1 up\nlink set eth2 up\nlink set far1 up\nlink set far2 up\n",
        lan::ETH1,
        lan::FAR1,
        lan::ETH2,
        lan::FAR2,
    );
    ip.stdin.take().unwrap().write_all(script.as_bytes())?;
    anyhow::ensure!(ip.wait()?.success(), "ip failed");
    Ok(())
}

/// `struct __sk_buff`, of which a test run accepts these fields only (net/bpf/test_run.c).
fn socket_buffer(circumstances: Circumstances) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let (size, segments) = circumstances.gso.unwrap_or((0, 0));
    let mut context = [0; 192];
    for (offset, value) in [
        (INGRESS_IFINDEX, circumstances.forwarded_from),
        (IFINDEX, circumstances.interface),
        (GSO_SEGS, segments),
        (GSO_SIZE, size),
    ] {
        context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    context
}

/// `struct xdp_md`: the frame's end and the interface it is received on.
fn xdp_metadata(length: usize, interface: u32) -> [u8; 24] {
    const DATA_END: usize = 4;
    const INGRESS_IFINDEX: usize = 12;
    let mut context = [0; 24];
    let end = u32::try_from(length).unwrap();
    context[DATA_END..DATA_END + 4].copy_from_slice(&end.to_ne_bytes());
    context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&interface.to_ne_bytes());
    context
}
