//! Peers: records of connections for them, and the relay of packets of unknown connections.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_NO_WAKEUP, TC_ACT_SHOT},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_clone_redirect, bpf_skb_store_bytes},
    macros::btf_map,
};
use lb_common::{
    address::{Address, V6},
    maps::{
        FLOW_EVENT_BYTES, FlowEvent, FlowKey, FlowRecord, Mac, PEER_ADDRESSES, PEER_INTERFACES,
        PeerLink, PeerLinks, PeerSwitch, UNKNOWN_CLIENT_BYTES, UNKNOWN_FLOW_ENTRIES, UnknownFlow,
    },
};

use crate::redirect::mark;

#[btf_map(name = "peer_switch")]
static SWITCH: Array<PeerSwitch, 1> = Array::new();

/// The living peers on the network of each interface.
#[btf_map(name = "peers")]
static PEERS: HashMap<u32, PeerLinks, { PEER_INTERFACES as usize }> = HashMap::new();

/// The NAT addresses of this manager and its peers.
#[btf_map(name = "peer_addresses")]
static ADDRESSES: HashMap<V6, u32, { PEER_ADDRESSES as usize }> = HashMap::new();

#[btf_map(name = "flow_events")]
static EVENTS: RingBuf<FlowEvent, { FLOW_EVENT_BYTES as usize }> = RingBuf::new();

/// Events for which `flow_events` was full.
#[btf_map(name = "flow_events_lost")]
static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Lookups of unknown connections at peers or agents.
#[btf_map(name = "unknown_flows")]
static UNKNOWN_FLOWS: LruHashMap<FlowKey<V6>, UnknownFlow, { UNKNOWN_FLOW_ENTRIES as usize }> =
    LruHashMap::new();

#[btf_map(name = "unknown_clients")]
static UNKNOWN_CLIENTS: RingBuf<FlowRecord, { UNKNOWN_CLIENT_BYTES as usize }> = RingBuf::new();

/// What the manager has switched on.
#[inline(always)]
pub fn switch() -> PeerSwitch {
    SWITCH.get(0).copied().unwrap_or_default()
}

/// The living peers on the network of an interface.
#[inline(always)]
pub fn links(interface: u32) -> Option<&'static PeerLinks> {
    // SAFETY: words that the manager writes; after a concurrent write, a frame goes to the former or the next peers.
    unsafe { PEERS.get(interface) }
}

#[inline(always)]
pub fn is_address(address: &V6) -> bool {
    // SAFETY: only whether there is an entry matters.
    unsafe { ADDRESSES.get(address) }.is_some()
}

/// Adds an event to `flow_events`. It wakes no reader: the manager reads the ring every few milliseconds.
#[inline(always)]
pub fn report<A: Address>(fill: impl FnOnce(&mut FlowEvent<A>)) {
    if let Some(mut entry) = EVENTS.reserve_untyped::<FlowEvent<A>>(0) {
        fill(entry.write(FlowEvent::NONE));
        entry.submit(BPF_RB_NO_WAKEUP.into());
    } else if let Some(lost) = LOST.get_ptr_mut(0) {
        // SAFETY: a per-CPU slot. Each CPU handles one packet at a time, because every hook runs with bottom halves
        // off.
        unsafe { *lost += 1 };
    }
}

#[inline(always)]
pub fn unknown_flow(tuple: &FlowKey<V6>) -> Option<UnknownFlow> {
    // SAFETY: copied at once. A torn value at worst repeats a lookup.
    unsafe { UNKNOWN_FLOWS.get(tuple) }.copied()
}

#[inline(always)]
pub fn set_unknown_flow(tuple: &FlowKey<V6>, flow: &UnknownFlow) {
    // Without room, the next packet begins the lookup again.
    _ = UNKNOWN_FLOWS.insert(tuple, flow, 0);
}

/// Adds a record to `unknown_clients`; returns whether there was room.
#[inline(always)]
pub fn report_unknown(record: &FlowRecord) -> bool {
    UNKNOWN_CLIENTS.output(record, 0).is_ok()
}

/// Sends a copy of the frame to each living peer on the network of its interface, with other link addresses only.
#[inline(never)]
pub fn relay(skb: *mut __sk_buff, interface: u32) -> i32 {
    mark(skb);
    let Some(peers) = links(interface) else {
        return TC_ACT_SHOT;
    };
    for PeerLink { mac, own_mac } in &peers.links {
        if *mac == Mac::NONE {
            continue;
        }
        let addresses = frame_addresses(*mac, *own_mac);
        // SAFETY: a valid context, no pointer into which is used afterwards, and twelve bytes to read.
        unsafe {
            bpf_skb_store_bytes(skb, 0, addresses.as_ptr().cast(), 12, 0);
            bpf_clone_redirect(skb, interface, 0);
        }
    }
    TC_ACT_SHOT
}

/// The first twelve bytes of a frame, in words, because the verifier demands aligned words on the stack.
#[inline(always)]
fn frame_addresses(destination: Mac, source: Mac) -> [u64; 2] {
    let word = |mac: Mac| {
        let [a, b, c, d, e, f] = mac.bytes();
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    };
    let (destination, source) = (word(destination), word(source));
    [(destination | source << 48).to_le(), (source >> 16).to_le()]
}
