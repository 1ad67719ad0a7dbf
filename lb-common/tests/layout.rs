//! The bytes of every map's keys and values, as bpftool, pins and older programs see them. A change
//! of one needs a new `LAYOUT_VERSION`.

use std::mem::{offset_of, size_of};

use lb_common::{
    address::V6,
    maps::{
        Backend, Counter, DSR_LAYOUT_VERSION, DSR_MAPS, Flow, FlowEvent, FlowKey, FlowRecord,
        Handshake, IntakeHeader, LAYOUT_VERSION, MANAGER_MAPS, Mac, MapKind, MapLayout, Neighbour,
        OwnLink, PeerLink, PeerLinks, PeerSwitch, Policy, PortPool, PortWord, Service, ServiceKey,
        Settings, TraceConfig, TraceCounts, TraceEvent, Traffic, UnknownFlow, direction, ended,
        mode, name, state,
    },
    verdict::Verdict,
};

/// Checks the size of a type, and the offset of each of its fields.
macro_rules! assert_layout {
    ($type:ty, $size:literal, $($field:ident $offset:literal),+) => {
        assert_eq!(size_of::<$type>(), $size, "{}", stringify!($type));
        $(
            assert_eq!(
                offset_of!($type, $field),
                $offset,
                "{}.{}",
                stringify!($type),
                stringify!($field)
            );
        )+
    };
}

#[test]
fn the_layout_of_version_7_is_as_pinned() {
    assert_eq!(LAYOUT_VERSION, 7, "pin the new layout here");
    assert_layout!(
        Settings, 88,
        layout_version 0, nat_port_first 4, nat_port_count 6, established_idle_ns 8,
        datagram_idle_ns 16, closing_idle_ns 24, half_open_idle_ns 32, accept_local_before 40,
        half_open_buckets 44, secret 48, pool_words 64, source_words 68, nat_sources 72, per_client 76,
        direct_flows 80, reverse_sync_shift 84
    );
    assert_layout!(PortPool, 8, next_free 0, next_waiting 4);
    assert_layout!(PortWord, 16, used 0, waiting 8);
    assert_layout!(ServiceKey, 20, address 0, port 16, protocol 18, reserved 19);
    assert_layout!(Service, 8, id 0, flags 4);
    assert_layout!(
        Backend, 96,
        port 0, state 2, mode 3, interface 4, weight 8, service 12, next_hop 16, address 32,
        source 48, memory_available_bytes 64, memory_total_bytes 72, port_pool 80,
        reply_interface 84, max_connections 88, reserved 92
    );
    assert_layout!(Policy, 16, kind 0, generation 4, slots 8, fallback 12);
    assert_layout!(Neighbour, 16, worker 0, manager 8);
    assert_layout!(OwnLink, 16, interface 0, reserved 4, address 8);
    assert_layout!(
        FlowKey, 16,
        source 0, destination 4, source_port 8, destination_port 10, protocol 12
    );
    assert_layout!(
        FlowKey<V6>, 40,
        source 0, destination 16, source_port 32, destination_port 34, protocol 36
    );
    assert_layout!(
        Flow, 64,
        translated 0, client_mac 16, manager_mac 24, backend 32, client_interface 36, direction 40,
        ended 41, counted 42, superseded 43, created_ticks 44, last_seen_ticks 48, sequence 52, bytes 56
    );
    assert_layout!(
        Flow<V6>, 88,
        translated 0, client_mac 40, manager_mac 48, backend 56, client_interface 60, direction 64,
        ended 65, counted 66, superseded 67, created_ticks 68, last_seen_ticks 72, sequence 76, bytes 80
    );
    assert_layout!(
        Handshake, 120,
        client 0, translated 16, client_mac 32, manager_mac 40, backend 48, service 52,
        client_interface 56, client_sequence 60, integrity_tag 64, created_ns 72, syn_ns 80,
        worker_sequence 88, answered 92, ended 93, retries 94, completed 95, bytes_in 96,
        bytes_out 100, progress 104, keeps_syn 105, reserved 106, refused_by 108
    );
    assert_layout!(
        Handshake<V6>, 168,
        client 0, translated 40, client_mac 80, manager_mac 88, backend 96, service 100,
        client_interface 104, client_sequence 108, integrity_tag 112, created_ns 120, syn_ns 128,
        worker_sequence 136, answered 140, ended 141, retries 142, completed 143, bytes_in 144,
        bytes_out 148, progress 152, keeps_syn 153, reserved 154, refused_by 156
    );
    assert_layout!(Counter, 16, packets 0, bytes 8);
    assert_layout!(
        Traffic, 96,
        connections 0, packets_in 8, bytes_in 16, packets_out 24, bytes_out 32, unanswered 40, answered 48,
        refused 56, expired 64, resets 72, retried 80, last_answer_ns 88
    );
    assert_eq!(size_of::<Mac>(), 8);
    assert_layout!(
        TraceConfig, 136,
        expires_ns 0, client 8, client_mask 24, verdicts 40, client_port 48, reserved 50, service 56,
        backend_count 60, backends 64, rate 128, sample 132
    );
    assert_layout!(TraceCounts, 32, window_ns 0, window_packets 8, over_rate 16, no_room 24);
    assert_layout!(
        TraceEvent, 120,
        time_ns 0, original 8, translated 48, interface 88, backend 92, service 96, packets 100,
        bytes 104, ether_type 108, verdict 110, hook 111, protocol 112, kind 113, code 114,
        reserved 115
    );
    assert_layout!(
        FlowRecord, 104,
        client 0, service_address 16, source 32, client_mac 48, manager_mac 56, backend 64,
        client_interface 68, created_ticks 72, last_seen_ticks 76, sequences 80, client_port 88,
        service_port 90, source_port 92, protocol 94, kind 95, ended 96, carried 98, reserved 99
    );
    assert_layout!(
        FlowEvent, 56,
        client 0, client_mac 16, backend 24, client_interface 28, created_ticks 32, last_seen_ticks 36,
        sequences 40, source 48, source_port 52, kind 54, flags 55
    );
    assert_layout!(
        FlowEvent<V6>, 96,
        client 0, client_mac 40, backend 48, client_interface 52, created_ticks 56, last_seen_ticks 60,
        sequences 64, source 72, source_port 88, kind 90, flags 91
    );
    assert_layout!(IntakeHeader, 40, link 0, next 16, outcomes 18, reserved 36);
    assert_layout!(PeerSwitch, 8, reports 0, interfaces 4);
    assert_layout!(PeerLinks, 112, links 0);
    assert_layout!(PeerLink, 16, mac 0, own_mac 8);
    assert_layout!(UnknownFlow, 16, first_ns 0, reported 8, reserved 12);
}

