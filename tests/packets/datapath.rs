//! The compiled programs with maps of their own, and how one is run on one frame by
//! `BPF_PROG_TEST_RUN`.

use std::sync::Mutex;

use aya::{
    Ebpf, EbpfLoader, TestRunAttrs, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf, lpm_trie::LpmTrie},
    programs::{
        Program, ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunResult, Xdp, XdpMode,
        tc::{self, SchedClassifierLink},
        xdp::XdpLink,
    },
};
use lb_common::{
    address::V6,
    maps::{
        Backend, Counter, DEFAULT_SOURCE_WORDS, FlowKey, Neighbour, OwnLink, PORTS_PER_WORD,
        PeerLinks, PeerSwitch, Policy, PortPool, PortWord, SLOTS_PER_BUCKET, Service, ServiceKey,
        Settings, TRACE_SECTION, TraceConfig, TraceCounts, Traffic, UnknownFlow, name,
    },
};
use memlb::datapath::Intake;

use crate::{
    entries,
    outcome::{Action, Counted, Outcome},
    tables::{Flows, Handshakes},
};

/// Flows that fit each table, far more than a test opens.
const FLOW_ENTRIES: u32 = 8_192;
pub const BACKENDS: u32 = 8;
/// Of places for handshakes; few, because tests read all of them.
pub const BUCKETS: u32 = 16;
/// Of the ports towards one endpoint.
pub const POOL_WORDS: u32 = 2 * DEFAULT_SOURCE_WORDS;

/// The programs, loaded, and their maps.
pub struct Datapath {
    ebpf: Ebpf,
    pub maps: Maps,
    pub intake: Intake,
}

/// Datapaths that no test uses just now: verifying the programs takes longer than most tests.
static SPARE: Mutex<Vec<Datapath>> = Mutex::new(Vec::new());

pub struct Maps {
    pub settings: Array<MapData, Settings>,
    pub services: HashMap<MapData, ServiceKey, Service>,
    pub selection: Array<MapData, u32>,
    pub backends: Array<MapData, Backend>,
    pub neighbours: Array<MapData, Neighbour>,
    pub own_links: Array<MapData, OwnLink>,
    pub homes: HashMap<MapData, [u8; 16], u32>,
    pub flows: Flows,
    pub handshakes: Handshakes,
    pub ports: Array<MapData, u64>,
    pub endpoints: HashMap<MapData, ServiceKey, u32>,
    pub port_pools: Array<MapData, PortPool>,
    pub port_words: Array<MapData, PortWord>,
    pub nat_sources: Array<MapData, V6>,
    pub policies: Array<MapData, Policy>,
    pub choices: Array<MapData, u32>,
    pub active: Array<MapData, u64>,
    pub deny: LpmTrie<MapData, V6, u32>,
    pub clients: HashMap<MapData, V6, u64>,
    pub verdicts: PerCpuArray<MapData, Counter>,
    pub traffic: PerCpuArray<MapData, Traffic>,
    pub trace: Array<MapData, TraceConfig>,
    pub trace_counts: Array<MapData, TraceCounts>,
    pub trace_events: RingBuf<MapData>,
    pub peer_switch: Array<MapData, PeerSwitch>,
    pub peers: HashMap<MapData, u32, PeerLinks>,
    pub peer_addresses: HashMap<MapData, V6, u32>,
    pub flow_events: RingBuf<MapData>,
    pub unknown_flows: HashMap<MapData, FlowKey<V6>, UnknownFlow>,
}

/// All counters at one moment, summed over the CPUs.
pub struct Counters {
    pub verdicts: Vec<Counter>,
    pub traffic: Vec<Traffic>,
}

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
pub struct FrameContext {
    pub hook: Hook,
    /// The interface it is on.
    pub interface: u32,
    /// The interface it was received on, for a frame that leaves; 0 for the manager's own.
    pub forwarded_from: u32,
    /// Size and number of the packets that it stands for.
    pub gso: Option<(u32, u32)>,
}

impl Datapath {
    /// One that no test uses just now, or a new one.
    pub fn acquire() -> anyhow::Result<Self> {
        let spare = SPARE.lock().unwrap().pop();
        spare.map_or_else(Self::load, Ok)
    }

    /// Leaves it to the next test.
    pub fn release(self) {
        SPARE.lock().unwrap().push(self);
    }

    /// How many instructions the verifier went through for each program.
    pub fn verified_instructions(&self) -> Vec<(String, u64)> {
        verified_instructions(&self.ebpf)
    }

