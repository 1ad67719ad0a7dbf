//! The lab of one test: its settings, the frames for the programs, and the programs' maps.
//!
//! A [`Bench`] uses a network namespace without a name, which ends with its thread. Time
//! passes by ageing the flows, so that no test waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::IpAddr,
    ops::RangeInclusive,
    panic::resume_unwind,
    thread,
    time::Duration,
};

use aya::{
    maps::lpm_trie,
    programs::{ProgramFd, tc::SchedClassifierLink, xdp::XdpLink},
};
use lb_common::{
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    maps::{
        Backend, DEFAULT_SOURCE_WORDS, FlowRecord, LAYOUT_VERSION, MAX_NAT_SOURCES, Neighbour,
        OwnLink, PORTS_PER_WORD, PeerLink, PeerLinks, PeerSwitch, Policy, PortPool, PortWord,
        SLOTS_PER_BUCKET, SPREAD, Service, ServiceKey, Settings, TraceConfig, TraceCounts,
        TraceEvent, Traffic, first_choice, mode, own_link, policy, port_bit, port_word,
        service_flag, state, ticks,
    },
    verdict::Verdict,
};
use memlb::datapath::{IntakeOutcome, parse_event};
use memlb_tests::require_root;
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};

pub use crate::datapath::{Edge, FrameContext, Hook};
use crate::{
    call::Call,
    datapath::{BACKENDS, BUCKETS, Counters, Datapath},
    entries,
    frame::{Family, Mac},
    lan::{self, Server, Station},
    outcome::{Counted, Outcome},
    tables::{Entry, Key, Opening},
};

/// Silence after which a flow is over. Real time between the steps of a test is far shorter.
pub const CLOSING_IDLE: Duration = Duration::from_millis(2_500);
pub const HALF_OPEN_IDLE: Duration = Duration::from_millis(4_500);
pub const ESTABLISHED_IDLE: Duration = Duration::from_millis(8_500);
pub const DATAGRAM_IDLE: Duration = Duration::from_secs(60);

/// The services' index in `selection`, and that of those of the other family.
pub const SERVICE_ID: u32 = 3;
const FOREIGN_SERVICE_ID: u32 = 5;

/// `1`: each test at each edge over one family, and a tenth of the random cases. This is for further kernels, where
/// the same programs run: a kernel differs in how it loads and attaches them and in what it does for them. The
/// differential test has both families at each edge.
const SPARSE: &str = "MEMLB_SPARSE";

pub struct Bench {
    pub edge: Edge,
    /// What clients, service and workers speak unless a test says otherwise.
    pub family: Family,
    /// Whether the workers see their clients' own addresses.
    is_routed: bool,
    datapath: Datapath,
    /// What earlier tests have counted: verified programs are used again.
    counted_before: Counters,
    /// Held, because what drops a link detaches its program.
    _xdp_links: Vec<XdpLink>,
    _ingress_link: Option<SchedClassifierLink>,
}

/// Runs `test` four times: with the TC program at the edge of the network and with the XDP program,
/// over IPv4 and over IPv6.
pub fn at_both_edges(test: impl Fn(&mut Bench) + Sync) {
    for edge in [Edge::Tc, Edge::Xdp] {
        at_edge(edge, &test);
    }
}

/// Runs `test` at both edges with workers reached by mode `nat`, and by mode `routed`: nothing but the
/// client that the worker sees may differ.
pub fn in_both_modes(test: impl Fn(&mut Bench) + Sync) {
    at_both_edges(&test);
    at_both_edges(|bench| {
        bench.routes();
        test(bench);
    });
}

