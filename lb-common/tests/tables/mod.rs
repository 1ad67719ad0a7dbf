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
        Backend, Flow, FlowKey, Handshake, LAYOUT_VERSION, Mac, NAT_SOURCES, Notes, PORTS_PER_WORD,
        Policy, PortPool, PortWord, ROWS, Service, ServiceKey, Settings,
    },
    steer::{Arrival, Claim, Decision, InsertError, PortState, Step, Tables, Workbench},
};

pub const SECOND: u64 = 1_000_000_000;

/// Of places for handshakes.
const COLUMNS: u32 = 2_048;

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
    pub unanswered: RefCell<BTreeMap<u32, u32>>,
    turn: Cell<u32>,
    pub backends: Vec<Backend>,
    /// Addresses that come by one interface only, or, with 0, by none.
    pub homes: BTreeMap<V4, u32>,
    /// Backends whose link addresses XDP knows.
    pub linked: Vec<u32>,
    /// Addresses of denied clients.
    pub denied: Vec<V6>,
    pub established: FlowTable,
    pub half_open: Vec<RefCell<Handshake>>,
    notes: Vec<RefCell<Notes>>,
    /// Which pool holds the ports towards a worker's endpoint.
    pub endpoints: BTreeMap<ServiceKey, u32>,
    pools: Vec<RefCell<PortPool>>,
    words: Vec<Cell<PortWord>>,
    port_handshakes: Vec<Cell<u32>>,
    pub nat_sources: Vec<V6>,
    workbench: RefCell<Workbench>,
}

/// Decides on one packet.
pub fn steer(memory: &Memory, arrival: &Arrival, key: &FlowKey) -> Decision {
    let mut decision = Decision::NONE;
    lb_common::steer::steer(memory, arrival, key, &mut decision);
    decision
}

/// A hash map as BPF has it: entries stay where they are until they are removed.
#[derive(Clone, Debug)]
pub struct FlowTable {
    slots: Vec<RefCell<Flow>>,
    free: RefCell<VecDeque<usize>>,
    places: RefCell<BTreeMap<FlowKey, Place>>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    slot: usize,
    /// When it was last looked up, by which the kernel chooses whom to evict.
    touched_ns: u64,
}

impl Memory {
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
                half_open_columns: COLUMNS,
                secret: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
                pool_words: WORDS,
                source_words: WORDS,
                nat_sources: [0; 2],
                reserved: 0,
            },
            services: BTreeMap::new(),
            selection: vec![0; 4],
            policies: vec![Policy::default(); 4],
            choices: BTreeMap::new(),
            active: RefCell::default(),
            unanswered: RefCell::default(),
            turn: Cell::new(0),
            backends: vec![Backend::default(); 4],
            homes: BTreeMap::new(),
            linked: Vec::new(),
            denied: Vec::new(),
            established: FlowTable::new(capacity),
            half_open: (0..COLUMNS * ROWS)
                .map(|_| RefCell::new(Handshake::FREE))
                .collect(),
            notes: (0..COLUMNS).map(|_| RefCell::default()).collect(),
            endpoints: BTreeMap::new(),
            pools: vec![RefCell::default(); POOLS as usize],
            words: vec![Cell::default(); (POOLS * WORDS) as usize],
            port_handshakes: vec![Cell::new(0); (POOLS * WORDS * PORTS_PER_WORD) as usize],
            nat_sources: vec![[0; 16]; NAT_SOURCES as usize],
            workbench: RefCell::new(Workbench {
                request: empty(),
                reply: empty(),
                claim: Claim::default(),
            }),
        }
    }

    /// The handshakes under way.
    pub fn handshakes(&self) -> Vec<Handshake> {
        let places = self.half_open.iter().map(|place| *place.borrow());
        places.filter(Handshake::is_whole).collect()
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
            places: RefCell::default(),
        }
    }

    pub fn entries(&self) -> BTreeMap<FlowKey, Flow> {
        let places = self.places.borrow();
        places
            .iter()
            .map(|(key, place)| (*key, *self.slots[place.slot].borrow()))
            .collect()
    }

    /// Entries that nobody looked up since `before_ns`.
    pub fn untouched_since(&self, before_ns: u64) -> Vec<FlowKey> {
        let places = self.places.borrow();
        places
            .iter()
            .filter(|(_, place)| place.touched_ns < before_ns)
            .map(|(key, _)| *key)
            .collect()
    }

    fn find(&self, key: &FlowKey, now_ns: u64) -> Option<RefMut<'_, Flow>> {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(key)?;
        place.touched_ns = now_ns;
        Some(self.slots[place.slot].borrow_mut())
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
        let place = Place {
            slot,
            touched_ns: now_ns,
        };
        self.places.borrow_mut().insert(*key, place);
        Ok(())
    }

    pub fn remove(&self, key: &FlowKey) {
        if let Some(place) = self.places.borrow_mut().remove(key) {
            self.free.borrow_mut().push_back(place.slot);
        }
    }
}

