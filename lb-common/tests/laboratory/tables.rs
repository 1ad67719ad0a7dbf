//! The maps in memory. An entry that is taken twice at a time, which in the kernel would alias,
//! panics.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::{BTreeMap, VecDeque},
    mem,
};

use lb_common::{
    address::{V4, V6},
    maps::{
        Admission, Backend, Flow, FlowEvent, FlowKey, FlowRecord, Handshake, LAYOUT_VERSION, Mac,
        NAT_SOURCES, OwnerTags, PORTS_PER_WORD, PeerLinks, PeerSwitch, Policy, PortPool, PortWord,
        SLOTS_PER_BUCKET, Service, ServiceKey, ServiceRefusals, Settings, Traffic, UnknownFlow,
    },
    steer::{
        ChoiceTables, Decision, FlowScratch, InsertError, PacketMeta, PendingConnection, PortState,
        Step, Tables,
    },
};

pub const SECOND: u64 = 1_000_000_000;

/// Of slots for handshakes.
const BUCKETS: u32 = 2_048;

/// Of the ports towards workers.
const POOLS: u32 = 4;
const WORDS: u32 = 448;

/// What the datapath keeps, with a clock that the test moves.
#[derive(Clone, Debug)]
pub struct Memory {
    pub now_ns: Cell<u64>,
    pub settings: Settings,
    pub services: BTreeMap<ServiceKey, Service>,
    pub selection: Vec<u32>,
    pub policies: Vec<Policy>,
    pub choices: BTreeMap<u32, u32>,
    pub active: RefCell<BTreeMap<u32, u32>>,
    pub traffic: RefCell<BTreeMap<u32, Traffic>>,
    pub refusals: RefCell<BTreeMap<u32, ServiceRefusals>>,
    /// Whether SYNs can be sent again.
    pub keeps_syns: bool,
    /// Connections of each client.
    pub clients: RefCell<BTreeMap<V6, u64>>,
    next_round_robin: Cell<u32>,
    pub backends: Vec<Backend>,
    /// Addresses that come by one interface only, or, with 0, by none.
    pub homes: BTreeMap<V4, u32>,
    /// Backends whose link addresses XDP knows.
    pub linked: Vec<u32>,
    /// Addresses of denied clients.
    pub denied: Vec<V6>,
    pub established: FlowTable,
    pub half_open: Vec<RefCell<Handshake>>,
    owner_tags: Vec<RefCell<OwnerTags>>,
    /// Which pool holds the ports towards a worker's endpoint.
    pub endpoints: BTreeMap<ServiceKey, u32>,
    pools: Vec<RefCell<PortPool>>,
    words: Vec<Cell<PortWord>>,
    port_handshakes: Vec<Cell<u32>>,
    pub nat_sources: Vec<V6>,
    pub switch: PeerSwitch,
    /// By interface.
    pub peers: BTreeMap<u32, PeerLinks>,
    pub peer_addresses: Vec<V6>,
    /// The records for peers.
    pub records: RefCell<Vec<FlowRecord>>,
    pub unknown_flows: RefCell<BTreeMap<FlowKey<V6>, UnknownFlow>>,
    /// The unknown clients reported to the manager.
    pub reported: RefCell<Vec<FlowRecord>>,
    flow_scratch: RefCell<FlowScratch>,
}

/// Takes in a record of a peer.
pub fn admit(memory: &Memory, record: &FlowRecord) -> Admission {
    let mut scratch = *memory.flow_scratch.borrow();
    lb_common::steer::admit(memory, record, &mut scratch)
}

/// Decides on one packet.
pub fn steer(memory: &Memory, packet: &PacketMeta, key: &FlowKey) -> Decision {
    let mut decision = Decision::NONE;
    lb_common::steer::steer(memory, packet, key, &mut decision);
    decision
}

/// A hash map as BPF has it: entries stay where they are until they are removed.
#[derive(Clone, Debug)]
pub struct FlowTable {
    slots: Vec<RefCell<Flow>>,
    free: RefCell<VecDeque<usize>>,
    positions: RefCell<BTreeMap<FlowKey, Position>>,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    slot: usize,
    /// When it was last looked up; the kernel evicts by this time.
    touched_ns: u64,
}

