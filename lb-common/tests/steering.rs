//! The steering decision over maps in memory: single decisions, and what must hold after any
//! sequence of packets, changes of the selection, silences and evictions.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod laboratory;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use laboratory::{
    ACK, ETH, FIN, MANAGER, Memory, RST, SECOND, SERVICE, SYN, WORKER_START, WORKER1, WORKER2,
    answer_to_syn, backend, connects, key, laboratory, packet, steer,
};
use lb_common::{
    address::{Address, V4},
    headers::PROTOCOL_UDP,
    maps::{FlowKey, Mac, SLOTS_PER_BUCKET, Service, ServiceKey, direction, ended, mode},
    steer::{Decision, Exit, Hook, PacketMeta},
    verdict::Verdict,
};
use proptest::prelude::*;

#[test]
fn a_handshake_moves_the_flow_from_one_table_to_the_other() {
    let memory = lab(16);
    let client = key(([10, 0, 0, 9], 40_000), SERVICE);
    let syn = steer(&memory, &packet(SYN), &client);
    assert_eq!((syn.verdict, syn.exit), (Verdict::ToBackend, Exit::Backend));
    assert_eq!((syn.backend, syn.new_connection), (WORKER1, 1));
    assert_eq!((syn.interface, syn.next_hop), (ETH, [10, 0, 0, 101]));
    assert_eq!(syn.translated.source, MANAGER);

    let answer = steer(&memory, &answer_to_syn(), &syn.translated.reversed());
    assert_eq!(
        (answer.verdict, answer.exit),
        (Verdict::ToClient, Exit::Client)
    );
    assert_eq!(answer.translated, client.reversed());
    assert_eq!(memory.handshakes().len(), 1);
    assert_eq!(memory.established.entries().len(), 0);

    let ack = steer(&memory, &packet(ACK), &client);
    assert_eq!((ack.verdict, ack.new_connection), (Verdict::ToBackend, 0));
    assert_eq!(memory.handshakes().len(), 0);
    assert_eq!(memory.established.entries().len(), 2);
    assert_eq!(memory.active.borrow()[&WORKER1], 1);
}

#[test]
fn a_new_connection_does_not_go_on_in_the_half_of_one_that_has_ended() {
    let memory = lab(16);
    let client = key(([10, 0, 0, 9], 40_000), SERVICE);
    let translated = connects(&memory, &client);
    _ = steer(&memory, &packet(FIN | ACK), &client);
    _ = steer(&memory, &packet(FIN | ACK), &translated.reversed());
    assert_eq!(memory.active.borrow()[&WORKER1], 0);
    // The entry with the worker's end is evicted, and restored without it at the client's last packet.
    memory.established.remove(&translated.reversed());
    memory.now_ns.set(memory.now_ns.get() + 2 * SECOND);
    _ = steer(&memory, &packet(ACK), &client);
    assert_eq!(memory.established.entries().len(), 2);

    _ = connects(&memory, &client);
    assert_eq!(memory.active.borrow()[&WORKER1], 1);
    let entries = memory.established.entries();
    let live = entries.values().filter(|flow| flow.superseded == 0);
    assert_eq!(live.count(), 2);
}

#[test]
fn a_flow_whose_port_another_handshake_took_does_not_go_on() {
    let memory = small_lab();
    let client = key(([10, 0, 0, 9], 40_000), SERVICE);
    let translated = connects(&memory, &client);
    memory.established.remove(&translated.reversed());
    let mut others = (40_001..40_101).map(|port| key(([10, 0, 0, 8], port), SERVICE));
    assert!(others.any(|other| steer(&memory, &packet(SYN), &other).translated == translated));
    memory.wait(2 * SECOND);
    let decision = steer(&memory, &packet(ACK), &client);
    assert_eq!(
        (decision.verdict, decision.exit),
        (Verdict::NoFlow, Exit::Pass)
    );
}

#[test]
fn an_established_table_without_room_refuses_the_connection() {
    let memory = lab(2);
    for host in [8, 9] {
        let client = key(([10, 0, 0, host], 40_000), SERVICE);
        let syn = steer(&memory, &packet(SYN), &client);
        assert_eq!(syn.verdict, Verdict::ToBackend);
        _ = steer(&memory, &answer_to_syn(), &syn.translated.reversed());
        let ack = steer(&memory, &packet(ACK), &client);
        if host == 9 {
            assert_eq!((ack.verdict, ack.exit), (Verdict::TableFull, Exit::Pass));
        } else {
            assert_eq!(ack.verdict, Verdict::ToBackend);
        }
    }
}

