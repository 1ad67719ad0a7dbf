//! The lab as one test sees it: what it sets, what it feeds the programs, and what they remember.
//!
//! A [`Bench`] stands in a network namespace without a name, which is gone with its thread. Time
//! passes by ageing the flows, so that no test waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    panic::resume_unwind,
    thread,
    time::Duration,
};

use aya::programs::{tc::SchedClassifierLink, xdp::XdpLink};
use lb_common::{
    headers::PROTOCOL_TCP,
    maps::{
        Backend, Flow, FlowKey, LAYOUT_VERSION, Neighbour, Service, ServiceKey, Settings, mode,
        state,
    },
};
use memlb_tests::require_root;
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};

pub use crate::datapath::{Circumstances, Edge, Hook, Table};
use crate::{
    call::Call,
    datapath::{Counters, Datapath},
    frame::Segment,
    lan::{self, Station},
    outcome::{Counted, Outcome},
};

/// Silence after which a flow is over. Real time between the steps of a test is far shorter.
pub const CLOSING_IDLE: Duration = Duration::from_millis(2_500);
pub const HALF_OPEN_IDLE: Duration = Duration::from_millis(4_500);
pub const ESTABLISHED_IDLE: Duration = Duration::from_millis(8_500);

/// The service's index in `selection`.
const SERVICE_ID: u32 = 3;

pub struct Bench {
    pub edge: Edge,
    datapath: Datapath,
    /// What earlier tests have counted: verified programs are used again.
    counted_before: Counters,
    /// Held, because what drops a link detaches its program.
    _xdp_links: Vec<XdpLink>,
    _ingress_link: Option<SchedClassifierLink>,
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
    let told = thread::scope(|scope| {
        let teller = scope.spawn(|| {
            let mut bench = Bench::new(edge).unwrap();
            story(&mut bench);
            bench.datapath.put_by();
        });
        teller.join()
    });
    if let Err(panic) = told {
        eprintln!("… at the {edge:?} edge");
        resume_unwind(panic);
    }
}

impl Bench {
    /// The lab with worker 1 selected, both workers up, and nothing under way.
    fn new(edge: Edge) -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        lan::make_interfaces()?;
        let mut datapath = Datapath::take()?;
        let xdp_links = match edge {
            Edge::Tc => Vec::new(),
            // A test run may name only an interface whose driver has XDP switched on.
            Edge::Xdp => datapath.attach_xdp(&[lan::ETH1, lan::ETH2])?,
        };
        let mut bench = Self {
            edge,
            counted_before: datapath.counters(),
            datapath,
            _xdp_links: xdp_links,
            _ingress_link: None,
        };
        bench.settings(|_| {});
        bench.begins_anew();
        Ok(bench)
    }

    /// Forgets every flow and every change but the settings.
    pub fn begins_anew(&mut self) {
        for table in [Table::Established, Table::HalfOpen] {
            for key in self.keys(table) {
                self.evict(table, key);
            }
        }
        let address = lan::SERVICE;
        let key = ServiceKey {
            address: address.ip().octets(),
            port: address.port().to_be_bytes(),
            protocol: PROTOCOL_TCP,
            reserved: 0,
        };
        let service = Service { id: SERVICE_ID };
        self.datapath.maps.services.insert(key, service, 0).unwrap();
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
        self.datapath.maps.settings.set(0, settings, 0).unwrap();
    }

    pub fn nat_ports(&mut self, ports: RangeInclusive<u16>) {
        self.settings(|settings| {
            settings.nat_port_first = *ports.start();
            settings.nat_port_count = ports.end() - ports.start() + 1;
        });
    }

    pub fn select(&mut self, backend: u32) {
        self.datapath
            .maps
            .selection
            .set(SERVICE_ID, backend, 0)
            .unwrap();
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

    pub fn known_neighbour(&self, id: u32) -> Neighbour {
        self.datapath.maps.neighbours.get(&id, 0).unwrap()
    }

    /// A call from `client` that has not begun.
    pub fn call(&self, client: Station, port: u16) -> Call {
        Call::new(self.edge, client, port)
    }

    /// Feeds a frame that arrives from the network on the first interface.
    pub fn receives(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        self.meets(frame, Circumstances::received_on(lan::ETH1))
    }

    /// Runs the program that meets `frame` in these circumstances.
    pub fn meets(&self, frame: impl Into<Vec<u8>>, circumstances: Circumstances) -> Outcome {
        let edge = match circumstances.hook {
            Hook::Ingress => self.edge,
            Hook::Egress | Hook::Loopback => Edge::Tc,
        };
        self.datapath.run(edge, frame.into(), circumstances)
    }

    /// Feeds a frame that XDP has left to the TC program behind it.
    pub fn behind_xdp(&self, frame: impl Into<Vec<u8>>) -> Outcome {
        let received = Circumstances::received_on(lan::ETH1);
        self.datapath.run(Edge::Tc, frame.into(), received)
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

    /// Connections counted for a backend since the test began.
    pub fn connections(&self, backend: u32) -> u64 {
        let [now, before] = [&self.datapath.counters(), &self.counted_before]
            .map(|counters| counters.traffic[backend as usize].connections);
        now - before
    }

    pub fn entries(&self, table: Table) -> BTreeMap<FlowKey, Flow> {
        self.datapath
            .table(table)
            .iter()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    pub fn keys(&self, table: Table) -> BTreeSet<FlowKey> {
        self.datapath
            .table(table)
            .keys()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    pub fn entry(&self, table: Table, key: FlowKey) -> Option<Flow> {
        self.datapath.table(table).get(&key, 0).ok()
    }

    pub fn put(&mut self, table: Table, key: FlowKey, flow: Flow) {
        self.datapath.table_mut(table).insert(key, flow, 0).unwrap();
    }

    /// What the kernel does when a table is full.
    pub fn evict(&mut self, table: Table, key: FlowKey) {
        self.datapath.table_mut(table).remove(&key).unwrap();
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
                    *time = time.saturating_sub(age);
                }
                self.put(table, key, flow);
            }
        }
    }

    /// Makes an entry one that carried its last packet that long ago.
    pub fn was_silent(&mut self, table: Table, key: FlowKey, duration: Duration) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
        let last_seen = Duration::from(now).saturating_sub(duration);
        let mut flow = self.entry(table, key).unwrap();
        flow.last_seen_ns = u64::try_from(last_seen.as_nanos()).unwrap();
        flow.twin_seen_ns = flow.last_seen_ns;
        self.put(table, key, flow);
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

impl From<&Segment> for Vec<u8> {
    fn from(segment: &Segment) -> Self {
        segment.frame()
    }
}