#[test]
fn the_numbers_in_the_maps_are_as_pinned() {
    assert_eq!(
        [state::UNKNOWN, state::UP, state::DOWN, state::DRAINING],
        [0, 1, 2, 3]
    );
    assert_eq!(
        [mode::NAT, mode::LOCAL, mode::DSR, mode::ROUTED],
        [0, 1, 2, 3]
    );
    assert_eq!([direction::REQUEST, direction::REPLY], [0, 1]);
    assert_eq!([ended::FIN, ended::RESET], [1, 2]);
    let verdicts: Vec<_> = Verdict::ALL.iter().map(|verdict| verdict.name()).collect();
    assert_eq!(
        verdicts,
        [
            "to_backend",
            "to_client",
            "to_manager",
            "from_manager",
            "not_ip",
            "other_protocol",
            "not_ours",
            "truncated",
            "malformed",
            "ip_options",
            "extension_headers",
            "fragment",
            "not_for_us",
            "no_flow",
            "backend_down",
            "no_backend",
            "no_route",
            "ports_exhausted",
            "client_limit",
            "table_full",
            "time_to_live",
            "wrong_interface",
            "narrow_path",
            "handed_over",
            "denied",
            "implausible_error",
            "handshake_evicted",
            "too_large",
            "retried",
            "workers_full",
            "to_peer",
            "unknown_to_peer",
            "lookup_pending",
        ]
    );
}

