//! Peers: records of connections for them, and packets of connections that only they may know.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use lb_common::{
    address::V6,
    maps::{
        ASKED_ENTRIES, ASKED_EVENT_BYTES, Asked, FLOW_EVENT_BYTES, FlowKey, FlowRecord,
        PEER_ADDRESSES, PEER_INTERFACES, PeerLinks, PeerSwitch,
    },
};

#[btf_map(name = "peer_switch")]
static SWITCH: Array<PeerSwitch, 1> = Array::new();

/// The living peers on the network of each interface.
#[btf_map(name = "peers")]
static PEERS: HashMap<u32, PeerLinks, { PEER_INTERFACES as usize }> = HashMap::new();

/// The NAT addresses of this manager and its peers.
#[btf_map(name = "peer_addresses")]
static ADDRESSES: HashMap<V6, u32, { PEER_ADDRESSES as usize }> = HashMap::new();

#[btf_map(name = "flow_events")]
static EVENTS: RingBuf<FlowRecord, { FLOW_EVENT_BYTES as usize }> = RingBuf::new();

/// Records for which `flow_events` was full.
#[btf_map(name = "flow_events_lost")]
static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Unknown connections whose packets went to the peers, or about which agents are asked.
#[btf_map(name = "asked")]
static ASKED: LruHashMap<FlowKey<V6>, Asked, { ASKED_ENTRIES as usize }> = LruHashMap::new();

#[btf_map(name = "asked_events")]
static ASKED_EVENTS: RingBuf<FlowRecord, { ASKED_EVENT_BYTES as usize }> = RingBuf::new();