impl Memory {
    /// The counters of a backend.
    pub fn counted(&self, backend: u32) -> Traffic {
        let traffic = self.traffic.borrow();
        traffic.get(&backend).copied().unwrap_or_default()
    }

    pub fn new(capacity: usize) -> Self {
        Self {
            now_ns: Cell::new(1_000 * SECOND),
            settings: Settings {
                layout_version: LAYOUT_VERSION,
                nat_port_first: 4_096,
                nat_port_count: 28_672,
                established_idle_ns: 3_600 * SECOND,
                datagram_idle_ns: 60 * SECOND,
                closing_idle_ns: 10 * SECOND,
                half_open_idle_ns: 30 * SECOND,
                accept_local_before: 0,
                half_open_buckets: BUCKETS,
                secret: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
                pool_words: WORDS,
                source_words: WORDS,
                nat_sources: [0; 2],
                per_client: 0,
                direct_flows: u32::MAX,
                reverse_sync_shift: 0,
            },
            services: BTreeMap::new(),
            selection: vec![0; 4],
            policies: vec![Policy::default(); 4],
            choices: BTreeMap::new(),
            active: RefCell::default(),
            traffic: RefCell::default(),
            refusals: RefCell::default(),
            keeps_syns: true,
            clients: RefCell::default(),
            next_round_robin: Cell::new(0),
            backends: vec![Backend::default(); 4],
            homes: BTreeMap::new(),
            linked: Vec::new(),
            denied: Vec::new(),
            established: FlowTable::new(capacity),
            half_open: (0..BUCKETS * SLOTS_PER_BUCKET)
                .map(|_| RefCell::new(Handshake::FREE))
                .collect(),
            owner_tags: (0..BUCKETS).map(|_| RefCell::default()).collect(),
            endpoints: BTreeMap::new(),
            pools: vec![RefCell::default(); POOLS as usize],
            words: vec![Cell::default(); (POOLS * WORDS) as usize],
            port_handshakes: vec![Cell::new(0); (POOLS * WORDS * PORTS_PER_WORD) as usize],
            nat_sources: vec![[0; 16]; NAT_SOURCES as usize],
            switch: PeerSwitch::default(),
            peers: BTreeMap::new(),
            peer_addresses: Vec::new(),
            records: RefCell::default(),
            unknown_flows: RefCell::default(),
            reported: RefCell::default(),
            flow_scratch: RefCell::new(FlowScratch {
                request: empty(),
                reply: empty(),
                pending: PendingConnection::default(),
                record: FlowRecord::NONE,
            }),
        }
    }

    /// Sequence number of the RST to the worker of the evicted handshake.
    pub fn reset_sequence(&self) -> u32 {
        self.flow_scratch.borrow().pending.reset_sequence
    }

    /// The handshakes under way.
    pub fn handshakes(&self) -> Vec<Handshake> {
        let positions = self.half_open.iter().map(|slot| *slot.borrow());
        positions.filter(Handshake::is_valid).collect()
    }

    fn change_ports(&self, index: u32, state: PortState, change: impl Fn(u64) -> u64) -> u64 {
        let mut word = self.words[index as usize].get();
        let bits = match state {
            PortState::Used => &mut word.used,
            PortState::Waiting => &mut word.waiting,
        };
        let before = mem::replace(bits, change(*bits));
        self.words[index as usize].set(word);
        before
    }

    pub fn wait(&self, nanoseconds: u64) {
        self.now_ns.set(self.now_ns.get() + nanoseconds);
    }
}

impl FlowTable {
    fn new(capacity: usize) -> Self {
        Self {
            slots: (0..capacity).map(|_| RefCell::new(empty())).collect(),
            free: RefCell::new((0..capacity).collect()),
            positions: RefCell::default(),
        }
    }

    pub fn entries(&self) -> BTreeMap<FlowKey, Flow> {
        let positions = self.positions.borrow();
        positions
            .iter()
            .map(|(key, position)| (*key, *self.slots[position.slot].borrow()))
            .collect()
    }

    /// Entries without a look-up since `before_ns`.
    pub fn untouched_since(&self, before_ns: u64) -> Vec<FlowKey> {
        let positions = self.positions.borrow();
        positions
            .iter()
            .filter(|(_, position)| position.touched_ns < before_ns)
            .map(|(key, _)| *key)
            .collect()
    }

