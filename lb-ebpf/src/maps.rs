//! The maps, and the implementation of [`Tables`] over them.

use core::{arch::asm, ffi::c_void, hint::cold_path, marker::PhantomData, mem};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_loop},
    macros::btf_map,
};
use lb_common::{
    address::{V4, V6},
    for_stages,
    maps::{
        Backend, COUNTED_CLIENTS, Counter, DEFAULT_BACKENDS, DEFAULT_FLOW_ENTRIES,
        DEFAULT_HANDSHAKES, DEFAULT_SERVICES, DEFAULT_SOURCE_WORDS, DENIED_PREFIXES, Flow,
        FlowEvent, FlowKey, FlowRecord, Handshake, Mac, NAT_SOURCES, NO_ID, Neighbour, OWN_LINKS,
        OwnLink, OwnerTags, PORT_WORDS, PORTS_PER_WORD, PeerLinks, PeerSwitch, Policy, PortPair,
        PortPool, PortWord, SERVICE_CHOICES, SLOTS_PER_BUCKET, SOURCE_FILTER_ENTRIES, Service,
        ServiceKey, ServiceRefusals, Settings, TraceEvent, Traffic, UnknownFlow, own_link,
        port_bit, port_word, ticks,
    },
    packet::{IpAddress, Syn},
    steer::{
        ChoiceTables, Decision, FlowEnd, FlowScratch, Hook, InsertError, PacketMeta, PortState,
        Step, Tables, TimeWait, Tried, Tuple,
        stages::{AddressOf, FlowOf, KeyOf},
    },
    verdict::Verdict,
};

use crate::{packet_scratch::PacketScratch, peer};

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceKey, Service, { DEFAULT_SERVICES as usize }> = HashMap::new();

#[btf_map(name = "selection")]
static SELECTION: Array<u32, { DEFAULT_SERVICES as usize }> = Array::new();

#[btf_map(name = "policies")]
static POLICIES: Array<Policy, { DEFAULT_SERVICES as usize }> = Array::new();

#[btf_map(name = "choices")]
static CHOICES: Array<u32, { (DEFAULT_SERVICES * SERVICE_CHOICES) as usize }> = Array::new();

/// Round-robin counters of each processor.
#[btf_map(name = "round_robin")]
static ROUND_ROBIN: PerCpuArray<u32, { DEFAULT_SERVICES as usize }> = PerCpuArray::new();

#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, { DEFAULT_BACKENDS as usize }> = Array::new();

#[btf_map(name = "neighbours")]
static NEIGHBOURS: Array<Neighbour, { DEFAULT_BACKENDS as usize }> = Array::new();

#[btf_map(name = "own_links")]
static LINKS: Array<OwnLink, { OWN_LINKS as usize }> = Array::new();

/// Source addresses and the only interface on which packets from them may arrive; 0: none.
#[btf_map(name = "source_filter")]
static SOURCE_FILTER: HashMap<V6, u32, { SOURCE_FILTER_ENTRIES as usize }> = HashMap::new();

#[btf_map(name = "flows")]
static FLOWS: LruHashMap<FlowKey, Flow, { DEFAULT_FLOW_ENTRIES as usize }> = LruHashMap::new();

#[btf_map(name = "flows6")]
static FLOWS6: LruHashMap<FlowKey<V6>, Flow<V6>, { DEFAULT_FLOW_ENTRIES as usize }> =
    LruHashMap::new();

#[btf_map(name = "half_open")]
static HALF_OPEN: Array<Handshake, { DEFAULT_HANDSHAKES as usize }> = Array::new();

#[btf_map(name = "half_open6")]
static HALF_OPEN6: Array<Handshake<V6>, { DEFAULT_HANDSHAKES as usize }> = Array::new();

#[btf_map(name = "owner_tags")]
static OWNER_TAGS: Array<OwnerTags, { (DEFAULT_HANDSHAKES / SLOTS_PER_BUCKET) as usize }> =
    Array::new();

