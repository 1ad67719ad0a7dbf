//! Names, capacities and layouts of the pinned BPF maps: the contract between the kernel programs, the manager and an
//! operator with bpftool.
//!
//! Values are `#[repr(C)]` without implicit padding. Ports of keys and of flows are in network byte order, because the
//! datapath compares them unchanged; a backend's port is a plain number, because operators read and write it.

mod backend;
mod counters;
mod dsr;
mod flow;
mod handshake;
mod layout;
mod mac;
mod peer;
mod ports;
mod service;
mod trace;

pub use backend::{ALL_DIRECT, Backend, Neighbour, OWN_LINKS, OwnLink, mode, own_link, state};
pub use counters::{Counter, ServiceRefusals, Traffic};
pub use dsr::{
    DSR_LAYOUT_VERSION, DsrClient, MAX_DSR_CLIENTS, MAX_NEW_DSR_CLIENTS, MAX_TRANSLATIONS,
    Translation, coarse_time, dsr_name,
};
pub use flow::{
    BY_ROUTE, Flow, FlowKey, IN_FRAGMENTS, TICK_NS, direction, elapsed_ns, ended, ticks,
};
pub use handshake::{Handshake, MAX_REFUSALS, progress};
pub use layout::{DSR_MAPS, LayoutMismatch, MANAGER_MAPS, MapKind, MapLayout};
pub use mac::Mac;
pub use peer::{
    Admission, FLOW_EVENT_BYTES, FlowEvent, FlowRecord, INTAKE_RECORDS, IntakeHeader,
    LOOKUP_AGAIN_NS, LOOKUP_NS, MAX_PEER_MANAGERS, PEER_ADDRESSES, PEER_INTERFACES, PeerLink,
    PeerLinks, PeerSwitch, UNKNOWN_CLIENT_BYTES, UNKNOWN_FLOW_ENTRIES, UnknownFlow, record_kind,
};
pub use ports::{
    DEFAULT_SOURCE_WORDS, MAX_NAT_SOURCES, NAT_SOURCES, NO_PORT, PORT_WORDS, PORTS_PER_WORD,
    PortPair, PortPool, PortWord, TIME_WAIT_NS, port_bit, port_word,
};
pub use service::{Policy, SPREAD, Service, ServiceKey, first_choice, policy, service_flag};
pub use trace::{
    NO_ID, TRACE_BYTES, TRACE_SECTION, TRACE_WINDOW_NS, TRACED_BACKENDS, TraceConfig, TraceCounts,
    TraceEvent, trace_hook,
};

use crate::address::V6;

/// Version of everything in this module and of [`MANAGER_MAPS`]. A manager refuses pins of another version.
pub const LAYOUT_VERSION: u32 = 7;

/// Names of the maps, and of their pins.
pub mod name {
    pub const SETTINGS: &str = "settings";
    pub const SERVICES: &str = "services";
    pub const SELECTION: &str = "selection";
    pub const POLICIES: &str = "policies";
    pub const CHOICES: &str = "choices";
    pub const BACKENDS: &str = "backends";
    pub const NEIGHBOURS: &str = "neighbours";
    pub const OWN_LINKS: &str = "own_links";
    pub const SOURCE_FILTER: &str = "source_filter";
    pub const FLOWS: &str = "flows";
    pub const FLOWS6: &str = "flows6";
    pub const HALF_OPEN: &str = "half_open";
    pub const HALF_OPEN6: &str = "half_open6";
    pub const OWNER_TAGS: &str = "owner_tags";
    pub const OWNER_TAGS6: &str = "owner_tags6";
    pub const ACTIVE: &str = "active";
    pub const EVICTED: &str = "evicted";
    pub const DENY: &str = "deny";
    pub const CLIENTS: &str = "clients";
    pub const PORTS: &str = "ports";
    pub const ENDPOINTS: &str = "endpoints";
    pub const PORT_POOLS: &str = "port_pools";
    pub const PORT_WORDS: &str = "port_words";
    pub const PORT_HANDSHAKES: &str = "port_handshakes";
    pub const NAT_SOURCES: &str = "nat_sources";
    pub const VERDICTS: &str = "verdicts";
    pub const TRAFFIC: &str = "traffic";
    pub const SERVICE_REFUSALS: &str = "service_refusals";
    pub const TRACE: &str = "trace";
    pub const TRACE_COUNTS: &str = "trace_counts";
    pub const TRACE_EVENTS: &str = "trace_events";
    pub const PEER_SWITCH: &str = "peer_switch";
    pub const PEERS: &str = "peers";
    pub const PEER_ADDRESSES: &str = "peer_addresses";
    pub const FLOW_EVENTS: &str = "flow_events";
    pub const FLOW_EVENTS_LOST: &str = "flow_events_lost";
    pub const UNKNOWN_FLOWS: &str = "unknown_flows";
    pub const UNKNOWN_CLIENTS: &str = "unknown_clients";
}