    fn find(&self, key: &FlowKey, now_ns: u64) -> Option<RefMut<'_, Flow>> {
        let mut positions = self.positions.borrow_mut();
        let position = positions.get_mut(key)?;
        position.touched_ns = now_ns;
        Some(self.slots[position.slot].borrow_mut())
    }

    fn put(&self, key: &FlowKey, flow: &Flow, now_ns: u64) -> Result<(), InsertError> {
        if let Some(mut present) = self.find(key, now_ns) {
            *present = *flow;
            return Ok(());
        }
        let slot = self
            .free
            .borrow_mut()
            .pop_front()
            .ok_or(InsertError::Full)?;
        *self.slots[slot].borrow_mut() = *flow;
        let position = Position {
            slot,
            touched_ns: now_ns,
        };
        self.positions.borrow_mut().insert(*key, position);
        Ok(())
    }

    pub fn remove(&self, key: &FlowKey) {
        if let Some(position) = self.positions.borrow_mut().remove(key) {
            self.free.borrow_mut().push_back(position.slot);
        }
    }
}

impl ChoiceTables for Memory {
    fn selection(&self, service: u32) -> Option<u32> {
        self.selection.get(service as usize).copied()
    }

    fn policy(&self, service: u32) -> Option<Policy> {
        self.policies.get(service as usize).copied()
    }

    fn choice(&self, index: u32) -> Option<u32> {
        self.choices.get(&index).copied()
    }

    fn next_round_robin(&self, _service: u32) -> u32 {
        self.next_round_robin
            .replace(self.next_round_robin.get().wrapping_add(1))
    }

    fn random(&self) -> u32 {
        // Different each time, and the same in each run.
        self.next_round_robin(0).wrapping_mul(0x9e37_79b1)
    }

    fn repeat<S: Step<Self>>(&self, count: u32, steps: &mut S) {
        for number in 0..count {
            if steps.step(self, number) {
                break;
            }
        }
    }

    fn barrier_var(&self, number: u32) -> u32 {
        number
    }

    fn active_connections(&self, backend: u32) -> u32 {
        self.active.borrow().get(&backend).copied().unwrap_or(0)
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }
}

impl Tables for Memory {
    type Address = V4;
    type Entry<'a> = RefMut<'a, Flow>;
    type OwnerTags<'a> = RefMut<'a, OwnerTags>;
    type Slot<'a> = RefMut<'a, Handshake>;
    type FlowScratch<'a> = RefMut<'a, FlowScratch>;
    type Pool<'a> = RefMut<'a, PortPool>;

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn expected_interface(&self, address: V4) -> Option<u32> {
        self.homes.get(&address).copied()
    }

    fn is_denied(&self, client: &V6) -> bool {
        self.denied.contains(client)
    }

    fn has_neighbour(&self, backend: u32) -> bool {
        self.linked.contains(&backend)
    }