    fn load() -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(name::FLOWS, FLOW_ENTRIES)
            .map_max_entries(name::HALF_OPEN, BUCKETS * SLOTS_PER_BUCKET)
            .map_max_entries(name::OWNER_TAGS, BUCKETS)
            .map_max_entries(name::FLOWS6, FLOW_ENTRIES)
            .map_max_entries(name::HALF_OPEN6, BUCKETS * SLOTS_PER_BUCKET)
            .map_max_entries(name::OWNER_TAGS6, BUCKETS)
            .map_max_entries(name::ACTIVE, BACKENDS)
            .map_max_entries(name::EVICTED, BACKENDS)
            .map_max_entries(name::BACKENDS, BACKENDS)
            .map_max_entries(name::NEIGHBOURS, BACKENDS)
            .map_max_entries(name::TRAFFIC, BACKENDS)
            .map_max_entries(name::ENDPOINTS, 2 * BACKENDS)
            .map_max_entries(name::PORT_POOLS, BACKENDS)
            .map_max_entries(name::PORT_WORDS, BACKENDS * POOL_WORDS)
            .map_max_entries(
                name::PORT_HANDSHAKES,
                BACKENDS * POOL_WORDS * PORTS_PER_WORD / 2,
            )
            .load(memlb::datapath::OBJECT)?;
        for program in ["memlb_ingress", "memlb_egress", "memlb_loopback"] {
            classifier_mut(&mut ebpf, program).load()?;
        }
        xdp_mut(&mut ebpf).load()?;
        let intake = Intake::load(&mut ebpf)?;
        let maps = Maps::from_ebpf(&mut ebpf)?;
        Ok(Self { ebpf, maps, intake })
    }

    pub fn attach_xdp(&mut self, interfaces: &[u32]) -> anyhow::Result<Vec<XdpLink>> {
        let program = xdp_mut(&mut self.ebpf);
        let attach = |interface: &u32| {
            let link = program.attach_to_if_index(*interface, XdpMode::Driver)?;
            Ok(program.take_link(link)?)
        };
        interfaces.iter().map(attach).collect()
    }

    pub fn counters(&self) -> Counters {
        Counters {
            verdicts: entries::sums(&self.maps.verdicts, total),
            traffic: entries::sums(&self.maps.traffic, |values| Traffic::sum(values.iter())),
        }
    }

    pub fn attach_ingress(&mut self, interface: &str) -> anyhow::Result<SchedClassifierLink> {
        // What kernels without tcx attach to.
        tc::qdisc_add_clsact(interface)?;
        let program = classifier_mut(&mut self.ebpf, "memlb_ingress");
        let link = program.attach(interface, TcAttachType::Ingress)?;
        Ok(program.take_link(link)?)
    }

    /// Runs the program of this edge that meets `sent` in this context.
    pub fn run(&self, edge: Edge, sent: Vec<u8>, context: FrameContext) -> Outcome {
        let before = self.counters();
        let mut left = vec![0; sent.len() + 256];
        let result = self.run_on(edge, &sent, Some(&mut left), context);
        let result = result.unwrap_or_else(|error| panic!("{} bytes: {error:?}", sent.len()));
        left.truncate(result.data_size_out as usize);
        Outcome {
            edge,
            action: Action::named(edge, result.return_value),
            packets: context.gso.map_or(1, |(_, segments)| segments.into()),
            counted: Counted::between(&before, &self.counters()),
            sent,
            left,
        }
    }

    /// The same, with nothing looked at; what is left of the frame is written to `left`.
    pub fn run_on(
        &self,
        edge: Edge,
        frame: &[u8],
        left: Option<&mut [u8]>,
        context: FrameContext,
    ) -> Result<TestRunResult, ProgramError> {
        match edge {
            Edge::Tc => self.run_tc(frame, left, context),
            Edge::Xdp => self.run_xdp(frame, left, context),
        }
    }

    /// The TC program of a hook.
    pub fn classifier(&self, hook: Hook) -> &SchedClassifier {
        let name = match hook {
            Hook::Ingress => "memlb_ingress",
            Hook::Egress => "memlb_egress",
            Hook::Loopback => "memlb_loopback",
        };
        self.ebpf.program(name).unwrap().try_into().unwrap()
    }

    fn run_tc(
        &self,
        frame: &[u8],
        out: Option<&mut [u8]>,
        context: FrameContext,
    ) -> Result<TestRunResult, ProgramError> {
        let program = self.classifier(context.hook);
        let context = socket_buffer(context);
        program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: out,
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })
    }

    fn run_xdp(
        &self,
        frame: &[u8],
        out: Option<&mut [u8]>,
        context: FrameContext,
    ) -> Result<TestRunResult, ProgramError> {
        let program: &Xdp = self.ebpf.program("memlb_xdp").unwrap().try_into()?;
        let context = xdp_metadata(frame.len(), context.interface);
        program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: out,
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })
    }

    /// Lets a frame really arrive, through XDP and the stack behind it.
    pub fn lets_in(&self, frame: &[u8], interface: u32) -> Result<(), ProgramError> {
        let program: &Xdp = self.ebpf.program("memlb_xdp").unwrap().try_into()?;
        let context = xdp_metadata(frame.len(), interface);
        program.test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::new()
        })?;
        Ok(())
    }
}