/// Capacity of `services`, `selection` and `policies` unless configured.
pub const DEFAULT_SERVICES: u32 = 64;
/// Most slots of one generation of a service's choices.
pub const CHOICE_SLOTS: u32 = 4_096;
/// Entries of `choices` for each service: two generations.
pub const SERVICE_CHOICES: u32 = 2 * CHOICE_SLOTS;
/// Capacity of `backends`, `neighbours` and `traffic` unless configured.
pub const DEFAULT_BACKENDS: u32 = 256;
/// Capacity of `source_filter`: addresses of the manager and of workers, each with the index of the only interface on
/// which packets from it may arrive; 0: none.
pub const SOURCE_FILTER_ENTRIES: u32 = 4_096;
/// Capacity of `flows` unless configured; a connection takes two entries.
pub const DEFAULT_FLOW_ENTRIES: u32 = 2 * 131_072;
/// Capacity of `half_open`. It is smaller than the range of NAT ports, so that a SYN flood leaves ports to
/// established clients: at 60,000 SYNs a second, a handshake lasts for a quarter of a second.
pub const DEFAULT_HANDSHAKES: u32 = 16_384;
/// Capacity of `deny`, the denied client prefixes. Only present entries use memory.
pub const DENIED_PREFIXES: u32 = 16_384;
/// Capacity of `clients` if connections are limited by client.
pub const COUNTED_CLIENTS: u32 = 65_536;
/// Slots in a bucket of `half_open`. A further handshake replaces the oldest one of its bucket.
pub const SLOTS_PER_BUCKET: u32 = 16;

/// Value of `owner_tags` and `owner_tags6`, by bucket of `half_open` and `half_open6`: for each slot, hash bits of
/// the client whose handshake it holds.
pub type OwnerTags = [u32; SLOTS_PER_BUCKET as usize];

/// The single value of `settings`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub layout_version: u32,
    /// First NAT port, and the number of NAT ports.
    pub nat_port_first: u16,
    pub nat_port_count: u16,
    /// Idle time in nanoseconds after which a flow's port may be reused.
    pub established_idle_ns: u64,
    /// The same for datagrams. The client's next datagram then begins a new flow.
    pub datagram_idle_ns: u64,
    /// The same for a flow that is closed or reset.
    pub closing_idle_ns: u64,
    /// The same for a handshake.
    pub half_open_idle_ns: u64,
    /// `net.ipv4.conf.lo.accept_local` before memlb, restored on unload.
    pub accept_local_before: u32,
    /// Buckets of `half_open`, with [`SLOTS_PER_BUCKET`] slots each.
    pub half_open_buckets: u32,
    /// Key of the hash that selects a handshake's bucket, drawn at random when the maps are created. Without it, no
    /// sender can choose whose handshakes it displaces.
    pub secret: [u64; 2],
    /// Words of `port_words` in a pool.
    pub pool_words: u32,
    /// Words of a pool for each NAT address.
    pub source_words: u32,
    /// Configured NAT addresses of IPv4 and of IPv6; 0: the source address of the route to the worker.
    pub nat_sources: [u16; 2],
    /// Most connections of one client; 0: no limit.
    pub per_client: u32,
    /// Most open connections of mode `dsr`. A sender can forge these, so they leave room for other modes.
    pub direct_flows: u32,
    /// See [`reverse_sync_shift`].
    pub reverse_sync_shift: u32,
}