/// Runs `test` over both families; where [`is_sparse`], over one. A test's name selects it, so that the tests as a
/// whole cover each edge with each family.
pub fn at_edge(edge: Edge, test: impl Fn(&mut Bench) + Sync) {
    let thread = thread::current();
    let name = thread.name().unwrap_or_default();
    let selected = name
        .bytes()
        .fold(edge as usize, |sum, byte| sum + usize::from(byte));
    for (index, family) in Family::BOTH.into_iter().enumerate() {
        if !is_sparse() || index == selected % Family::BOTH.len() {
            run_at(edge, family, &test);
        }
    }
}

/// Whether [`SPARSE`] is set.
fn is_sparse() -> bool {
    env::var_os(SPARSE).is_some_and(|value| value == "1")
}

/// Returns how many random cases a test has instead of that many.
pub fn cases(usual: u32) -> u32 {
    match is_sparse() {
        true => usual / 10,
        false => usual,
    }
}

/// Runs `test` at both edges.
pub fn over(family: Family, test: impl Fn(&mut Bench) + Sync) {
    for edge in [Edge::Tc, Edge::Xdp] {
        run_at(edge, family, &test);
    }
}

/// Runs `test` on a thread of its own, in a namespace of its own.
pub fn run_at(edge: Edge, family: Family, test: impl FnOnce(&mut Bench) + Send) {
    if !require_root() {
        return;
    }
    let outcome = thread::scope(|scope| {
        let runner = scope.spawn(|| {
            let mut bench = Bench::new(edge, family).unwrap();
            test(&mut bench);
            bench.datapath.release();
        });
        runner.join()
    });
    if let Err(panic) = outcome {
        eprintln!("… at the {edge:?} edge, over {family:?}");
        resume_unwind(panic);
    }
}