    fn flow_scratch(&self) -> Option<RefMut<'_, FlowScratch>> {
        Some(self.flow_scratch.borrow_mut())
    }

    fn established(&self, key: &FlowKey) -> Option<RefMut<'_, Flow>> {
        self.established.find(key, self.now_ns())
    }

    fn add_established(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        if self.established.find(key, self.now_ns()).is_some() {
            return Err(InsertError::Exists);
        }
        self.established.put(key, flow, self.now_ns())
    }

    fn publish(&self, flow: &mut Flow) {
        flow.superseded = 0;
    }

    fn remove_established(&self, key: &FlowKey) {
        self.established.remove(key);
    }

    fn owner_tags(&self, bucket: u32) -> Option<RefMut<'_, OwnerTags>> {
        self.owner_tags
            .get(bucket as usize)
            .map(RefCell::borrow_mut)
    }

    fn clear_owner_tag(&self, bucket: u32, index: u32, bits: u32) {
        if let Some(mut owner_tags) = self.owner_tags(bucket) {
            owner_tags[index as usize] &= !bits;
        }
    }

    fn keeps_syn(&self, _slot: u32, _client: &FlowKey, _sequence: u32) -> bool {
        self.keeps_syns
    }

    fn handshake(&self, slot: u32) -> Option<RefMut<'_, Handshake>> {
        self.half_open.get(slot as usize).map(RefCell::borrow_mut)
    }

    fn pool_of(&self, endpoint: &ServiceKey) -> Option<u32> {
        self.endpoints.get(endpoint).copied()
    }

    fn pool(&self, number: u32) -> Option<RefMut<'_, PortPool>> {
        self.pools.get(number as usize).map(RefCell::borrow_mut)
    }

    fn port_word(&self, index: u32) -> Option<PortWord> {
        self.words.get(index as usize).map(Cell::get)
    }

    fn set_ports(&self, index: u32, state: PortState, bits: u64) -> u64 {
        self.change_ports(index, state, |before| before | bits)
    }

    fn clear_ports(&self, index: u32, state: PortState, bits: u64) -> u64 {
        self.change_ports(index, state, |before| before & !bits)
    }

    fn port_handshake(&self, index: u32) -> Option<u32> {
        self.port_handshakes.get(index as usize).map(Cell::get)
    }

    fn set_port_handshake(&self, index: u32, position: u32) {
        self.port_handshakes[index as usize].set(position);
    }

    fn nat_source(&self, index: u32) -> Option<V6> {
        self.nat_sources.get(index as usize).copied()
    }

    fn set_ended(&self, flow: &mut Flow, bits: u8) {
        flow.ended |= bits;
    }

    fn clear_ended(&self, flow: &mut Flow, bits: u8) {
        flow.ended &= !bits;
    }

    fn clear_counted(&self, request: &mut Flow) -> bool {
        mem::take(&mut request.counted) == 1
    }

    fn set_counted(&self, request: &mut Flow) -> bool {
        mem::replace(&mut request.counted, 1) == 0
    }

    fn mark_completed(&self, handshake: &mut Handshake) -> bool {
        mem::replace(&mut handshake.completed, 1) == 0
    }

    fn count_active(&self, backend: u32, open: bool) {
        let mut active = self.active.borrow_mut();
        let count = active.entry(backend).or_default();
        *count = if open { *count + 1 } else { *count - 1 };
    }

    fn client_connections(&self, client: &V6) -> u64 {
        self.clients.borrow().get(client).copied().unwrap_or(0)
    }

    fn count_client(&self, client: &V6, begins: bool) {
        let mut clients = self.clients.borrow_mut();
        let count = clients.entry(*client).or_default();
        *count = if begins { *count + 1 } else { *count - 1 };
    }

    fn peer_switch(&self) -> PeerSwitch {
        self.switch
    }

    fn peers(&self, interface: u32) -> Option<&PeerLinks> {
        self.peers.get(&interface)
    }

    fn is_peer_address(&self, address: &V6) -> bool {
        self.peer_addresses.contains(address)
    }

    fn report(&self, fill: impl FnOnce(&mut FlowEvent)) {
        let mut event = FlowEvent::NONE;
        fill(&mut event);
        self.records.borrow_mut().push(event.record());
    }

    fn unknown_flow(&self, tuple: &FlowKey<V6>) -> Option<UnknownFlow> {
        self.unknown_flows.borrow().get(tuple).copied()
    }

    fn set_unknown_flow(&self, tuple: &FlowKey<V6>, flow: &UnknownFlow) {
        self.unknown_flows.borrow_mut().insert(*tuple, *flow);
    }

    fn report_unknown(&self, record: &FlowRecord) -> bool {
        self.reported.borrow_mut().push(*record);
        true
    }

    fn count_traffic(&self, backend: u32, change: impl FnOnce(&mut Traffic)) {
        change(self.traffic.borrow_mut().entry(backend).or_default());
    }

    fn count_refusal(&self, service: u32, change: impl FnOnce(&mut ServiceRefusals)) {
        change(self.refusals.borrow_mut().entry(service).or_default());
    }
}

fn empty() -> Flow {
    Flow {
        translated: FlowKey::default(),
        client_mac: Mac::default(),
        manager_mac: Mac::default(),
        backend: 0,
        client_interface: 0,
        direction: 0,
        ended: 0,
        counted: 0,
        superseded: 0,
        created_ticks: 0,
        last_seen_ticks: 0,
        sequence: 0,
        bytes: 0,
    }
}