/// The power of two by which a client's packets check a flow's other entry less often than once a second, in a flow
/// table with so many entries. The kernel evicts what has been idle for longest; in a larger table that takes longer.
pub fn reverse_sync_shift(flow_entries: u32) -> u32 {
    let times = flow_entries / DEFAULT_FLOW_ENTRIES;
    times.max(1).ilog2().min(4)
}

/// Index of the loopback interface in every network namespace (`LOOPBACK_IFINDEX`, Linux 2.6.24).
pub const LOOPBACK: u32 = 1;

const _: () = {
    assert!(size_of::<Settings>() == 88 && align_of::<Settings>() == 8);
    assert!(size_of::<ServiceKey>() == 20 && align_of::<ServiceKey>() == 1);
    assert!(size_of::<Service>() == 8);
    assert!(size_of::<Policy>() == 16);
    assert!(size_of::<PortPool>() == 8 && align_of::<PortPool>() == 4);
    assert!(size_of::<PortWord>() == 16 && align_of::<PortWord>() == 8);
    assert!(size_of::<Backend>() == 96 && align_of::<Backend>() == 8);
    assert!(size_of::<Neighbour>() == 16);
    assert!(size_of::<OwnLink>() == 16);
    assert!(size_of::<FlowKey>() == 16 && align_of::<FlowKey>() == 8);
    assert!(size_of::<FlowKey<V6>>() == 40 && align_of::<FlowKey<V6>>() == 8);
    assert!(size_of::<Flow>() == 64 && align_of::<Flow>() == 8);
    assert!(size_of::<Flow<V6>>() == 88 && align_of::<Flow<V6>>() == 8);
    assert!(size_of::<Handshake>() == 120 && align_of::<Handshake>() == 8);
    assert!(size_of::<Handshake<V6>>() == 168 && align_of::<Handshake<V6>>() == 8);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<Traffic>() == 96);
    assert!(size_of::<ServiceRefusals>() == 40);
    assert!(size_of::<TraceConfig>() == 136 && align_of::<TraceConfig>() == 8);
    assert!(size_of::<TraceCounts>() == 32);
    assert!(size_of::<TraceEvent>() == 120 && align_of::<TraceEvent>() == 8);
};

#[cfg(feature = "aya")]
mod pod {
    use super::*;
    use crate::address::Address;

    macro_rules! pod {
        ($($type:ty),+) => {
            $(
                // SAFETY: `repr(C)`, integers and byte arrays only, and no padding, as the sizes
                // asserted in these modules show: every bit pattern is a value.
                unsafe impl aya::Pod for $type {}
            )+
        };
    }

    pod!(
        Backend,
        Counter,
        FlowRecord,
        IntakeHeader,
        Mac,
        Neighbour,
        OwnLink,
        PeerLinks,
        PeerSwitch,
        Policy,
        PortPool,
        PortWord,
        Service,
        ServiceKey,
        ServiceRefusals,
        Settings,
        TraceConfig,
        TraceCounts,
        TraceEvent,
        Traffic,
        Translation,
        UnknownFlow
    );

    macro_rules! pod_of_families {
        ($($type:ident),+) => {
            $(
                // SAFETY: as above, for both families: no other type implements the sealed trait `Address`.
                unsafe impl<A: Address> aya::Pod for $type<A> {}
            )+
        };
    }

    pod_of_families!(DsrClient, Flow, FlowKey, Handshake);
}