#[btf_map(name = "owner_tags6")]
static OWNER_TAGS6: Array<OwnerTags, { (DEFAULT_HANDSHAKES / SLOTS_PER_BUCKET) as usize }> =
    Array::new();

/// The SYNs of handshakes that may be sent again, by slot.
#[btf_map(name = "syns")]
static SYNS: Array<Syn, { DEFAULT_HANDSHAKES as usize }> = Array::new();

#[btf_map(name = "syns6")]
static SYNS6: Array<Syn, { DEFAULT_HANDSHAKES as usize }> = Array::new();

/// Established connections that have not ended, by backend.
#[btf_map(name = "active")]
static ACTIVE: Array<u64, { DEFAULT_BACKENDS as usize }> = Array::new();

/// Connections of `active` whose entries the kernel has evicted, as the manager counts them.
#[btf_map(name = "evicted")]
static EVICTED: Array<u64, { DEFAULT_BACKENDS as usize }> = Array::new();

/// Bits of an address in `deny`.
const CLIENT_BITS: u32 = 8 * size_of::<V6>() as u32;

/// Denied client prefixes of both families.
#[btf_map(name = "deny")]
static DENY: LpmTrie<V6, u32, { DENIED_PREFIXES as usize }> = LpmTrie::new();

/// How many connections each client has, by [`prefix`](lb_common::address::Address::prefix), where they are limited.
#[btf_map(name = "clients")]
static CLIENTS: LruHashMap<V6, u64, { COUNTED_CLIENTS as usize }> = LruHashMap::new();

#[btf_map(name = "ports")]
static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();

/// The pool of ports towards an endpoint of a worker.
#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<ServiceKey, u32, { DEFAULT_BACKENDS as usize }> = HashMap::new();

#[btf_map(name = "port_pools")]
static PORT_POOLS: Array<PortPool, { DEFAULT_BACKENDS as usize }> = Array::new();

const DEFAULT_POOL_WORDS: u32 = DEFAULT_BACKENDS * DEFAULT_SOURCE_WORDS;

#[btf_map(name = "port_words")]
static PORT_WORD_TABLE: Array<PortWord, { DEFAULT_POOL_WORDS as usize }> = Array::new();

/// The slot, plus 1, of the last handshake from each port of a pool.
#[btf_map(name = "port_handshakes")]
static PORT_HANDSHAKES: Array<PortPair, { (DEFAULT_POOL_WORDS * PORTS_PER_WORD / 2) as usize }> =
    Array::new();

#[btf_map(name = "nat_sources")]
static NAT_ADDRESSES: Array<V6, { NAT_SOURCES as usize }> = Array::new();

#[btf_map(name = "verdicts")]
static VERDICTS: PerCpuArray<Counter, { Verdict::COUNT as usize }> = PerCpuArray::new();

#[btf_map(name = "traffic")]
static TRAFFIC: PerCpuArray<Traffic, { DEFAULT_BACKENDS as usize }> = PerCpuArray::new();

#[btf_map(name = "service_refusals")]
static SERVICE_REFUSALS: PerCpuArray<ServiceRefusals, { DEFAULT_SERVICES as usize }> =
    PerCpuArray::new();

#[btf_map(name = "flow_scratch")]
static FLOW_SCRATCH: PerCpuArray<FlowScratch, 1> = PerCpuArray::new();

#[btf_map(name = "flow_scratch6")]
static FLOW_SCRATCH6: PerCpuArray<FlowScratch<V6>, 1> = PerCpuArray::new();

const EEXIST: i32 = 17;

#[btf_map(name = "packet_scratch")]
static PACKET_SCRATCH: PerCpuArray<PacketScratch<V4>, 1> = PerCpuArray::new();

#[btf_map(name = "packet_scratch6")]
static PACKET_SCRATCH6: PerCpuArray<PacketScratch<V6>, 1> = PerCpuArray::new();

/// The time in ticks as last read, and above it the lower half of the kernel's jiffies at that time. The programs read
/// the clock once a jiffy: each reading costs a packet more than a look-up in an array.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.clock")]
static mut CLOCK: u64 = 0;

