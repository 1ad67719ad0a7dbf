//! Type, key size, value size and number of entries of every pinned map. The layout version identifies them.

use core::fmt;

use super::{
    Backend, Counter, DENIED_PREFIXES, DsrClient, Flow, FlowKey, Handshake, MAX_DSR_CLIENTS,
    MAX_NEW_DSR_CLIENTS, MAX_TRANSLATIONS, NAT_SOURCES, Neighbour, OWN_LINKS, OwnLink, OwnerTags,
    PEER_ADDRESSES, PEER_INTERFACES, PORT_WORDS, PeerLinks, PeerSwitch, Policy, PortPair, PortPool,
    PortWord, SOURCE_FILTER_ENTRIES, Service, ServiceKey, ServiceRefusals, Settings, TRACE_BYTES,
    TraceConfig, TraceCounts, Traffic, Translation, UNKNOWN_CLIENT_BYTES, UNKNOWN_FLOW_ENTRIES,
    UnknownFlow, dsr_name, name,
};
use crate::{address::V6, verdict::Verdict};

/// The kernel's `enum bpf_map_type`, of the pinned maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    LpmTrie = 11,
    SkStorage = 24,
    RingBuf = 27,
}

/// The required properties of a pinned map. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLayout {
    pub name: &'static str,
    pub kind: MapKind,
    pub key_size: u32,
    pub value_size: u32,
    /// `None` where the configuration sets it.
    pub entries: Option<u32>,
}

impl MapLayout {
    const fn new<K, V>(name: &'static str, kind: MapKind, entries: Option<u32>) -> Self {
        Self {
            name,
            kind,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            entries,
        }
    }

    /// An array whose size the configuration sets.
    const fn array<V>(name: &'static str) -> Self {
        Self::new::<u32, V>(name, MapKind::Array, None)
    }

    const fn fixed_array<V>(name: &'static str, entries: u32) -> Self {
        Self::new::<u32, V>(name, MapKind::Array, Some(entries))
    }

    const fn verdicts(name: &'static str) -> Self {
        Self::new::<u32, Counter>(name, MapKind::PerCpuArray, Some(Verdict::COUNT))
    }

    /// Compares a map with this layout. Returns what differs, or `None`.
    pub fn mismatch(&self, kind: u32, sizes: [u32; 2], entries: u32) -> Option<LayoutMismatch> {
        let pairs = [
            ("type", kind, self.kind as u32),
            ("key size", sizes[0], self.key_size),
            ("value size", sizes[1], self.value_size),
            (
                "number of entries",
                entries,
                self.entries.unwrap_or(entries),
            ),
        ];
        let (property, found, expected) = pairs.into_iter().find(|(_, is, due)| is != due)?;
        Some(LayoutMismatch {
            map: self.name,
            property,
            found,
            expected,
        })
    }
}

/// The first property in which a pinned map differs from its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutMismatch {
    pub map: &'static str,
    pub property: &'static str,
    pub found: u32,
    pub expected: u32,
}

impl fmt::Display for LayoutMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            map,
            property,
            found,
            expected,
        } = self;
        write!(f, "map {map} has {property} {found}, not {expected}")
    }
}

/// A key of map `deny`: the length of the prefix, then the address.
type PrefixKey = (u32, V6);