#[test]
fn without_ports_none_is_given() {
    let mut memory = lab(16);
    memory.settings.nat_port_count = 0;
    let client = key(([10, 0, 0, 9], 40_000), SERVICE);
    let syn = steer(&memory, &packet(SYN), &client);
    assert_eq!(
        (syn.verdict, syn.exit),
        (Verdict::PortsExhausted, Exit::Pass)
    );
    assert!(memory.handshakes().is_empty());
}

#[test]
fn the_connections_of_one_client_never_share_a_port() {
    let memory = lab(65_536);
    let mut given = BTreeSet::new();
    for port in 32_768..=60_999 {
        let client = key(([10, 0, 0, 9], port), SERVICE);
        let translated = connects(&memory, &client);
        assert!(given.insert(translated.source_port));
    }
}

/// Chance gives some buckets more clients than others.
#[test]
fn connections_of_many_clients_find_ports_until_most_are_taken() {
    let mut memory = lab(8_192);
    memory.settings.nat_port_count = 4_096;
    memory.settings.half_open_buckets = 4_096 / SLOTS_PER_BUCKET;
    let clients = 4_096_u32 * 8 / 10;
    let mut refused = 0;
    for client in 0..clients {
        let mut random = DefaultHasher::new();
        client.hash(&mut random);
        let [a, b, c, d, e, ..] = random.finish().to_be_bytes();
        let source = ([11, a, b, c], u16::from_be_bytes([d | 4, e]));
        let syn = steer(&memory, &packet(SYN), &key(source, SERVICE));
        if syn.verdict == Verdict::PortsExhausted {
            refused += 1;
            continue;
        }
        _ = steer(&memory, &answer_to_syn(), &syn.translated.reversed());
        _ = steer(&memory, &packet(ACK), &key(source, SERVICE));
    }
    // With one bucket for each, it were some 60.
    assert!(refused <= 10, "{refused} of {clients}");
}

/// XDP sends nothing to where no reply has shown the link addresses: TC decides behind it, on tables that are
/// as they were.
#[test]
fn what_xdp_leaves_to_tc_is_decided_once() {
    let mut memory = lab(16);
    memory.backends[WORKER1 as usize].mode = mode::DSR;
    let mut client = key(([10, 0, 0, 9], 40_000), SERVICE);
    client.protocol = PROTOCOL_UDP.into();
    let service = ServiceKey {
        protocol: PROTOCOL_UDP,
        ..*memory.services.keys().next().unwrap()
    };
    memory.services.insert(service, Service { id: 0, flags: 0 });
    let meets_both = |flags: u8, client: &FlowKey| {
        for in_driver in [true, false] {
            let original = PacketMeta {
                in_driver,
                ..packet(flags)
            };
            let decision = steer(&memory, &original, client);
            assert_eq!(decision.verdict, Verdict::ToBackend);
        }
    };
    for bytes in [54, 108] {
        meets_both(0, &client);
        assert_eq!(memory.established.entries().len(), 0);
        assert_eq!(memory.handshakes()[0].bytes_in, bytes);
    }
    meets_both(0, &client);
    assert_eq!(memory.established.entries().len(), 2);

    let client = key(([10, 0, 0, 9], 40_001), SERVICE);
    meets_both(SYN, &client);
    meets_both(RST, &client);
    assert!(memory.handshakes().is_empty());
}

#[test]
fn a_refusal_by_the_worker_passes_xdp_and_tc() {
    let memory = lab(16);
    let client = key(([10, 0, 0, 9], 40_000), SERVICE);
    let from_vlan = PacketMeta {
        source_mac: client_mac(9).tagged(Mac::tag_of(5)),
        ..packet(SYN)
    };
    let translated = steer(&memory, &from_vlan, &client).translated;
    for in_driver in [true, false] {
        let refusal = PacketMeta {
            in_driver,
            ..packet(RST | ACK)
        };
        let decision = steer(&memory, &refusal, &translated.reversed());
        assert_eq!(decision.verdict, Verdict::ToClient);
    }
    assert!(memory.handshakes().is_empty());
}