/// An address family with its maps.
pub trait Family: IpAddress {
    fn packet_scratch() -> Option<&'static mut PacketScratch<Self>>;
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>, { DEFAULT_FLOW_ENTRIES as usize }>;
    fn half_open() -> &'static Array<Handshake<Self>, { DEFAULT_HANDSHAKES as usize }>;
    fn owner_tags()
    -> &'static Array<OwnerTags, { (DEFAULT_HANDSHAKES / SLOTS_PER_BUCKET) as usize }>;
    fn flow_scratch() -> &'static PerCpuArray<FlowScratch<Self>, 1>;
    fn syns() -> &'static Array<Syn, { DEFAULT_HANDSHAKES as usize }>;
}

macro_rules! families {
    ($($address:ty: $scratch:ident $flows:ident $half_open:ident $owner_tags:ident $flow_scratch:ident $syns:ident;)+) => {
        $(
            impl Family for $address {
                #[inline(always)]
                fn packet_scratch() -> Option<&'static mut PacketScratch<Self>> {
                    // SAFETY: a per-CPU slot. Each CPU handles one packet at a time, because every hook runs with
                    // bottom halves off.
                    $scratch.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
                }

                #[inline(always)]
                fn flows()
                -> &'static LruHashMap<FlowKey<Self>, Flow<Self>, { DEFAULT_FLOW_ENTRIES as usize }>
                {
                    &$flows
                }

                #[inline(always)]
                fn half_open() -> &'static Array<Handshake<Self>, { DEFAULT_HANDSHAKES as usize }> {
                    &$half_open
                }

                #[inline(always)]
                fn owner_tags() -> &'static Array<OwnerTags, { (DEFAULT_HANDSHAKES / SLOTS_PER_BUCKET) as usize }> {
                    &$owner_tags
                }

                #[inline(always)]
                fn flow_scratch() -> &'static PerCpuArray<FlowScratch<Self>, 1> {
                    &$flow_scratch
                }

                #[inline(always)]
                fn syns() -> &'static Array<Syn, { DEFAULT_HANDSHAKES as usize }> {
                    &$syns
                }
            }
        )+
    };
}

families! {
    V4: PACKET_SCRATCH FLOWS HALF_OPEN OWNER_TAGS FLOW_SCRATCH SYNS;
    V6: PACKET_SCRATCH6 FLOWS6 HALF_OPEN6 OWNER_TAGS6 FLOW_SCRATCH6 SYNS6;
}

/// The maps of one address family.
pub struct Maps<A>(PhantomData<A>);

impl<A: Family> ChoiceTables for Maps<A> {
    #[inline(always)]
    fn selection(&self, service: u32) -> Option<u32> {
        SELECTION.get(service).copied()
    }

    #[inline(always)]
    fn policy(&self, service: u32) -> Option<Policy> {
        POLICIES.get(service).copied()
    }

    #[inline(always)]
    fn choice(&self, index: u32) -> Option<u32> {
        CHOICES.get(index).copied()
    }