/// The maps that the manager pins.
pub const MANAGER_MAPS: &[MapLayout] = &[
    MapLayout::fixed_array::<Settings>(name::SETTINGS, 1),
    MapLayout::new::<ServiceKey, Service>(name::SERVICES, MapKind::Hash, None),
    MapLayout::array::<u32>(name::SELECTION),
    MapLayout::array::<Policy>(name::POLICIES),
    MapLayout::array::<u32>(name::CHOICES),
    MapLayout::array::<Backend>(name::BACKENDS),
    MapLayout::array::<Neighbour>(name::NEIGHBOURS),
    MapLayout::fixed_array::<OwnLink>(name::OWN_LINKS, OWN_LINKS),
    MapLayout::fixed_array::<u64>(name::PORTS, PORT_WORDS),
    MapLayout::new::<V6, u32>(
        name::SOURCE_FILTER,
        MapKind::Hash,
        Some(SOURCE_FILTER_ENTRIES),
    ),
    MapLayout::new::<ServiceKey, u32>(name::ENDPOINTS, MapKind::Hash, None),
    MapLayout::array::<PortPool>(name::PORT_POOLS),
    MapLayout::array::<PortWord>(name::PORT_WORDS),
    MapLayout::array::<PortPair>(name::PORT_HANDSHAKES),
    MapLayout::fixed_array::<V6>(name::NAT_SOURCES, NAT_SOURCES),
    MapLayout::new::<FlowKey, Flow>(name::FLOWS, MapKind::LruHash, None),
    MapLayout::new::<FlowKey<V6>, Flow<V6>>(name::FLOWS6, MapKind::LruHash, None),
    MapLayout::array::<Handshake>(name::HALF_OPEN),
    MapLayout::array::<Handshake<V6>>(name::HALF_OPEN6),
    MapLayout::array::<OwnerTags>(name::OWNER_TAGS),
    MapLayout::array::<OwnerTags>(name::OWNER_TAGS6),
    MapLayout::array::<u64>(name::ACTIVE),
    MapLayout::array::<u64>(name::EVICTED),
    MapLayout::new::<PrefixKey, u32>(name::DENY, MapKind::LpmTrie, Some(DENIED_PREFIXES)),
    MapLayout::new::<V6, u64>(name::CLIENTS, MapKind::LruHash, None),
    MapLayout::verdicts(name::VERDICTS),
    MapLayout::new::<u32, Traffic>(name::TRAFFIC, MapKind::PerCpuArray, None),
    MapLayout::new::<u32, ServiceRefusals>(name::SERVICE_REFUSALS, MapKind::PerCpuArray, None),
    MapLayout::fixed_array::<TraceConfig>(name::TRACE, 1),
    MapLayout::fixed_array::<TraceCounts>(name::TRACE_COUNTS, 1),
    MapLayout::new::<(), ()>(name::TRACE_EVENTS, MapKind::RingBuf, Some(TRACE_BYTES)),
    MapLayout::fixed_array::<PeerSwitch>(name::PEER_SWITCH, 1),
    MapLayout::new::<u32, PeerLinks>(name::PEERS, MapKind::Hash, Some(PEER_INTERFACES)),
    MapLayout::new::<V6, u32>(name::PEER_ADDRESSES, MapKind::Hash, Some(PEER_ADDRESSES)),
    MapLayout::new::<(), ()>(name::FLOW_EVENTS, MapKind::RingBuf, None),
    MapLayout::new::<u32, u64>(name::FLOW_EVENTS_LOST, MapKind::PerCpuArray, Some(1)),
    MapLayout::new::<FlowKey<V6>, UnknownFlow>(
        name::UNKNOWN_FLOWS,
        MapKind::LruHash,
        Some(UNKNOWN_FLOW_ENTRIES),
    ),
    MapLayout::new::<(), ()>(
        name::UNKNOWN_CLIENTS,
        MapKind::RingBuf,
        Some(UNKNOWN_CLIENT_BYTES),
    ),
];

/// The maps that an agent pins for its DSR programs.
pub const DSR_MAPS: &[MapLayout] = &[
    MapLayout::fixed_array::<u32>(dsr_name::VERSION, 1),
    MapLayout::new::<ServiceKey, Translation>(
        dsr_name::TRANSLATIONS,
        MapKind::Hash,
        Some(MAX_TRANSLATIONS),
    ),
    MapLayout::fixed_array::<u64>(dsr_name::PORTS, PORT_WORDS),
    MapLayout::new::<FlowKey, DsrClient>(
        dsr_name::CLIENTS,
        MapKind::LruHash,
        Some(MAX_DSR_CLIENTS),
    ),
    MapLayout::new::<FlowKey<V6>, DsrClient<V6>>(
        dsr_name::CLIENTS6,
        MapKind::LruHash,
        Some(MAX_DSR_CLIENTS),
    ),
    MapLayout::new::<FlowKey, DsrClient>(
        dsr_name::NEW_CLIENTS,
        MapKind::LruHash,
        Some(MAX_NEW_DSR_CLIENTS),
    ),
    MapLayout::new::<FlowKey<V6>, DsrClient<V6>>(
        dsr_name::NEW_CLIENTS6,
        MapKind::LruHash,
        Some(MAX_NEW_DSR_CLIENTS),
    ),
    MapLayout::new::<u32, ServiceKey>(dsr_name::SOCKETS, MapKind::SkStorage, Some(0)),
    MapLayout::verdicts(dsr_name::VERDICTS),
];