#[test]
fn no_client_connects_from_where_no_host_can_be() {
    let memory = lab(16);
    for source in [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
        SERVICE.0,
    ] {
        let syn = steer(&memory, &packet(SYN), &key((source, 40_000), SERVICE));
        assert_eq!((syn.verdict, syn.exit), (Verdict::Malformed, Exit::Pass));
    }
    assert!(memory.handshakes().is_empty());
}

/// The kernel's own servers serve them, too (`ip_route_input_slow`; for 0.0.0.0/8 Linux 5.3, 96125bf9985a).
#[test]
fn reserved_addresses_that_hosts_may_have_are_served() {
    for source in [
        [0, 0, 0, 1],
        [0, 77, 0, 10],
        [240, 0, 0, 1],
        [255, 255, 255, 254],
    ] {
        let memory = lab(16);
        _ = connects(&memory, &key((source, 40_000), SERVICE));
    }
}

#[test]
fn a_denied_client_begins_and_completes_nothing() {
    let mut memory = lab(16);
    let [fresh, begun] = [9, 10].map(|host| key(([10, 0, 0, host], 40_000), SERVICE));
    let translated = steer(&memory, &packet(SYN), &begun).translated;
    _ = steer(&memory, &answer_to_syn(), &translated.reversed());
    memory.denied = [fresh, begun].map(|key| key.source.mapped()).to_vec();
    for (key, flags) in [(fresh, SYN), (fresh, ACK), (begun, ACK), (begun, SYN)] {
        let decision = steer(&memory, &packet(flags), &key);
        assert_eq!(
            (decision.verdict, decision.exit),
            (Verdict::Denied, Exit::Drop)
        );
    }
    assert!(memory.established.entries().is_empty());
    memory.denied.clear();
    assert_eq!(
        steer(&memory, &packet(ACK), &begun).verdict,
        Verdict::ToBackend
    );
}

#[test]
fn own_addresses_never_come_from_the_network_and_workers_only_by_their_interface() {
    let mut memory = lab(16);
    let (own, near, far) = ([10, 0, 0, 2], [10, 0, 0, 101], [10, 0, 1, 102]);
    memory.homes = [(own, 0), (near, ETH), (far, ETH + 1)].into();
    for (source, verdict) in [
        (own, Verdict::Malformed),
        (far, Verdict::Malformed),
        (near, Verdict::ToBackend),
    ] {
        let syn = steer(&memory, &packet(SYN), &key((source, 40_000), SERVICE));
        assert_eq!(syn.verdict, verdict, "{source:?}");
    }
}

/// Two managers that have each other for workers.
#[test]
fn what_goes_round_between_managers_ends() {
    let mut memory = lab(16);
    memory.homes = [([10, 0, 0, 101], ETH)].into();
    let from_worker = key(([10, 0, 0, 101], 40_000), SERVICE);
    let last = PacketMeta {
        time_to_live: 1,
        ..packet(SYN)
    };
    let dropped = steer(&memory, &last, &from_worker);
    assert_eq!(
        (dropped.verdict, dropped.exit),
        (Verdict::TimeToLive, Exit::Drop)
    );
    let client = key(([10, 0, 0, 9], 40_000), SERVICE);
    assert_eq!(steer(&memory, &last, &client).verdict, Verdict::ToBackend);
}

#[test]
fn a_link_local_sender_reaches_a_link_local_service_only() {
    let mut memory = lab(16);
    let sender = ([169, 254, 7, 9], 40_000);
    let syn = steer(&memory, &packet(SYN), &key(sender, SERVICE));
    assert_eq!(syn.verdict, Verdict::Malformed);
    let local = ([169, 254, 7, 1], 80);
    let service = ServiceKey {
        address: local.0.mapped(),
        ..*memory.services.keys().next().unwrap()
    };
    memory.services.insert(service, Service { id: 0, flags: 0 });
    let syn = steer(&memory, &packet(SYN), &key(sender, local));
    assert_eq!(syn.verdict, Verdict::ToBackend);
}