    #[inline(always)]
    fn next_round_robin(&self, service: u32) -> u32 {
        let Some(next_round_robin) = ROUND_ROBIN.get_ptr_mut(service) else {
            return 0;
        };
        // SAFETY: a per-CPU slot, see `flow_scratch`.
        unsafe {
            let before = *next_round_robin;
            *next_round_robin = before.wrapping_add(1);
            before
        }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes no argument.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn repeat<S: Step<Self>>(&self, count: u32, steps: &mut S) {
        // SAFETY: the callback gets a pointer to `steps`, which outlives the call. Fails only for more than 8 million
        // steps. Linux 5.17, e6f2dd0f8067.
        unsafe {
            bpf_loop(
                count,
                step::<A, S> as *mut c_void,
                (&raw mut *steps).cast(),
                0,
            )
        };
    }

    #[inline(always)]
    fn barrier_var(&self, number: u32) -> u32 {
        let Some(settings) = SETTINGS.get_ptr(0) else {
            return number;
        };
        // SAFETY: array slots live as long as the map.
        let read = || unsafe { (&raw const (*settings).layout_version).read_volatile() };
        // The field never changes, but for the verifier each read returns an unknown number.
        number ^ read() ^ read()
    }

    #[inline(always)]
    fn active_connections(&self, backend: u32) -> u32 {
        let active = ACTIVE.get(backend).map_or(0, |active| *active);
        let evicted = EVICTED.get(backend).map_or(0, |evicted| *evicted);
        active.saturating_sub(evicted) as u32
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        BACKENDS.get(id)
    }
}

/// The methods of [`Tables`] that call the global functions of the stages.
macro_rules! stage_calls {
    ($($name:ident(
        $($scalar:ident: $scalar_type:ty),*; $($shared:ident: $target:ty),* $(; $mutable:ident: $changed:ty)?
    ) -> $result:ty;)+) => {
        $(
            #[inline(always)]
            fn $name(&self, $($scalar: $scalar_type,)* $($shared: &$target,)* $($mutable: &mut $changed)?) -> $result {
                $(let $shared: *const $target = $shared;)*
                $(let $mutable: *mut $changed = $mutable;)?
                // SAFETY: references, cast to the types that they have.
                unsafe {
                    if A::IS_V4 {
                        Maps::<V4>::$name($($scalar,)* $($shared.cast(),)* $($mutable.cast())?)
                    } else {
                        Maps::<V6>::$name($($scalar,)* $($shared.cast(),)* $($mutable.cast())?)
                    }
                }
            }
        )+
    };
}

impl<A: Family> Tables for Maps<A> {
    type Address = A;
    type Entry<'a> = &'a mut Flow<A>;
    type OwnerTags<'a> = &'a mut OwnerTags;
    type Slot<'a> = &'a mut Handshake<A>;
    type FlowScratch<'a> = &'a mut FlowScratch<A>;
    type Pool<'a> = &'a mut PortPool;

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: the helper takes no argument. Linux 5.11, d05512618056.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn now_ticks(&self) -> u32 {
        // SAFETY: the helper takes no argument, and is two instructions of the program. Linux 5.6, 5576b991e9c1.
        let jiffies = unsafe { bpf_jiffies64() } as u32;
        let clock = &raw mut CLOCK;
        // SAFETY: an aligned word, read and written whole.
        let known = unsafe { clock.read_volatile() };
        if (known >> 32) as u32 == jiffies {
            return known as u32;
        }
        cold_path();
        let now = ticks(self.now_ns());
        // SAFETY: as above.
        unsafe { clock.write_volatile(u64::from(jiffies) << 32 | u64::from(now)) };
        now
    }

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: copied at once; this program never changes the map.
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn expected_interface(&self, address: A) -> Option<u32> {
        // SAFETY: copied at once; this program never changes the map.
        unsafe { SOURCE_FILTER.get(address.mapped()) }.copied()
    }

    #[inline(always)]
    fn is_denied(&self, client: &V6) -> bool {
        DENY.get(&Key::new(CLIENT_BITS, *client)).is_some()
    }

    #[inline(always)]
    fn has_neighbour(&self, backend: u32) -> bool {
        self.neighbour(backend).is_some()
    }

    #[inline(always)]
    fn flow_scratch(&self) -> Option<&mut FlowScratch<A>> {
        let flow_scratch = A::flow_scratch().get_ptr_mut(0)?;
        // SAFETY: a per-CPU slot. Each CPU handles one packet at a time, because every hook runs with bottom halves
        // off.
        Some(unsafe { &mut *flow_scratch })
    }

    #[inline(always)]
    fn established(&self, key: &FlowKey<A>) -> Option<&mut Flow<A>> {
        let flow = A::flows().get_ptr_mut(key)?;
        // SAFETY: the element stays readable and writable while the program runs (RCU). After a concurrent eviction,
        // writes may go to another flow's accounting.
        Some(unsafe { &mut *flow })
    }