/// A counter's sum over the CPUs.
pub fn total(values: &[Counter]) -> Counter {
    values.iter().fold(Counter::default(), |sum, one| Counter {
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
    })
}

/// How many instructions the verifier went through for each of these programs.
pub fn verified_instructions(ebpf: &Ebpf) -> Vec<(String, u64)> {
    let count = |(name, program): (&str, &Program)| {
        let verified = program.info().unwrap().verified_instruction_count();
        (name.to_owned(), verified.unwrap().into())
    };
    ebpf.programs().map(count).collect()
}

impl Maps {
    fn from_ebpf(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let mut map = |name| ebpf.take_map(name).unwrap();
        Ok(Self {
            settings: map(name::SETTINGS).try_into()?,
            services: map(name::SERVICES).try_into()?,
            selection: map(name::SELECTION).try_into()?,
            backends: map(name::BACKENDS).try_into()?,
            neighbours: map(name::NEIGHBOURS).try_into()?,
            own_links: map(name::OWN_LINKS).try_into()?,
            homes: map(name::SOURCE_FILTER).try_into()?,
            flows: Flows {
                v4: map(name::FLOWS).try_into()?,
                v6: map(name::FLOWS6).try_into()?,
            },
            handshakes: Handshakes {
                v4: map(name::HALF_OPEN).try_into()?,
                v6: map(name::HALF_OPEN6).try_into()?,
            },
            ports: map(name::PORTS).try_into()?,
            endpoints: map(name::ENDPOINTS).try_into()?,
            port_pools: map(name::PORT_POOLS).try_into()?,
            port_words: map(name::PORT_WORDS).try_into()?,
            nat_sources: map(name::NAT_SOURCES).try_into()?,
            policies: map(name::POLICIES).try_into()?,
            choices: map(name::CHOICES).try_into()?,
            active: map(name::ACTIVE).try_into()?,
            deny: map(name::DENY).try_into()?,
            clients: map(name::CLIENTS).try_into()?,
            verdicts: map(name::VERDICTS).try_into()?,
            traffic: map(name::TRAFFIC).try_into()?,
            trace: map(TRACE_SECTION).try_into()?,
            trace_counts: map(name::TRACE_COUNTS).try_into()?,
            trace_events: map(name::TRACE_EVENTS).try_into()?,
            peer_switch: map(name::PEER_SWITCH).try_into()?,
            peers: map(name::PEERS).try_into()?,
            peer_addresses: map(name::PEER_ADDRESSES).try_into()?,
            flow_events: map(name::FLOW_EVENTS).try_into()?,
            unknown_flows: map(name::UNKNOWN_FLOWS).try_into()?,
        })
    }
}

impl FrameContext {
    pub fn received_on(interface: u32) -> Self {
        Self {
            hook: Hook::Ingress,
            interface,
            forwarded_from: 0,
            gso: None,
        }
    }
}

fn classifier_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    ebpf.program_mut(name).unwrap().try_into().unwrap()
}

fn xdp_mut(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut("memlb_xdp").unwrap().try_into().unwrap()
}

/// `struct __sk_buff`, of which a test run accepts these fields only (net/bpf/test_run.c).
pub fn socket_buffer(frame_context: FrameContext) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let (size, segments) = frame_context.gso.unwrap_or((0, 0));
    let mut context = [0; 192];
    for (offset, value) in [
        (INGRESS_IFINDEX, frame_context.forwarded_from),
        (IFINDEX, frame_context.interface),
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