impl Bench {
    /// The lab with worker 1 selected, both workers up, and nothing under way.
    fn new(edge: Edge, family: Family) -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        lan::make_interfaces()?;
        let mut datapath = Datapath::acquire()?;
        let xdp_links = match edge {
            Edge::Tc => Vec::new(),
            // A test run may name only an interface whose driver has XDP switched on.
            Edge::Xdp => datapath.attach_xdp(&[lan::ETH1, lan::ETH2])?,
        };
        let mut bench = Self {
            edge,
            family,
            is_routed: false,
            counted_before: datapath.counters(),
            datapath,
            _xdp_links: xdp_links,
            _ingress_link: None,
        };
        bench.settings(|_| {});
        bench.reset();
        Ok(bench)
    }

    /// Forgets every flow and every change but the settings.
    pub fn reset(&mut self) {
        self.datapath.maps.flows.clear();
        self.own_link(lan::ETH1, None);
        self.forgets_peers();
        let homes: Vec<_> = self
            .datapath
            .maps
            .homes
            .keys()
            .map(Result::unwrap)
            .collect();
        for home in homes {
            self.datapath.maps.homes.remove(&home).unwrap();
        }
        self.allows_all();
        let clients = &mut self.datapath.maps.clients;
        for client in clients.keys().map(Result::unwrap).collect::<Vec<_>>() {
            clients.remove(&client).unwrap();
        }
        for handshake in self.handshakes() {
            self.forget(handshake.client);
        }
        for id in 0..BACKENDS {
            self.datapath.maps.active.set(id, 0, 0).unwrap();
        }
        self.frees_ports();
        let abroad = match self.family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        self.serves(self.family, SERVICE_ID, 0);
        self.serves(abroad, FOREIGN_SERVICE_ID, 0);
        for worker in [lan::WORKER1, lan::WORKER2] {
            self.enlist(worker, lan::backend(worker, self.family));
            self.enlist(worker.abroad(), lan::backend(worker, abroad));
        }
        self.enlist(lan::FALLBACK, lan::fallback(self.family));
        self.enlist(lan::FALLBACK.abroad(), lan::fallback(abroad));
        self.select_abroad(lan::WORKER1.abroad().id);
        self.select(lan::WORKER1.id);
        self.traces(TraceConfig::OFF, Duration::ZERO);
        let policies = &mut self.datapath.maps.policies;
        for service in [SERVICE_ID, FOREIGN_SERVICE_ID] {
            policies.set(service, Policy::default(), 0).unwrap();
        }
    }

    /// Makes every port known to be free.
    fn frees_ports(&mut self) {
        let words = &mut self.datapath.maps.port_words;
        for (index, word) in (0..).zip(entries::of(words)) {
            if word != PortWord::default() {
                words.set(index, PortWord::default(), 0).unwrap();
            }
        }
        for pool in 0..BACKENDS {
            let pools = &mut self.datapath.maps.port_pools;
            pools.set(pool, PortPool::default(), 0).unwrap();
        }
    }

    /// Names what the service's packets of both protocols are selected by.
    fn serves(&mut self, family: Family, id: u32, flags: u32) {
        let address = lan::service(family);
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            let key = ServiceKey {
                address: lan::mapped(address.ip()),
                port: address.port().to_be_bytes(),
                protocol,
                reserved: 0,
            };
            let services = &mut self.datapath.maps.services;
            services.insert(key, Service { id, flags }, 0).unwrap();
        }
    }

    fn enlist(&mut self, server: Server, entry: Backend) {
        self.backend(server.id, |backend| {
            *backend = Backend {
                port_pool: server.id,
                ..entry
            };
        });
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            let endpoint = ServiceKey {
                address: entry.address,
                port: entry.port.to_be_bytes(),
                protocol,
                reserved: 0,
            };
            let endpoints = &mut self.datapath.maps.endpoints;
            endpoints.insert(endpoint, server.id, 0).unwrap();
        }
        self.neighbour(
            server.id,
            Neighbour {
                worker: server.station.mac.into(),
                manager: lan::MANAGER.mac.into(),
            },
        );
    }

    /// Changes the settings, beginning from the usual ones.
    pub fn settings(&mut self, change: impl FnOnce(&mut Settings)) {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap();
        let mut settings = Settings {
            layout_version: LAYOUT_VERSION,
            nat_port_first: lan::FIRST_NAT_PORT,
            nat_port_count: 32_768 - lan::FIRST_NAT_PORT,
            established_idle_ns: nanoseconds(ESTABLISHED_IDLE),
            datagram_idle_ns: nanoseconds(DATAGRAM_IDLE),
            closing_idle_ns: nanoseconds(CLOSING_IDLE),
            half_open_idle_ns: nanoseconds(HALF_OPEN_IDLE),
            half_open_buckets: BUCKETS,
            secret: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
            pool_words: DEFAULT_SOURCE_WORDS,
            source_words: DEFAULT_SOURCE_WORDS,
            direct_flows: u32::MAX,
            ..Settings::default()
        };
        change(&mut settings);
        self.datapath.maps.settings.set(0, settings, 0).unwrap();
        let ports = (0..settings.nat_port_count).map(|offset| settings.nat_port_first + offset);
        self.uses(ports, false);
        self.uses([lan::SERVICE_PORT], false);
        self.uses([lan::FALLBACK.port, lan::SERVICE_PORT], true);
    }

    pub fn nat_ports(&mut self, ports: RangeInclusive<u16>) {
        self.settings(|settings| {
            settings.nat_port_first = *ports.start();
            settings.nat_port_count = ports.end() - ports.start() + 1;
            let count = u32::from(settings.nat_port_count);
            settings.half_open_buckets = count.div_ceil(SLOTS_PER_BUCKET).clamp(1, BUCKETS);
            settings.source_words = count.div_ceil(PORTS_PER_WORD);
            settings.pool_words = settings.source_words;
        });
        self.frees_ports();
    }

    /// Lets the programs connect to workers from these addresses.
    pub fn nat_sources(&mut self, sources: &[Station]) {
        let first = match self.family {
            Family::V4 => 0,
            Family::V6 => MAX_NAT_SOURCES,
        };
        let addresses = &mut self.datapath.maps.nat_sources;
        for (index, source) in (first..).zip(sources) {
            let address = lan::mapped(source.address(self.family));
            addresses.set(index, address, 0).unwrap();
        }
        let mut settings = self.datapath.maps.settings.get(&0, 0).unwrap();
        let count: u16 = sources.len().try_into().unwrap();
        settings.nat_sources = [count; 2];
        settings.pool_words = settings.source_words * u32::from(count);
        self.datapath.maps.settings.set(0, settings, 0).unwrap();
        self.frees_ports();
    }

    /// Makes the programs look at packets to these ports, or from them.
    pub fn uses(&mut self, ports: impl IntoIterator<Item = u16>, is_source: bool) {
        let mut words = BTreeMap::<u32, u64>::new();
        for port in ports {
            let port = port.to_be_bytes();
            for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
                let word = port_word(protocol, port, is_source);
                *words.entry(word).or_default() |= port_bit(port);
            }
        }
        let known = &mut self.datapath.maps.ports;
        let before = entries::of(known);
        for (index, bits) in words {
            let before = before[index as usize];
            if before | bits != before {
                known.set(index, before | bits, 0).unwrap();
            }
        }
    }

    pub fn select(&mut self, backend: u32) {
        self.datapath
            .maps
            .selection
            .set(SERVICE_ID, backend, 0)
            .unwrap();
    }

    /// Selects a backend for the family that this bench is not about.
    pub fn select_abroad(&mut self, backend: u32) {
        let selection = &mut self.datapath.maps.selection;
        selection.set(FOREIGN_SERVICE_ID, backend, 0).unwrap();
    }

    /// Sends SYNs that a worker refuses to the next one of these; those of the other family likewise.
    pub fn retries_refused(&mut self, servers: &[Server]) {
        let abroad = match self.family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        self.serves(self.family, SERVICE_ID, service_flag::RETRY_REFUSED);
        self.serves(abroad, FOREIGN_SERVICE_ID, service_flag::RETRY_REFUSED);
        self.ranks(servers);
        let foreign: Vec<_> = servers.iter().map(|server| server.abroad()).collect();
        self.ranks_of(FOREIGN_SERVICE_ID, &foreign);
    }

    /// Says whom to try after the selected backend.
    pub fn ranks(&mut self, servers: &[Server]) {
        self.ranks_of(SERVICE_ID, servers);
    }

    fn ranks_of(&mut self, service: u32, servers: &[Server]) {
        let maps = &mut self.datapath.maps;
        let first = first_choice(service, 0);
        for (place, server) in (first..).zip(servers) {
            maps.choices.set(place, server.id, 0).unwrap();
        }
        let ranked = Policy {
            kind: policy::RANKED,
            generation: 0,
            slots: servers.len().try_into().unwrap(),
            fallback: 0,
        };
        maps.policies.set(service, ranked, 0).unwrap();
    }

    /// Leaves new connections to a policy over these places.
    pub fn spreads(&mut self, kind: u32, places: &[u32]) {
        self.fills(1, places);
        self.policy(Policy {
            kind,
            generation: 1,
            slots: places.len().try_into().unwrap(),
            fallback: 0,
        });
        self.select(SPREAD);
    }

    /// Fills one generation of the service's places.
    pub fn fills(&mut self, generation: u32, backends: &[u32]) {
        let choices = &mut self.datapath.maps.choices;
        for (place, backend) in (first_choice(SERVICE_ID, generation)..).zip(backends) {
            choices.set(place, backend, 0).unwrap();
        }
    }

    pub fn policy(&mut self, policy: Policy) {
        let policies = &mut self.datapath.maps.policies;
        policies.set(SERVICE_ID, policy, 0).unwrap();
    }

    /// Gives new connections to this backend while the others are full; 0: to none.
    pub fn overflows_to(&mut self, fallback: u32) {
        let before = self.datapath.maps.policies.get(&SERVICE_ID, 0).unwrap();
        self.policy(Policy { fallback, ..before });
    }

    /// Makes the programs believe that a backend has so many connections open.
    pub fn has_open(&mut self, backend: u32, connections: u64) {
        let active = &mut self.datapath.maps.active;
        active.set(backend, connections, 0).unwrap();
    }

    /// Changes a backend's entry.
    pub fn backend(&mut self, id: u32, change: impl FnOnce(&mut Backend)) {
        let mut backend = self.datapath.maps.backends.get(&id, 0).unwrap();
        change(&mut backend);
        self.datapath.maps.backends.set(id, backend, 0).unwrap();
    }

    pub fn state(&mut self, id: u32, to: u8) {
        self.backend(id, |backend| backend.state = to);
    }

    pub fn goes_down(&mut self, id: u32) {
        self.state(id, state::DOWN);
    }

    pub fn neighbour(&mut self, id: u32, neighbour: Neighbour) {
        self.datapath.maps.neighbours.set(id, neighbour, 0).unwrap();
    }

    /// Sets the link address of an interface, which XDP compares with the frames' destinations; `None`: unknown.
    pub fn own_link(&mut self, interface: u32, address: Option<Mac>) {
        let link = address.map(|address| OwnLink {
            interface,
            reserved: 0,
            address: address.into(),
        });
        let maps = &mut self.datapath.maps;
        let entry = own_link(interface);
        maps.own_links
            .set(entry, link.unwrap_or_default(), 0)
            .unwrap();
    }

    /// Says by which interface alone an address comes; by 0, none.
    pub fn is_at_home(&mut self, station: Station, interface: u32) {
        let address = lan::mapped(station.address(self.family));
        self.datapath
            .maps
            .homes
            .insert(address, interface, 0)
            .unwrap();
    }

    pub fn known_neighbour(&self, id: u32) -> Neighbour {
        self.datapath.maps.neighbours.get(&id, 0).unwrap()
    }

    /// Denies the clients whose addresses begin with so many bits of this one.
    pub fn denies(&mut self, address: IpAddr, bits: u8) {
        let mapped_bits = if address.is_ipv4() { 96 } else { 0 } + u32::from(bits);
        let key = lpm_trie::Key::new(mapped_bits, lan::mapped(address));
        self.datapath.maps.deny.insert(&key, 1, 0).unwrap();
    }

    pub fn allows_all(&mut self) {
        let keys: Vec<_> = self.datapath.maps.deny.keys().map(Result::unwrap).collect();
        for key in keys {
            self.datapath.maps.deny.remove(&key).unwrap();
        }
    }

    /// A call from `client` that has not begun.
    pub fn call(&self, client: Station, port: u16) -> Call {
        let call = Call::new(self.edge, self.family, client, port);
        match self.is_routed {
            true => call.routed(),
            false => call,
        }
    }

    /// Has all workers reached by mode `routed`.
    pub fn routes(&mut self) {
        self.is_routed = true;
        for worker in [lan::WORKER1, lan::WORKER2] {
            self.routes_to(worker);
            self.routes_to(worker.abroad());
        }
    }

    /// Has one worker reached by mode `routed`.
    pub fn routes_to(&mut self, worker: Server) {
        self.backend(worker.id, |backend| backend.mode = mode::ROUTED);
        self.uses([worker.port], true);
    }

    /// The same of datagrams.
    pub fn datagrams(&self, client: Station, port: u16) -> Call {
        self.call(client, port).of_datagrams()
    }

    /// Feeds a frame that arrives from the network on the first interface.
    pub fn receives(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        self.meets(frame, FrameContext::received_on(lan::ETH1))
    }

    /// The same, whatever becomes of it.
    pub fn runs_on(&self, frame: &[u8]) {
        let received = FrameContext::received_on(lan::ETH1);
        self.datapath
            .run_on(self.edge, frame, None, received)
            .unwrap();
    }

    /// The TC program of a hook.
    pub fn program(&self, hook: Hook) -> &ProgramFd {
        self.datapath.classifier(hook).fd().unwrap()
    }

    /// Runs the program that meets `frame` in this context.
    pub fn meets(&self, frame: impl Into<Vec<u8>>, context: FrameContext) -> Outcome {
        let edge = match context.hook {
            Hook::Ingress => self.edge,
            Hook::Egress | Hook::Loopback => Edge::Tc,
        };
        self.datapath.run(edge, frame.into(), context)
    }

    /// Feeds a frame that XDP has left to the TC program behind it.
    pub fn behind_xdp(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        let received = FrameContext::received_on(lan::ETH1);
        self.datapath.run(Edge::Tc, frame.into(), received)
    }

    /// Feeds a frame that the manager itself sends to the network.
    pub fn sends(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        self.meets(
            frame,
            FrameContext {
                hook: Hook::Egress,
                ..FrameContext::received_on(lan::ETH1)
            },
        )
    }

    /// Feeds a frame that the manager sends to itself.
    pub fn loops(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        self.meets(
            frame,
            FrameContext {
                hook: Hook::Loopback,
                ..FrameContext::received_on(lan::LOOPBACK)
            },
        )
    }

    /// Traces packets for so long, and discards earlier events. [`TraceConfig::OFF`] ends it.
    pub fn traces(&mut self, order: TraceConfig, lasting: Duration) {
        let expires_ns = match order {
            TraceConfig::OFF => 0,
            _ => now_ns() + u64::try_from(lasting.as_nanos()).unwrap(),
        };
        let order = TraceConfig {
            expires_ns,
            ..order
        };
        self.datapath.maps.trace.set(0, order, 0).unwrap();
        self.counts_trace(TraceCounts::default());
        self.trace_events();
    }

    pub fn trace_order(&self) -> TraceConfig {
        self.datapath.maps.trace.get(&0, 0).unwrap()
    }

    pub fn trace_counts(&self) -> TraceCounts {
        self.datapath.maps.trace_counts.get(&0, 0).unwrap()
    }

    pub fn counts_trace(&mut self, counts: TraceCounts) {
        let map = &mut self.datapath.maps.trace_counts;
        map.set(0, counts, 0).unwrap();
    }

    /// The trace events since the last call.
    pub fn trace_events(&mut self) -> Vec<TraceEvent> {
        let mut events = Vec::new();
        while let Some(entry) = self.datapath.maps.trace_events.next() {
            assert_eq!(entry.len(), size_of::<TraceEvent>());
            // SAFETY: as long as an event, of which any bytes are one.
            events.push(unsafe { entry.as_ptr().cast::<TraceEvent>().read_unaligned() });
        }
        events
    }

    /// How many handshakes a client went on with although no answer of this backend had passed.
    pub fn unanswered(&self, backend: u32) -> u64 {
        self.tally(backend, |traffic| traffic.unanswered)
    }

    /// One of a backend's counters, since the test began.
    pub fn tally(&self, backend: u32, field: fn(&Traffic) -> u64) -> u64 {
        let of = |counters: &Counters| field(&counters.traffic[backend as usize]);
        of(&self.datapath.counters()) - of(&self.counted_before)
    }

    /// When a backend was last heard, by CLOCK_MONOTONIC.
    pub fn last_answer_ns(&self, backend: u32) -> u64 {
        self.datapath.counters().traffic[backend as usize].last_answer_ns
    }

    /// Connections counted for a backend since the test began.
    pub fn connections(&self, backend: u32) -> u64 {
        let [now, before] = [&self.datapath.counters(), &self.counted_before]
            .map(|counters| counters.traffic[backend as usize].connections);
        now - before
    }

    /// Packets counted under a verdict since the test began.
    pub fn counted(&self, verdict: Verdict) -> u64 {
        let [now, before] = [&self.datapath.counters(), &self.counted_before]
            .map(|counters| counters.verdicts[verdict as usize].packets);
        now - before
    }

    /// The flow tables, without what the next connection may overwrite.
    pub fn entries(&self) -> BTreeMap<Key, Entry> {
        self.datapath
            .maps
            .flows
            .entries()
            .into_iter()
            .filter(|(_, flow)| flow.superseded == 0)
            .collect()
    }

    pub fn keys(&self) -> BTreeSet<Key> {
        self.entries().into_keys().collect()
    }

    pub fn entry(&self, key: Key) -> Option<Entry> {
        self.entries().remove(&key)
    }

    /// The connections of a backend that the programs count as open.
    pub fn active(&self, backend: u32) -> u64 {
        self.datapath.maps.active.get(&backend, 0).unwrap()
    }

    pub fn handshakes(&self) -> Vec<Opening> {
        let places = self.datapath.maps.handshakes.places();
        places.into_iter().map(|(_, handshake)| handshake).collect()
    }

    /// The handshake of a client's tuple.
    pub fn handshake(&self, client: Key) -> Option<Opening> {
        let mut present = self.handshakes().into_iter();
        present.find(|handshake| handshake.client == client)
    }

    /// How long ago a handshake's last packet was.
    pub fn age(&self, handshake: &Opening) -> Duration {
        let now = before_now(Duration::ZERO);
        Duration::from_nanos(now.saturating_sub(handshake.syn_ns))
    }

    /// What the kernel does when the flow table is full.
    pub fn evict(&mut self, key: Key) {
        self.datapath.maps.flows.remove(key);
    }

    /// What a flood does to a handshake.
    pub fn forget(&mut self, client: Key) {
        self.change_handshakes(|handshake| {
            if handshake.client == client {
                handshake.backend = 0;
            }
        });
    }

    fn change_handshakes(&mut self, change: impl Fn(&mut Opening)) {
        let handshakes = &mut self.datapath.maps.handshakes;
        for (place, mut handshake) in handshakes.places() {
            change(&mut handshake);
            handshakes.put(place, &handshake);
        }
    }

    pub fn put(&mut self, key: Key, flow: Entry) {
        self.datapath.maps.flows.put(key, &flow);
    }

    /// Has connections reported, and forgets what was reported before.
    pub fn reports(&mut self) {
        self.switches(|switch| switch.reports = 1);
        self.records();
    }

    fn switches(&mut self, change: impl FnOnce(&mut PeerSwitch)) {
        let map = &mut self.datapath.maps.peer_switch;
        let mut switch = map.get(&0, 0).unwrap();
        change(&mut switch);
        map.set(0, switch, 0).unwrap();
    }

    /// The connections that were reported since last asked.
    pub fn records(&mut self) -> Vec<FlowRecord> {
        let mut records = Vec::new();
        while let Some(entry) = self.datapath.maps.flow_events.next() {
            records.push(FlowRecord {
                // The receiver's own.
                manager_mac: lan::MANAGER.mac.into(),
                ..parse_event(&entry).unwrap()
            });
        }
        records
    }

    /// Has the program take in what a peer reported.
    pub fn admits(&mut self, records: &[FlowRecord]) -> IntakeOutcome {
        self.datapath.intake.admit(records).unwrap()
    }

    /// Lets peers with these link addresses live on the first interface's network, and their NAT address be this
    /// one's.
    pub fn has_peers(&mut self, macs: &[Mac]) {
        let mut links = PeerLinks::default();
        for (link, mac) in links.links.iter_mut().zip(macs) {
            *link = PeerLink {
                mac: (*mac).into(),
                own_mac: lan::MANAGER.mac.into(),
            };
        }
        let maps = &mut self.datapath.maps;
        maps.peers.insert(lan::ETH1, links, 0).unwrap();
        let address = lan::mapped(lan::MANAGER.address(self.family));
        maps.peer_addresses.insert(address, 1, 0).unwrap();
        self.switches(|switch| switch.interfaces = 1);
    }

    /// Removes all peers and lookups of unknown connections.
    fn forgets_peers(&mut self) {
        self.switches(|switch| *switch = PeerSwitch::default());
        self.records();
        let flows = &mut self.datapath.maps.unknown_flows;
        for tuple in flows.keys().map(Result::unwrap).collect::<Vec<_>>() {
            flows.remove(&tuple).unwrap();
        }
    }

    /// Ages the lookups of unknown connections by `duration`.
    pub fn waits_for_peers(&mut self, duration: Duration) {
        let flows = &mut self.datapath.maps.unknown_flows;
        for tuple in flows.keys().map(Result::unwrap).collect::<Vec<_>>() {
            let mut value = flows.get(&tuple, 0).unwrap();
            value.first_ns -= u64::try_from(duration.as_nanos()).unwrap();
            flows.insert(tuple, value, 0).unwrap();
        }
    }

    /// Lets time pass, as far as flows can tell.
    pub fn wait(&mut self, duration: Duration) {
        let age = u64::try_from(duration.as_nanos()).unwrap();
        for (key, mut flow) in self.datapath.maps.flows.entries() {
            flow.last_seen_ticks = flow.last_seen_ticks.wrapping_sub(ticks(age));
            self.put(key, flow);
        }
        self.change_handshakes(|handshake| {
            for time in [&mut handshake.created_ns, &mut handshake.syn_ns] {
                *time = time.saturating_sub(age);
            }
        });
    }

    /// Makes an entry one that carried its last packet that long ago.
    pub fn was_silent(&mut self, key: Key, duration: Duration) {
        let mut flow = self.entry(key).unwrap();
        flow.last_seen_ticks = ticks(before_now(duration));
        self.put(key, flow);
    }

    /// The same for a client's handshake.
    pub fn waited(&mut self, client: Key, duration: Duration) {
        let of_client = self.handshakes().into_iter();
        let of_client = of_client.filter(|handshake| handshake.client == client);
        // Abandoned ones lie about until their places are needed.
        let last = of_client.map(|handshake| handshake.created_ns).max();
        self.change_handshakes(|handshake| {
            if handshake.client == client && Some(handshake.created_ns) == last {
                handshake.syn_ns = before_now(duration);
            }
        });
    }

    /// Sets a worker's link address in the kernel, because no worker answers ARP here.
    pub fn resolves_neighbour(&self, worker: Server) {
        lan::resolve(worker, self.family).unwrap();
        lan::send_by_xdp().unwrap();
    }

    /// Attaches the TC ingress program to the first interface, for frames that really arrive.
    pub fn attach_ingress(&mut self) {
        let link = self.datapath.attach_ingress("eth1").unwrap();
        self._ingress_link = Some(link);
    }

    /// Lets a frame really arrive on the first interface, through XDP and the stack behind it, and
    /// returns every counter that moved.
    pub fn lets_in(&self, frame: &[u8]) -> Vec<Counted> {
        let before = self.datapath.counters();
        self.datapath.lets_in(frame, lan::ETH1).unwrap();
        Counted::between(&before, &self.datapath.counters())
    }
}

/// CLOCK_MONOTONIC, to the nanosecond.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(Duration::from(now).as_nanos()).unwrap()
}

/// Waits until the programs' clock shows another time than `last`, and returns it.
pub fn next_tick(last: u64) -> u64 {
    loop {
        let now = before_now(Duration::ZERO);
        if now != last {
            return now;
        }
        thread::yield_now();
    }
}

/// CLOCK_MONOTONIC, as the programs read it, that long ago.
fn before_now(duration: Duration) -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    let then = Duration::from(now).saturating_sub(duration);
    u64::try_from(then.as_nanos()).unwrap()
}