    #[inline(always)]
    fn add_established(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), InsertError> {
        A::flows()
            .insert(key, flow, BPF_NOEXIST.into())
            .map_err(|errno| {
                if errno == -EEXIST {
                    InsertError::Exists
                } else {
                    InsertError::Full
                }
            })
    }

    #[inline(always)]
    fn publish(&self, flow: &mut Flow<A>) {
        const { assert!(mem::offset_of!(Flow<A>, direction).is_multiple_of(8)) };
        // SAFETY: the word begins with the direction and lies within the entry.
        unsafe { atomic_and(&raw mut flow.direction, NOT_SUPERSEDED) };
    }

    #[inline(always)]
    fn remove_established(&self, key: &FlowKey<A>) {
        // The entry may already be gone.
        _ = A::flows().remove(key);
    }

    #[inline(always)]
    fn owner_tags(&self, bucket: u32) -> Option<&mut OwnerTags> {
        let owner_tags = A::owner_tags().get_ptr_mut(bucket)?;
        // SAFETY: array elements live as long as the map. A wrong tag after concurrent writes only hides a handshake.
        Some(unsafe { &mut *owner_tags })
    }

    #[inline(always)]
    fn clear_owner_tag(&self, bucket: u32, index: u32, bits: u32) {
        if let Some(owner_tags) = A::owner_tags().get_ptr_mut(bucket) {
            // Two tags to a word, the one of the even index in its low half.
            let (word, half) = (index as usize % 16 / 2, index % 2 * 32);
            // SAFETY: an aligned word of a map's value.
            unsafe {
                let word = owner_tags.cast::<u64>().add(word);
                atomic_and(word.cast(), !(u64::from(bits) << half));
            }
        }
    }

    #[inline(always)]
    fn keeps_syn(&self, slot: u32, client: &FlowKey<A>, sequence: u32) -> bool {
        A::syns()
            .get(slot)
            .is_some_and(|syn| syn.is_of(client, sequence))
    }

    #[inline(always)]
    fn handshake(&self, slot: u32) -> Option<&mut Handshake<A>> {
        let handshake = A::half_open().get_ptr_mut(slot)?;
        // SAFETY: array elements live as long as the map. The integrity tag detects concurrent writes.
        Some(unsafe { &mut *handshake })
    }

    #[inline(always)]
    fn pool_of(&self, endpoint: &ServiceKey) -> Option<u32> {
        // SAFETY: copied at once; this program never changes the map.
        unsafe { ENDPOINTS.get(endpoint) }.copied()
    }

    #[inline(always)]
    fn pool(&self, number: u32) -> Option<&mut PortPool> {
        let pool = PORT_POOLS.get_ptr_mut(number)?;
        // SAFETY: array elements live as long as the map. Concurrent writes only move the start of a search.
        Some(unsafe { &mut *pool })
    }

    #[inline(always)]
    fn port_word(&self, index: u32) -> Option<PortWord> {
        PORT_WORD_TABLE.get(index).copied()
    }

    #[inline(always)]
    fn set_ports(&self, index: u32, state: PortState, bits: u64) -> u64 {
        // SAFETY: an aligned word of a map.
        port_bits(index, state).map_or(0, |word| unsafe { atomic_or(word, bits) })
    }

    #[inline(always)]
    fn clear_ports(&self, index: u32, state: PortState, bits: u64) -> u64 {
        // SAFETY: an aligned word of a map.
        port_bits(index, state).map_or(0, |word| unsafe { atomic_and(word.cast(), !bits) })
    }

    #[inline(always)]
    fn port_handshake(&self, index: u32) -> Option<u32> {
        Some(PORT_HANDSHAKES.get(index / 2)?[(index % 2) as usize])
    }

    #[inline(always)]
    fn set_port_handshake(&self, index: u32, slot: u32) {
        if let Some(pair) = PORT_HANDSHAKES.get_ptr_mut(index / 2) {
            // SAFETY: an aligned word of a map, written whole.
            unsafe { (*pair)[(index % 2) as usize] = slot };
        }
    }

    #[inline(always)]
    fn nat_source(&self, index: u32) -> Option<V6> {
        NAT_ADDRESSES.get(index).copied()
    }