#[test]
fn nothing_is_answered_to_a_group_or_to_no_host() {
    let mut memory = lab(16);
    let client = key(([10, 0, 0, 9], 40_000), SERVICE);
    for mac in [
        [0; 6],
        [0xff; 6],
        [1, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
    ] {
        let from = |flags| PacketMeta {
            source_mac: Mac::from(mac),
            ..packet(flags)
        };
        let syn = steer(&memory, &from(SYN), &client);
        assert_eq!((syn.verdict, syn.exit), (Verdict::Malformed, Exit::Drop));
        assert!(memory.handshakes().is_empty());

        let translated = connects(&memory, &client);
        _ = steer(&memory, &from(ACK), &client);
        let answer = steer(&memory, &packet(ACK), &translated.reversed());
        assert_eq!(answer.destination_mac, packet(ACK).source_mac);
        memory = lab(16);
    }
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    /// A client sends a segment to the service.
    Request {
        client: usize,
        flags: u8,
        guesses: bool,
    },
    /// A worker sends a segment to one of the manager's ports, or to a client in mode `routed`.
    Reply {
        worker: usize,
        port: u16,
        flags: u8,
    },
    Wait {
        seconds: u64,
    },
    Select {
        backend: u32,
    },
    State {
        backend: u32,
        state: u8,
    },
    /// The kernel makes room by taking an entry that was not used for a while.
    Evict {
        established: bool,
        index: prop::sample::Index,
    },
}

const CLIENTS: [([u8; 4], u16); 6] = [
    ([10, 0, 0, 9], 40_000),
    ([10, 0, 0, 9], 40_001),
    ([10, 0, 0, 8], 40_000),
    ([10, 0, 0, 8], 50_000),
    ([10, 0, 1, 7], 1_024),
    ([172, 16, 0, 1], 65_535),
];

const PORTS: std::ops::Range<u16> = 5_000..5_004;

fn event(evictions: bool) -> impl Strategy<Value = Event> {
    let flags = || {
        prop_oneof![
            4 => Just(SYN),
            4 => Just(SYN | ACK),
            6 => Just(ACK),
            2 => Just(FIN | ACK),
            1 => Just(RST),
            1 => any::<u8>(),
        ]
    };
    let request = (0..CLIENTS.len(), flags(), prop::bool::weighted(0.1)).prop_map(
        |(client, flags, guesses)| Event::Request {
            client,
            flags,
            guesses,
        },
    );
    let reply = (0..3_usize, PORTS, flags()).prop_map(|(worker, port, flags)| Event::Reply {
        worker,
        port,
        flags,
    });
    let wait =
        prop::sample::select(vec![1, 2, 15, 40, 4_000]).prop_map(|seconds| Event::Wait { seconds });
    let select = (0..5_u32).prop_map(|backend| Event::Select { backend });
    let change = (1..4_u32, 0..4_u8).prop_map(|(backend, state)| Event::State { backend, state });
    let evict = (any::<bool>(), any::<prop::sample::Index>())
        .prop_map(|(established, index)| Event::Evict { established, index });
    let evict_weight = if evictions { 4 } else { 0 };
    prop_oneof![
        20 => request,
        20 => reply,
        4 => wait,
        2 => select,
        3 => change,
        evict_weight => evict,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_two_flows_ever_share_a_tuple(
        mode in prop::sample::select(vec![mode::NAT, mode::ROUTED]),
        events in prop::collection::vec(event(false), 1..200),
    ) {
        let mut memory = small_lab();
        memory.settings.per_client = u32::MAX;
        serves_by(&mut memory, mode);
        for event in events {
            happens(&mut memory, &event)?;
            every_entry_has_its_reverse_entry(&memory)?;
            every_connection_counts_for_its_client(&memory)?;
        }
    }

    #[test]
    fn no_packet_ever_reaches_another_client(
        mode in prop::sample::select(vec![mode::NAT, mode::ROUTED]),
        events in prop::collection::vec(event(true), 1..200),
    ) {
        let mut memory = small_lab();
        serves_by(&mut memory, mode);
        for event in events {
            happens(&mut memory, &event)?;
        }
    }
}

#[test]
fn the_end_of_a_connection_outlives_the_direction_that_is_never_seen() {
    let mut memory = lab(16);
    memory.backends[WORKER1 as usize].mode = mode::DSR;
    let client = key(([10, 0, 0, 9], 40_000), SERVICE);
    let segment = |sequence, flags| PacketMeta {
        sequence,
        ..packet(flags)
    };
    assert_eq!(steer(&memory, &segment(0, SYN), &client).new_connection, 1);
    _ = steer(&memory, &segment(1, ACK), &client);
    _ = steer(&memory, &segment(2, ACK), &client);
    memory.established.remove(&client.reversed());
    memory.wait(2 * SECOND);
    _ = steer(&memory, &segment(1, ACK), &client);
    assert_eq!(memory.established.entries().len(), 2);
    _ = steer(&memory, &segment(1, FIN | ACK), &client);
    assert_eq!(memory.active.borrow()[&WORKER1], 0);
    memory.selection[0] = WORKER2;
    assert_eq!(steer(&memory, &segment(9, SYN), &client).backend, WORKER2);
}

/// SYNs and ACKs of forged clients, whose sender knows the numbers that it has chosen itself, to a service whose
/// answers do not come by here: 6,000 pairs a second, with 20 new clients in every second, 100 ms away.
#[test]
fn forged_handshakes_cost_no_direct_connection() {
    const HONEST: u32 = 200;
    const PAIRS: u32 = 300;
    let mut memory = lab(2 * HONEST as usize);
    memory.backends[WORKER1 as usize].mode = mode::DSR;
    let segment = |sequence, acknowledgement, flags| PacketMeta {
        sequence,
        acknowledgement,
        ..packet(flags)
    };
    let steps = [
        segment(0, 0, SYN),
        segment(1, 78, ACK),
        segment(1, 1_500, ACK),
    ];
    for step in 0..HONEST + 2 {
        for (late, packet) in (0..).zip(&steps) {
            let Some(number) = step.checked_sub(late).filter(|it| *it < HONEST) else {
                continue;
            };
            let honest = ([10, 0, 1, number as u8], 40_000);
            let decision = steer(&memory, packet, &key(honest, SERVICE));
            assert_eq!(decision.verdict, Verdict::ToBackend, "{number}, {late}");
        }
        for forged in 0..PAIRS {
            let [a, b, c, d] = (step * PAIRS + forged)
                .wrapping_mul(0x9e37_79b1)
                .to_be_bytes();
            let forged = ([11, a, b, c], 1_024 + u16::from(d));
            for packet in &steps[..2] {
                _ = steer(&memory, packet, &key(forged, SERVICE));
            }
        }
        memory.wait(SECOND / 20);
    }
    assert_eq!(memory.established.entries().len(), 2 * HONEST as usize);
    assert_eq!(memory.active.borrow()[&WORKER1], HONEST);
}

/// Pairs of datagrams from forged clients, 2,500 a second for 30 s, which the worker answers.
#[test]
fn forged_datagrams_refuse_no_other_client() {
    let mut memory = lab(16);
    let service = ServiceKey {
        protocol: PROTOCOL_UDP,
        ..*memory.services.keys().next().unwrap()
    };
    memory.services.insert(service, Service { id: 0, flags: 0 });
    let of_datagrams = |(endpoint, pool): (&ServiceKey, &u32)| {
        let endpoint = ServiceKey {
            protocol: PROTOCOL_UDP,
            ..*endpoint
        };
        (endpoint, *pool)
    };
    let pools: Vec<_> = memory.endpoints.iter().map(of_datagrams).collect();
    memory.endpoints.extend(pools);
    let asks = |memory: &Memory, source, times| {
        let client = FlowKey {
            protocol: PROTOCOL_UDP.into(),
            ..key(source, SERVICE)
        };
        let mut answered = 0;
        for _ in 0..times {
            let asked = steer(memory, &packet(0), &client);
            if asked.verdict == Verdict::ToBackend {
                let answer = steer(memory, &packet(0), &asked.translated.reversed());
                answered += u32::from(answer.verdict == Verdict::ToClient);
            }
        }
        answered
    };
    let mut answered = 0;
    for honest in 0..300_u32 {
        for forged in 0..250 {
            let [a, b, c, d] = (honest * 250 + forged)
                .wrapping_mul(0x9e37_79b1)
                .to_be_bytes();
            _ = asks(&memory, ([11, a, b, c], 1_024 + u16::from(d)), 2);
        }
        answered += asks(
            &memory,
            ([10, 1, (honest >> 8) as u8, honest as u8], 40_000),
            1,
        );
        memory.wait(SECOND / 10);
    }
    assert_eq!(answered, 300);
    assert!(memory.established.entries().is_empty());
}

#[test]
fn a_connection_for_which_there_is_no_room_leaves_nothing_behind() {
    let memory = lab(3);
    for host in [8, 9] {
        let client = key(([10, 0, 0, host], 40_000), SERVICE);
        let syn = steer(&memory, &packet(SYN), &client);
        _ = steer(&memory, &answer_to_syn(), &syn.translated.reversed());
        let ack = steer(&memory, &packet(ACK), &client);
        assert_eq!(ack.verdict == Verdict::TableFull, host == 9);
        assert_eq!(memory.established.entries().len(), 2);
    }
}

/// Lets `event` happen, and checks the decision that it leads to.
fn happens(memory: &mut Memory, event: &Event) -> Result<(), TestCaseError> {
    match *event {
        Event::Request {
            client,
            flags,
            guesses,
        } => {
            let key = key(CLIENTS[client], SERVICE);
            let mut packet = packet(flags);
            packet.source_mac = client_mac(client);
            if guesses {
                packet.acknowledgement = 1 << 31;
            }
            let decision = steer(memory, &packet, &key);
            is_consistent(&decision, &packet)?;
            if decision.exit == Exit::Backend {
                the_answer_reaches(memory, client, &decision)?;
            }
        }
        Event::Reply {
            worker,
            port,
            flags,
        } => reply_is_restored(memory, worker, port, flags)?,
        Event::Wait { seconds } => memory.wait(seconds * SECOND + SECOND / 2),
        Event::Select { backend } => memory.selection[0] = backend,
        Event::State { backend, state } => memory.backends[backend as usize].state = state,
        Event::Evict {
            established: true,
            index,
        } => {
            let idle = memory
                .established
                .untouched_since(memory.now_ns.get() - SECOND);
            if !idle.is_empty() {
                memory.established.remove(index.get(&idle));
            }
        }
        Event::Evict { index, .. } => index.get(&memory.half_open).borrow_mut().backend = 0,
    }
    Ok(())
}

/// The worker's answer to a forwarded packet must reach the packet's client, or no client.
fn the_answer_reaches(
    memory: &Memory,
    client: usize,
    request: &Decision,
) -> Result<(), TestCaseError> {
    let tables = memory.clone();
    let answer = steer(&tables, &packet(ACK), &request.translated.reversed());
    if answer.exit == Exit::Pass {
        // Its entry was evicted during the handshake.
        prop_assert!(matches!(answer.verdict, Verdict::NotOurs | Verdict::NoFlow));
        return Ok(());
    }
    prop_assert_eq!(answer.exit, Exit::Client);
    prop_assert_eq!(answer.translated, key(CLIENTS[client], SERVICE).reversed());
    if tables
        .established
        .entries()
        .contains_key(&request.translated.reversed())
    {
        prop_assert_eq!(answer.destination_mac, client_mac(client));
    }
    Ok(())
}

/// A worker's packet reaches a client only as an answer of the service.
fn reply_is_restored(
    memory: &Memory,
    worker: usize,
    port: u16,
    flags: u8,
) -> Result<(), TestCaseError> {
    let from_fallback = worker == 2;
    let backend = &memory.backends[worker + 1];
    let source = (V4::from_mapped(&backend.address), backend.port);
    let client = CLIENTS[usize::from(port - PORTS.start)];
    let (hook, key) = match backend.mode {
        mode::LOCAL => (Hook::Egress, key(source, client)),
        mode::ROUTED => (Hook::Ingress, key(source, client)),
        _ => (Hook::Ingress, key(source, (MANAGER, port))),
    };
    let packet = PacketMeta {
        hook,
        sequence: WORKER_START,
        ..packet(flags)
    };
    let decision = steer(memory, &packet, &key);
    is_consistent(&decision, &packet)?;
    if decision.exit != Exit::Pass {
        prop_assert_eq!(decision.translated.source, SERVICE.0);
        prop_assert_eq!(
            u16::from_be_bytes(decision.translated.source_port),
            SERVICE.1
        );
        prop_assert_eq!(from_fallback, decision.exit == Exit::Local);
    }
    Ok(())
}

fn is_consistent(decision: &Decision, packet: &PacketMeta) -> Result<(), TestCaseError> {
    let exit = match decision.verdict {
        Verdict::ToBackend => Exit::Backend,
        // While the client does not acknowledge.
        Verdict::ToClient if decision.exit == Exit::ClientByRoute => Exit::ClientByRoute,
        Verdict::ToClient => Exit::Client,
        Verdict::ToManager | Verdict::FromManager => Exit::Local,
        _ => Exit::Pass,
    };
    prop_assert_eq!(decision.exit, exit);
    if decision.new_connection != 0 {
        prop_assert!(packet.flags.is_syn());
        prop_assert!(matches!(exit, Exit::Backend | Exit::Local));
    }
    Ok(())
}

fn every_entry_has_its_reverse_entry(memory: &Memory) -> Result<(), TestCaseError> {
    let mut worker_sides = BTreeSet::new();
    let mut counted = BTreeMap::new();
    let entries = memory.established.entries();
    for (key, flow) in entries.iter().filter(|(_, flow)| flow.superseded == 0) {
        let twin = entries.get(&flow.translated.reversed());
        let twin = twin.ok_or_else(|| TestCaseError::fail(format!("{flow:?} is alone")))?;
        prop_assert_eq!(twin.translated.reversed(), *key);
        prop_assert_eq!(twin.superseded, 0);
        prop_assert_eq!(twin.backend, flow.backend);
        prop_assert_ne!(twin.direction, flow.direction);
        if flow.direction == direction::REQUEST {
            prop_assert!(
                worker_sides.insert(flow.translated),
                "{:?} is shared",
                flow.translated
            );
            let is_open = !ended::both(flow.ended, twin.ended);
            prop_assert_eq!(flow.counted == 1, is_open);
            *counted.entry(flow.backend).or_insert(0) += u32::from(is_open);
        }
    }
    for (backend, active) in memory.active.borrow().iter() {
        prop_assert_eq!(*active, counted.get(backend).copied().unwrap_or(0));
    }
    let now = memory.now_ns.get();
    for handshake in memory.handshakes() {
        if now - handshake.syn_ns <= memory.settings.half_open_idle_ns {
            prop_assert!(
                worker_sides.insert(handshake.translated),
                "{:?} is shared",
                handshake.translated
            );
        }
    }
    Ok(())
}

fn every_connection_counts_for_its_client(memory: &Memory) -> Result<(), TestCaseError> {
    let mut present: BTreeMap<_, u64> = BTreeMap::new();
    let entries = memory.established.entries();
    let open = entries.iter().filter(|(_, flow)| flow.counted == 1);
    let open = open.map(|(key, _)| key.source);
    let half_open = memory.handshakes();
    let half_open = half_open.iter().map(|it| it.client.source);
    for client in open.chain(half_open) {
        *present.entry(client.prefix()).or_default() += 1;
    }
    let mut counted = memory.clients.borrow().clone();
    counted.retain(|_, count| *count != 0);
    prop_assert_eq!(counted, present);
    Ok(())
}

/// With fewer ports than clients, so that they meet.
/// Two workers and the fallback.
fn lab(capacity: usize) -> Memory {
    let backends = [
        backend(([10, 0, 0, 101], 8_081), mode::NAT),
        backend(([10, 0, 0, 102], 8_082), mode::NAT),
        backend((MANAGER, 8_080), mode::LOCAL),
    ];
    laboratory(capacity, &backends)
}

fn small_lab() -> Memory {
    let mut memory = lab(64);
    memory.settings.nat_port_first = PORTS.start;
    memory.settings.nat_port_count = PORTS.len().try_into().unwrap();
    memory.settings.pool_words = 1;
    memory.settings.source_words = 1;
    memory.settings.half_open_buckets = 1;
    memory.half_open.truncate(SLOTS_PER_BUCKET as usize);
    memory
}

/// Has the workers reached by a mode.
fn serves_by(memory: &mut Memory, mode: u8) {
    for worker in [WORKER1, WORKER2] {
        memory.backends[worker as usize].mode = mode;
    }
}

fn client_mac(client: usize) -> Mac {
    Mac::from([2, 0, 0, 0, 1, u8::try_from(client).unwrap()])
}