/// A change of any of these numbers, the last verdict's included, needs another layout version.
#[test]
fn the_maps_of_version_7_are_as_pinned() {
    use MapKind::{Array, Hash, LpmTrie, LruHash, PerCpuArray, RingBuf, SkStorage};

    assert_eq!(LAYOUT_VERSION, 7, "pin the new layout here");
    let rows = |maps: &[MapLayout]| {
        let row = |it: &MapLayout| (it.name, it.kind, it.key_size, it.value_size, it.entries);
        maps.iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(
        rows(MANAGER_MAPS),
        [
            ("settings", Array, 4, 88, Some(1)),
            ("services", Hash, 20, 8, None),
            ("selection", Array, 4, 4, None),
            ("policies", Array, 4, 16, None),
            ("choices", Array, 4, 4, None),
            ("backends", Array, 4, 96, None),
            ("neighbours", Array, 4, 16, None),
            ("own_links", Array, 4, 16, Some(256)),
            ("ports", Array, 4, 8, Some(4096)),
            ("source_filter", Hash, 16, 4, Some(4096)),
            ("endpoints", Hash, 20, 4, None),
            ("port_pools", Array, 4, 8, None),
            ("port_words", Array, 4, 16, None),
            ("port_handshakes", Array, 4, 8, None),
            ("nat_sources", Array, 4, 16, Some(16)),
            ("flows", LruHash, 16, 64, None),
            ("flows6", LruHash, 40, 88, None),
            ("half_open", Array, 4, 120, None),
            ("half_open6", Array, 4, 168, None),
            ("owner_tags", Array, 4, 64, None),
            ("owner_tags6", Array, 4, 64, None),
            ("active", Array, 4, 8, None),
            ("evicted", Array, 4, 8, None),
            ("deny", LpmTrie, 20, 4, Some(16_384)),
            ("clients", LruHash, 16, 8, None),
            ("verdicts", PerCpuArray, 4, 16, Some(33)),
            ("traffic", PerCpuArray, 4, 96, None),
            ("service_refusals", PerCpuArray, 4, 40, None),
            ("trace", Array, 4, 136, Some(1)),
            ("trace_counts", Array, 4, 32, Some(1)),
            ("trace_events", RingBuf, 0, 0, Some(262_144)),
            ("peer_switch", Array, 4, 8, Some(1)),
            ("peers", Hash, 4, 112, Some(64)),
            ("peer_addresses", Hash, 16, 4, Some(128)),
            ("flow_events", RingBuf, 0, 0, None),
            ("flow_events_lost", PerCpuArray, 4, 8, Some(1)),
            ("unknown_flows", LruHash, 40, 16, Some(16_384)),
            ("unknown_clients", RingBuf, 0, 0, Some(65_536)),
        ]
    );
    assert_eq!(DSR_LAYOUT_VERSION, 4, "pin the new layout here");
    assert_eq!(
        rows(DSR_MAPS),
        [
            ("version", Array, 4, 4, Some(1)),
            ("translations", Hash, 20, 24, Some(64)),
            ("ports", Array, 4, 8, Some(4096)),
            ("clients", LruHash, 16, 12, Some(65_536)),
            ("clients6", LruHash, 40, 24, Some(65_536)),
            ("new_clients", LruHash, 16, 12, Some(16_384)),
            ("new_clients6", LruHash, 40, 24, Some(16_384)),
            ("sockets", SkStorage, 4, 20, Some(0)),
            ("verdicts", PerCpuArray, 4, 16, Some(33)),
        ]
    );
}

#[test]
fn a_map_that_differs_in_any_property_is_named() {
    let verdicts = MANAGER_MAPS.iter().find(|it| it.name == name::VERDICTS);
    let verdicts = verdicts.unwrap();
    assert_eq!(verdicts.mismatch(6, [4, 16], 33), None);
    for (kind, sizes, entries, said) in [
        (2, [4, 16], 33, "map verdicts has type 2, not 6"),
        (6, [8, 16], 33, "map verdicts has key size 8, not 4"),
        (6, [4, 8], 33, "map verdicts has value size 8, not 16"),
        (
            6,
            [4, 16],
            28,
            "map verdicts has number of entries 28, not 33",
        ),
    ] {
        let found = verdicts.mismatch(kind, sizes, entries).unwrap();
        assert_eq!(found.to_string(), said);
    }
    let flows = MANAGER_MAPS.iter().find(|it| it.name == name::FLOWS);
    assert_eq!(flows.unwrap().mismatch(9, [16, 64], 77), None);
}

#[test]
fn a_link_address_lies_first_byte_first_and_padded_with_zeros() {
    let mac = Mac::from([1, 2, 3, 4, 5, 6]);
    assert_eq!(mac.bytes(), [1, 2, 3, 4, 5, 6]);
    // SAFETY: 8 bytes without padding or a niche.
    let raw: [u8; 8] = unsafe { std::mem::transmute(mac) };
    assert_eq!(raw, [1, 2, 3, 4, 5, 6, 0, 0]);
    // A VLAN tag stands behind it: priority 1, VLAN 5.
    let tagged = mac.tagged(Mac::tag_of(0x2005));
    assert_eq!(
        (tagged.bytes(), Mac::untagged(tagged.tag())),
        (mac.bytes(), 0x2005)
    );
    assert_ne!(mac.tagged(Mac::tag_of(0)), mac);
}