    #[inline(always)]
    fn set_ended(&self, flow: &mut Flow<A>, bits: u8) {
        let mask = u64::from_ne_bytes([0, bits, 0, 0, 0, 0, 0, 0]);
        // SAFETY: the word begins with the direction and lies within the entry.
        unsafe { atomic_or((&raw mut flow.direction).cast(), mask) };
    }

    #[inline(always)]
    fn clear_ended(&self, flow: &mut Flow<A>, bits: u8) {
        let mask = u64::from_ne_bytes([0, bits, 0, 0, 0, 0, 0, 0]);
        // SAFETY: as above.
        unsafe { atomic_and(&raw mut flow.direction, !mask) };
    }

    #[inline(always)]
    fn clear_counted(&self, request: &mut Flow<A>) -> bool {
        const { assert!(mem::offset_of!(Flow<A>, direction).is_multiple_of(8)) };
        // SAFETY: the word begins with the direction and lies within the entry.
        let before = unsafe { atomic_and(&raw mut request.direction, NOT_COUNTED) };
        before & !NOT_COUNTED != 0
    }

    #[inline(always)]
    fn set_counted(&self, request: &mut Flow<A>) -> bool {
        // SAFETY: as above.
        let before = unsafe { atomic_or((&raw mut request.direction).cast(), !NOT_COUNTED & ONES) };
        before & !NOT_COUNTED == 0
    }

    #[inline(always)]
    fn mark_completed(&self, handshake: &mut Handshake<A>) -> bool {
        const { assert!(mem::offset_of!(Handshake<A>, answered) % 8 == 4) };
        const { assert!(mem::offset_of!(Handshake<A>, completed) % 8 == 7) };
        const COMPLETED: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]);
        let word = (&raw mut handshake.worker_sequence).cast();
        // SAFETY: the word begins with the worker's sequence number and lies within the slot.
        let before = unsafe { atomic_or(word, COMPLETED) };
        before & COMPLETED == 0
    }

    #[inline(always)]
    fn count_active(&self, backend: u32, open: bool) {
        let Some(active) = ACTIVE.get_ptr_mut(backend) else {
            return;
        };
        // SAFETY: a word of a map.
        unsafe { atomic_add(active, if open { 1 } else { -1 }) };
    }

    #[inline(always)]
    fn client_connections(&self, client: &V6) -> u64 {
        // SAFETY: a word of a map, read whole.
        let count = CLIENTS.get_ptr(client).map_or(0, |count| unsafe { *count });
        // Below 0 where the entry was evicted meanwhile.
        count.cast_signed().max(0).cast_unsigned()
    }

    #[inline(always)]
    fn count_client(&self, client: &V6, begins: bool) {
        if let Some(count) = CLIENTS.get_ptr_mut(client) {
            // SAFETY: a word of a map.
            unsafe { atomic_add(count, if begins { 1 } else { -1 }) };
        } else if begins {
            // Where another processor is first, or there is no room, the manager puts the count right.
            _ = CLIENTS.insert(client, 1, BPF_NOEXIST.into());
        }
    }

    #[inline(always)]
    fn peer_switch(&self) -> PeerSwitch {
        peer::switch()
    }

    #[inline(always)]
    fn peers(&self, interface: u32) -> Option<&PeerLinks> {
        peer::links(interface)
    }

    #[inline(always)]
    fn is_peer_address(&self, address: &V6) -> bool {
        peer::is_address(address)
    }

    #[inline(always)]
    fn report(&self, fill: impl FnOnce(&mut FlowEvent<A>)) {
        peer::report(fill);
    }

    #[inline(always)]
    fn unknown_flow(&self, tuple: &FlowKey<V6>) -> Option<UnknownFlow> {
        peer::unknown_flow(tuple)
    }

    #[inline(always)]
    fn set_unknown_flow(&self, tuple: &FlowKey<V6>, flow: &UnknownFlow) {
        peer::set_unknown_flow(tuple, flow);
    }

    #[inline(always)]
    fn report_unknown(&self, record: &FlowRecord) -> bool {
        peer::report_unknown(record)
    }

    #[inline(always)]
    fn count_traffic(&self, backend: u32, change: impl FnOnce(&mut Traffic)) {
        if let Some(traffic) = TRAFFIC.get_ptr_mut(backend) {
            // SAFETY: a per-CPU slot, see `flow_scratch`.
            change(unsafe { &mut *traffic });
        }
    }

    #[inline(always)]
    fn count_refusal(&self, service: u32, change: impl FnOnce(&mut ServiceRefusals)) {
        if let Some(refusals) = SERVICE_REFUSALS.get_ptr_mut(service) {
            // SAFETY: a per-CPU slot, see `flow_scratch`.
            change(unsafe { &mut *refusals });
        }
    }

    for_stages!(stage_calls);
}