impl Tables for Memory {
    type Address = V4;
    type Entry<'a> = RefMut<'a, Flow>;
    type Notes<'a> = RefMut<'a, Notes>;
    type Place<'a> = RefMut<'a, Handshake>;
    type Workbench<'a> = RefMut<'a, Workbench>;
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

    fn selection(&self, service: u32) -> Option<u32> {
        self.selection.get(service as usize).copied()
    }

    fn policy(&self, service: u32) -> Option<Policy> {
        self.policies.get(service as usize).copied()
    }

    fn choice(&self, index: u32) -> Option<u32> {
        self.choices.get(&index).copied()
    }

    fn turn(&self, _service: u32) -> u32 {
        self.turn.replace(self.turn.get().wrapping_add(1))
    }

    fn random(&self) -> u32 {
        // Different each time, and the same in each run.
        self.turn(0).wrapping_mul(0x9e37_79b1)
    }

    fn repeat<S: Step>(&self, count: u32, steps: &mut S) {
        for number in 0..count {
            if steps.step(self, number) {
                break;
            }
        }
    }

    fn veiled(&self, number: u32) -> u32 {
        number
    }

    fn active(&self, backend: u32) -> u32 {
        self.active.borrow().get(&backend).copied().unwrap_or(0)
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }

    fn home(&self, address: V4) -> Option<u32> {
        self.homes.get(&address).copied()
    }

    fn is_denied(&self, client: &V6) -> bool {
        self.denied.contains(client)
    }

    fn knows_link(&self, backend: u32) -> bool {
        self.linked.contains(&backend)
    }

    fn workbench(&self) -> Option<RefMut<'_, Workbench>> {
        Some(self.workbench.borrow_mut())
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

    fn notes(&self, column: u32) -> Option<RefMut<'_, Notes>> {
        self.notes.get(column as usize).map(RefCell::borrow_mut)
    }

    fn handshake(&self, place: u32) -> Option<RefMut<'_, Handshake>> {
        self.half_open.get(place as usize).map(RefCell::borrow_mut)
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

    fn note_port_handshake(&self, index: u32, place: u32) {
        self.port_handshakes[index as usize].set(place);
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

    fn take_count(&self, request: &mut Flow) -> bool {
        mem::take(&mut request.counted) == 1
    }

    fn give_count(&self, request: &mut Flow) -> bool {
        mem::replace(&mut request.counted, 1) == 0
    }

    fn complete(&self, handshake: &mut Handshake) -> bool {
        mem::replace(&mut handshake.completed, 1) == 0
    }

    fn count_active(&self, backend: u32, open: bool) {
        let mut active = self.active.borrow_mut();
        let count = active.entry(backend).or_default();
        *count = if open { *count + 1 } else { *count - 1 };
    }

    fn count_unanswered(&self, backend: u32) {
        *self.unanswered.borrow_mut().entry(backend).or_default() += 1;
    }
}

fn empty() -> Flow {
    Flow {
        leaves: FlowKey::default(),
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