/// Adds to a word atomically.
///
/// # Safety
///
/// `word` must be an aligned word of a map.
#[inline(always)]
pub unsafe fn atomic_add(word: *mut u64, change: i64) {
    // SAFETY: an aligned word of a map, as the caller guarantees.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) += {change}", word = in(reg) word, change = in(reg) change);
    }
}

/// Mask of the word that begins with a flow's `direction`: all but `counted`.
const NOT_COUNTED: u64 = !u64::from_ne_bytes([0, 0, 0xff, 0, 0, 0, 0, 0]);

/// The same: all but `superseded`.
const NOT_SUPERSEDED: u64 = !u64::from_ne_bytes([0, 0, 0, 0xff, 0, 0, 0, 0]);

/// The lowest bit of each byte.
const ONES: u64 = 0x0101_0101_0101_0101;

/// Clears the bits of a word that are not in `mask` atomically, and returns the former word. Linux 5.12,
/// 981f94c3e921.
///
/// # Safety
///
/// `word` must be an aligned word of a map.
#[inline(always)]
unsafe fn atomic_and(word: *mut u8, mask: u64) -> u64 {
    let mut value = mask;
    // SAFETY: an aligned word of a map, as the caller guarantees.
    unsafe {
        asm!(
            "{value} = atomic_fetch_and((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
        );
    }
    value
}

/// Sets bits of a word atomically, and returns the former word. Linux 5.12, 981f94c3e921.
///
/// # Safety
///
/// `word` must be an aligned word of a map.
#[inline(always)]
unsafe fn atomic_or(word: *mut u64, bits: u64) -> u64 {
    let mut value = bits;
    // SAFETY: an aligned word of a map, as the caller guarantees.
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
        );
    }
    value
}

/// Pointer to one of the two sets of a word of ports.
#[inline(always)]
fn port_bits(index: u32, state: PortState) -> Option<*mut u64> {
    let word = PORT_WORD_TABLE.get_ptr_mut(index)?;
    Some(match state {
        // SAFETY: array slots live as long as the map.
        PortState::Used => unsafe { &raw mut (*word).used },
        // SAFETY: as above.
        PortState::Waiting => unsafe { &raw mut (*word).waiting },
    })
}

/// The service of a packet: its backend's, or the one it is addressed to.
#[inline(always)]
pub fn service_of(event: &TraceEvent) -> u32 {
    if event.backend != 0 {
        return BACKENDS.get(event.backend).map_or(NO_ID, |it| it.service);
    }
    let key = ServiceKey {
        address: event.original.destination,
        port: event.original.destination_port,
        protocol: event.original.protocol as u8,
        reserved: 0,
    };
    // SAFETY: copied at once; this program never changes the map.
    unsafe { SERVICES.get(key) }.map_or(NO_ID, |service| service.id)
}

/// The callback of `bpf_loop`, which continues on 0.
unsafe extern "C" fn step<A: Family, S: Step<Maps<A>>>(number: u32, steps: *mut S) -> i64 {
    // SAFETY: `Maps::repeat` passes a valid pointer.
    unsafe { (*steps).step(&Maps::<A>::NEW, number) }.into()
}

/// Whether memlb tracks one of the packet's ports. Other packets need no further look-up.
#[inline(always)]
pub fn is_tracked_port(
    hook: Hook,
    protocol: u8,
    source_port: [u8; 2],
    destination_port: [u8; 2],
) -> bool {
    match hook {
        Hook::Egress => is_tracked(protocol, source_port, true),
        // A worker of mode `routed` replies to the client's port.
        Hook::Ingress | Hook::Loopback => {
            is_tracked(protocol, destination_port, false) || is_tracked(protocol, source_port, true)
        }
    }
}

#[inline(always)]
fn is_tracked(protocol: u8, port: [u8; 2], is_source: bool) -> bool {
    PORTS
        .get(port_word(protocol, port, is_source))
        .is_some_and(|word| word & port_bit(port) != 0)
}

impl<A: Family> Maps<A> {
    pub const NEW: Self = Self(PhantomData);

    /// The link addresses of a backend, if known.
    #[inline(always)]
    pub fn neighbour(&self, backend: u32) -> Option<Neighbour> {
        NEIGHBOURS.get(backend).copied().filter(Neighbour::is_known)
    }

    /// Stores the link addresses of a worker's reply, if it arrives on the interface of the route to the worker.
    #[inline(always)]
    pub fn learn(&self, backend: u32, interface: u32, seen: &Neighbour) {
        let Some(known) = NEIGHBOURS.get_ptr_mut(backend) else {
            return;
        };
        // SAFETY: array elements live as long as the map. The next reply corrects a torn write.
        let known = unsafe { &mut *known };
        if *known != *seen
            && seen.worker.is_station()
            && !self.is_peer(interface, &seen.worker)
            && BACKENDS
                .get(backend)
                .is_some_and(|it| it.interface == interface)
        {
            *known = *seen;
        }
    }

    /// Counts the packet once: forwarded packets at their backend, others under their verdict.
    #[inline(always)]
    pub fn account(&self, decision: &Decision<A>, packet: &PacketMeta) {
        let (packets, bytes) = (u64::from(packet.packets), u64::from(packet.bytes));
        let inbound = match decision.verdict {
            Verdict::ToBackend | Verdict::ToManager => true,
            Verdict::ToClient | Verdict::FromManager => false,
            verdict => return count(verdict, packets, bytes),
        };
        if let Some(traffic) = TRAFFIC.get_ptr_mut(decision.backend) {
            // SAFETY: a per-CPU slot.
            let traffic = unsafe { &mut *traffic };
            if decision.new_connection != 0 {
                traffic.connections += 1;
            }
            if inbound {
                traffic.packets_in += packets;
                traffic.bytes_in += bytes;
            } else {
                traffic.packets_out += packets;
                traffic.bytes_out += bytes;
            }
        }
    }

    /// Counts connections to a backend without their first packets.
    #[inline(always)]
    pub fn count_connections(&self, backend: u32, connections: u32) {
        if let Some(traffic) = TRAFFIC.get_ptr_mut(backend) {
            // SAFETY: as in `account`.
            unsafe { (*traffic).connections += u64::from(connections) };
        }
    }
}

/// The SYN of the handshake in a slot.
#[inline(always)]
pub fn syn<A: Family>(slot: u32) -> Option<&'static mut Syn> {
    // SAFETY: array elements live as long as the map. `Syn::is_of` and checksums detect concurrent writes.
    A::syns().get_ptr_mut(slot).map(|syn| unsafe { &mut *syn })
}

/// Whether a frame that arrives at `interface` is addressed to another station, or to a group.
#[inline(always)]
pub fn is_for_other_station(interface: u32, destination: Mac) -> bool {
    LINKS
        .get(own_link(interface))
        .is_some_and(|own| own.interface == interface && !own.address.is_same_station(destination))
}

/// Counts a packet under its verdict.
#[inline(always)]
pub fn count(verdict: Verdict, packets: u64, bytes: u64) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict as u32) {
        // SAFETY: a per-CPU slot.
        let counter = unsafe { &mut *counter };
        counter.packets += packets;
        counter.bytes += bytes;
    }
}
