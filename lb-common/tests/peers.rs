//! Two managers of the same services: what one reports, the other carries on.

mod laboratory;

use laboratory::{
    ACK, ETH, FIN, MANAGER, Memory, RST, SECOND, SERVICE, SYN, Socket, WORKER_START, WORKER1,
    WORKER2, admit, answer_to_syn, backend, completes, connects, key, laboratory, packet, steer,
};
use lb_common::{
    address::Address,
    maps::{
        Admission, FlowKey, FlowRecord, Mac, PeerLink, PeerLinks, PeerSwitch, Service, direction,
        ended, mode, record_kind, service_flag, ticks,
    },
    steer::{Exit, PacketMeta},
    verdict::Verdict,
};

const WORKER: Socket = ([10, 0, 0, 3], 8081);
const CLIENT: Socket = ([10, 0, 0, 9], 40_000);
/// The second manager's NAT address.
const OTHER_MANAGER: [u8; 4] = [10, 0, 0, 2];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A manager that reports its connections, with two workers of this mode.
fn manager(mode: u8) -> Memory {
    let second = ([10, 0, 0, 4], 8082);
    let mut memory = laboratory(64, &[backend(WORKER, mode), backend(second, mode)]);
    memory.switch.reports = 1;
    memory
}

/// The second manager, with other ids and a NAT address of its own.
fn second_manager(mode: u8) -> Memory {
    let mut memory = manager(mode);
    memory.backends.swap(WORKER1 as usize, WORKER2 as usize);
    memory.backends[WORKER1 as usize].source = OTHER_MANAGER.mapped();
    memory.backends[WORKER2 as usize].source = OTHER_MANAGER.mapped();
    memory.selection[0] = WORKER2;
    memory.peers.insert(
        ETH,
        PeerLinks {
            links: [
                PeerLink {
                    mac: PEER_MAC.into(),
                    own_mac: [2, 0, 0, 0, 0, 1].into(),
                },
                PeerLink::default(),
                PeerLink::default(),
                PeerLink::default(),
                PeerLink::default(),
                PeerLink::default(),
                PeerLink::default(),
            ],
        },
    );
    memory.switch.interfaces = 1;
    memory
}

/// The records that the first manager has made since the last call, with the second one's ids.
fn translated(memory: &Memory) -> Vec<FlowRecord> {
    let records = memory.records.take().into_iter();
    let own = |record| FlowRecord {
        backend: WORKER2,
        ..record
    };
    records.map(own).collect()
}

fn client() -> FlowKey {
    key(CLIENT, SERVICE)
}

/// An established connection's record.
fn opened(memory: &Memory) -> FlowRecord {
    connects(memory, &client());
    let records = translated(memory);
    let [record] = records[..] else {
        panic!("one record: {records:?}");
    };
    record
}

fn active(memory: &Memory, backend: u32) -> u32 {
    memory.active.borrow().get(&backend).copied().unwrap_or(0)
}

fn relayed(flags: u8) -> PacketMeta {
    PacketMeta {
        source_mac: PEER_MAC.into(),
        ..packet(flags)
    }
}

#[test]
fn a_connection_is_reported_when_it_opens_and_when_it_ends_but_no_handshake() {
    for mode in [mode::NAT, mode::ROUTED] {
        let memory = manager(mode);
        let syn = steer(&memory, &packet(SYN), &client());
        assert!(memory.records.borrow().is_empty());
        completes(&memory, &client(), &syn.translated);
        let records = memory.records.take();
        let [record] = records[..] else {
            panic!("one record: {records:?}");
        };
        assert_eq!(record.kind, record_kind::OPENED);
        assert_eq!(record.client_key::<[u8; 4]>(), client());
        assert_eq!(record.source, syn.translated.source.mapped());
        assert_eq!(record.source_port, syn.translated.source_port);
        assert_eq!(record.sequences, [0, WORKER_START]);
        assert_eq!((record.backend, record.carried), (WORKER1, 1));
        steer(&memory, &packet(ACK), &client());
        assert!(memory.records.borrow().is_empty());
        steer(&memory, &packet(FIN | ACK), &client());
        steer(&memory, &packet(FIN | ACK), &syn.translated.reversed());
        let records = memory.records.take();
        let [record] = records[..] else {
            panic!("one record: {records:?}");
        };
        assert_eq!(record.kind, record_kind::ENDED);
        assert_eq!(record.client_key::<[u8; 4]>(), client());
        assert_eq!(record.ended, [ended::FIN, ended::FIN]);
    }
}

#[test]
fn a_connection_of_the_managers_own_server_is_not_reported() {
    let memory = manager(mode::LOCAL);
    let syn = steer(&memory, &packet(SYN), &client());
    assert_eq!(syn.verdict, Verdict::ToManager);
    let leaves = PacketMeta {
        hook: lb_common::steer::Hook::Egress,
        ..answer_to_syn()
    };
    steer(&memory, &leaves, &syn.translated.reversed());
    steer(&memory, &packet(ACK), &client());
    assert_eq!(memory.established.entries().len(), 2);
    assert!(memory.records.borrow().is_empty());
}

#[test]
fn a_revived_connection_is_reported_again() {
    let memory = manager(mode::NAT);
    connects(&memory, &client());
    steer(&memory, &packet(RST), &client());
    memory.wait(SECOND);
    steer(&memory, &packet(ACK), &client());
    let kinds: Vec<u8> = memory.records.take().iter().map(|it| it.kind).collect();
    assert_eq!(
        kinds,
        [record_kind::OPENED, record_kind::ENDED, record_kind::OPENED]
    );
}

#[test]
fn a_connection_goes_on_at_the_other_manager() {
    for mode in [mode::NAT, mode::ROUTED, mode::DSR] {
        let first = manager(mode);
        let second = second_manager(mode);
        let record = if mode == mode::DSR {
            steer(&first, &packet(SYN), &client());
            for flags in [ACK, ACK] {
                let packet = PacketMeta {
                    sequence: 1 + u32::from(flags == ACK) * first.now_ns.get() as u32 % 2,
                    ..packet(flags)
                };
                steer(&first, &packet, &client());
            }
            let sent = PacketMeta {
                sequence: 100,
                ..packet(ACK)
            };
            steer(&first, &sent, &client());
            translated(&first)[0]
        } else {
            opened(&first)
        };
        let (arrives, _) = first.established.entries().pop_first().unwrap();
        assert_eq!(admit(&second, &record), Admission::Inserted, "{mode}");
        assert_eq!(active(&second, WORKER2), 1);
        let entries = second.established.entries();
        assert_eq!(
            entries.keys().collect::<Vec<_>>(),
            first.established.entries().keys().collect::<Vec<_>>()
        );
        assert!(entries.values().all(|flow| flow.bytes == 0));
        let expected = entries[&client()].translated;
        let sent = PacketMeta {
            sequence: 200,
            ..packet(ACK)
        };
        let decision = steer(&second, &sent, &client());
        assert_eq!(decision.verdict, Verdict::ToBackend);
        assert_eq!((decision.backend, decision.translated), (WORKER2, expected));
        if mode != mode::DSR {
            let answers = PacketMeta {
                sequence: WORKER_START + 1,
                ..packet(ACK)
            };
            let decision = steer(&second, &answers, &expected.reversed());
            assert_eq!(decision.verdict, Verdict::ToClient);
            assert_eq!(decision.destination_mac, record.client_mac);
        }
        _ = arrives;
    }
}

#[test]
fn a_client_that_only_listens_goes_on_behind_another_router() {
    for mode in [mode::NAT, mode::ROUTED] {
        let first = manager(mode);
        let record = opened(&first);
        let second = second_manager(mode);
        admit(&second, &record);
        for memory in [&first, &second] {
            let to_client = memory.established.entries()[&client()]
                .translated
                .reversed();
            let answers = || {
                let answer = PacketMeta {
                    sequence: WORKER_START + 1,
                    ..packet(ACK)
                };
                steer(memory, &answer, &to_client)
            };
            // The worker repeats its segment after 0.2 s, and each time after twice as long.
            let mut exits = Vec::new();
            for tenths in [2, 4, 8, 16] {
                memory.wait(tenths * SECOND / 10);
                exits.push(answers().exit);
            }
            let expected = [
                Exit::Client,
                Exit::Client,
                Exit::Client,
                Exit::ClientByRoute,
            ];
            assert_eq!(exits, expected, "{mode}, three seconds");
            // The client acknowledges through its other router.
            let moved = PacketMeta {
                source_mac: Mac::from([2, 0, 0, 0, 0, 99]),
                ..packet(ACK)
            };
            steer(memory, &moved, &client());
            let decision = answers();
            assert_eq!(decision.exit, Exit::Client);
            assert_eq!(decision.destination_mac, moved.source_mac);
        }
    }
}

#[test]
fn a_record_that_comes_twice_counts_once_and_renews_the_age() {
    let record = opened(&manager(mode::NAT));
    let second = second_manager(mode::NAT);
    admit(&second, &record);
    second.wait(60 * SECOND);
    let sweep = FlowRecord {
        kind: record_kind::PRESENT,
        last_seen_ticks: record.last_seen_ticks + 100,
        sequences: [5_000_000, 6_000_000],
        ..record
    };
    assert_eq!(admit(&second, &sweep), Admission::Refreshed);
    assert_eq!(active(&second, WORKER2), 1);
    for flow in second.established.entries().values() {
        assert_eq!(flow.last_seen_ticks, record.last_seen_ticks + 100);
        let number = match flow.direction {
            direction::REQUEST => 5_000_000,
            _ => 6_000_000,
        };
        assert_eq!(flow.sequence, number);
    }
    // What is carried here knows better.
    let sent = PacketMeta {
        sequence: 5_000_001,
        ..packet(ACK)
    };
    steer(&second, &sent, &client());
    assert_eq!(admit(&second, &sweep), Admission::Refreshed);
    assert_eq!(second.established.entries()[&client()].sequence, 5_000_001);
}

#[test]
fn stale_numbers_are_replaced_by_the_first_packets() {
    let record = opened(&manager(mode::NAT));
    let second = second_manager(mode::NAT);
    admit(&second, &record);
    let far = |sequence, acknowledgement, flags| PacketMeta {
        sequence,
        acknowledgement,
        ..packet(flags)
    };
    let leaves = second.established.entries()[&client()].translated;
    steer(&second, &far(1 << 29, 1 << 30, ACK), &client());
    steer(&second, &far(1 << 30, 1 << 29, ACK), &leaves.reversed());
    assert_eq!(active(&second, WORKER2), 1);
    steer(&second, &far(1 << 29, 1 << 30, FIN | ACK), &client());
    steer(
        &second,
        &far(1 << 30, 1 << 29, FIN | ACK),
        &leaves.reversed(),
    );
    assert_eq!(active(&second, WORKER2), 0);
}

#[test]
fn the_end_removes_what_was_never_carried_and_marks_what_was() {
    let first = manager(mode::NAT);
    let record = opened(&first);
    let end = FlowRecord {
        kind: record_kind::ENDED,
        ended: [ended::FIN; 2],
        ..record
    };
    let second = second_manager(mode::NAT);
    assert_eq!(admit(&second, &end), Admission::Absent);
    admit(&second, &record);
    assert_eq!(admit(&second, &end), Admission::Removed);
    assert!(second.established.entries().is_empty());
    assert_eq!(active(&second, WORKER2), 0);

    admit(&second, &record);
    steer(&second, &packet(ACK), &client());
    assert_eq!(admit(&second, &end), Admission::Ended);
    assert_eq!(admit(&second, &end), Admission::Ended);
    assert_eq!(second.established.entries().len(), 2);
    assert_eq!(active(&second, WORKER2), 0);
    // A sweep that was read before the end does not revive it; a report of its begin does.
    let present = FlowRecord {
        kind: record_kind::PRESENT,
        ..record
    };
    assert_eq!(admit(&second, &present), Admission::Older);
    assert_eq!(admit(&second, &record), Admission::Refreshed);
    assert_eq!(active(&second, WORKER2), 1);
    let entries = second.established.entries();
    assert!(entries.values().all(|flow| flow.ended == 0));
}

#[test]
fn a_connection_that_no_peer_has_is_removed_unless_it_is_carried_here() {
    let record = opened(&manager(mode::NAT));
    let forgotten = FlowRecord {
        kind: record_kind::FORGOTTEN,
        ..record
    };
    let second = second_manager(mode::NAT);
    admit(&second, &record);
    assert_eq!(admit(&second, &forgotten), Admission::Removed);
    admit(&second, &record);
    steer(&second, &packet(ACK), &client());
    assert_eq!(admit(&second, &forgotten), Admission::Older);
    assert_eq!(active(&second, WORKER2), 1);
}

#[test]
fn the_end_of_a_former_connection_spares_the_next_one() {
    let record = opened(&manager(mode::NAT));
    let second = second_manager(mode::NAT);
    let next = FlowRecord {
        created_ticks: record.created_ticks + ticks(10 * SECOND),
        ..record
    };
    admit(&second, &next);
    let end = FlowRecord {
        kind: record_kind::ENDED,
        ..record
    };
    assert_eq!(admit(&second, &end), Admission::Older);
    assert_eq!(active(&second, WORKER2), 1);
}

/// A connection of the same client from another port of the manager.
fn elsewhere(record: FlowRecord, later: u64) -> FlowRecord {
    FlowRecord {
        source_port: 5_000_u16.to_be_bytes(),
        created_ticks: record.created_ticks + ticks(later),
        last_seen_ticks: record.last_seen_ticks + ticks(later),
        ..record
    }
}

#[test]
fn of_two_connections_of_a_tuple_the_newer_one_stays() {
    let record = opened(&manager(mode::NAT));
    let newer = elsewhere(record, SECOND);
    let second = second_manager(mode::NAT);
    admit(&second, &newer);
    assert_eq!(admit(&second, &record), Admission::Older);
    let second = second_manager(mode::NAT);
    admit(&second, &record);
    assert_eq!(admit(&second, &newer), Admission::Replaced);
    assert_eq!(second.established.entries().len(), 2);
    assert_eq!(
        second.established.entries()[&client()]
            .translated
            .source_port,
        newer.source_port
    );
    assert_eq!(active(&second, WORKER2), 1);
}

#[test]
fn what_passes_here_is_not_replaced_by_an_idle_one() {
    let record = opened(&manager(mode::NAT));
    let second = second_manager(mode::NAT);
    admit(&second, &record);
    second.wait(10 * SECOND);
    steer(&second, &packet(ACK), &client());
    assert_eq!(admit(&second, &elsewhere(record, SECOND)), Admission::Older);
    assert_eq!(
        admit(&second, &elsewhere(record, 20 * SECOND)),
        Admission::Replaced
    );
    assert_eq!(active(&second, WORKER2), 1);
}

#[test]
fn a_port_that_changed_hands_belongs_to_the_newer_client() {
    let record = opened(&manager(mode::NAT));
    let second = second_manager(mode::NAT);
    admit(&second, &record);
    let other = FlowRecord {
        client: [10, 0, 0, 8].mapped(),
        created_ticks: record.created_ticks + ticks(SECOND),
        ..record
    };
    assert_eq!(admit(&second, &other), Admission::Replaced);
    assert_eq!(second.established.entries().len(), 2);
    assert_eq!(active(&second, WORKER2), 1);
}

#[test]
fn unknown_workers_and_full_tables_are_counted() {
    let record = opened(&manager(mode::NAT));
    let second = second_manager(mode::NAT);
    for backend in [0, 3, 99] {
        let record = FlowRecord { backend, ..record };
        assert_eq!(admit(&second, &record), Admission::UnknownBackend);
    }
    let mut full = laboratory(1, &[backend(WORKER, mode::NAT)]);
    full.switch.reports = 1;
    let record = FlowRecord {
        backend: WORKER1,
        ..record
    };
    assert_eq!(admit(&full, &record), Admission::TableFull);
    assert!(full.established.entries().is_empty());
    assert_eq!(active(&full, WORKER1), 0);
}

#[test]
fn a_foreign_port_is_not_taken_from_the_own_pool() {
    let record = opened(&manager(mode::NAT));
    let second = second_manager(mode::NAT);
    admit(&second, &record);
    assert_eq!(record.source, MANAGER.mapped());
    // The next connection gets the first port of the own address.
    let other = key(([10, 0, 0, 7], 40_000), SERVICE);
    let translated = connects(&second, &other);
    assert_eq!(translated.source, OTHER_MANAGER);
    assert_eq!(translated.source_port, record.source_port);
}

#[test]
fn an_unknown_packet_goes_to_the_peers_for_a_second() {
    let memory = second_manager(mode::NAT);
    let asked = || steer(&memory, &packet(ACK), &client());
    for _ in 0..3 {
        let decision = asked();
        assert_eq!(
            (decision.verdict, decision.exit),
            (Verdict::ToPeer, Exit::Peers)
        );
        memory.wait(SECOND / 4);
    }
    memory.wait(SECOND / 4);
    assert_eq!(asked().verdict, Verdict::NoFlow);
    memory.wait(9 * SECOND);
    assert_eq!(asked().verdict, Verdict::ToPeer);
    let in_driver = PacketMeta {
        in_driver: true,
        ..packet(ACK)
    };
    let other = key(([10, 0, 0, 7], 40_000), SERVICE);
    assert_eq!(
        steer(&memory, &in_driver, &other).verdict,
        Verdict::HandedOver
    );
}

#[test]
fn packets_go_to_an_incomplete_peer_for_as_long_as_they_come() {
    let mut memory = second_manager(mode::NAT);
    memory.switch.incomplete = 1;
    for _ in 0..8 {
        let decision = steer(&memory, &packet(ACK), &client());
        assert_eq!(decision.verdict, Verdict::ToPeer);
        memory.wait(2 * SECOND);
    }
}

#[test]
fn no_peer_means_a_reset_at_once() {
    let mut memory = second_manager(mode::NAT);
    memory.switch = PeerSwitch::default();
    let decision = steer(&memory, &packet(ACK), &client());
    assert_eq!(
        (decision.verdict, decision.exit),
        (Verdict::NoFlow, Exit::Pass)
    );
    assert!(memory.unknown_flows.borrow().is_empty());
}

#[test]
fn a_packet_of_a_peer_goes_no_further() {
    let mut memory = second_manager(mode::NAT);
    let decision = steer(&memory, &relayed(ACK), &client());
    assert_eq!(
        (decision.verdict, decision.exit),
        (Verdict::UnknownToPeer, Exit::Drop)
    );
    // A worker's packet for a NAT port.
    memory.peer_addresses = vec![MANAGER.mapped()];
    let answer = key(WORKER, (MANAGER, 5_000));
    assert_eq!(
        steer(&memory, &relayed(ACK), &answer).verdict,
        Verdict::UnknownToPeer
    );
    assert_eq!(
        steer(&memory, &packet(SYN | ACK), &answer).verdict,
        Verdict::ToPeer
    );
    // Others are none of memlb's.
    for other in [
        key(WORKER, (MANAGER, 50_000)),
        key(WORKER, ([10, 0, 0, 77], 5_000)),
    ] {
        assert_eq!(
            steer(&memory, &packet(ACK), &other).verdict,
            Verdict::NotOurs
        );
    }
}

#[test]
fn a_peers_frame_does_not_say_where_the_client_is() {
    let mut memory = second_manager(mode::NAT);
    memory.selection[0] = WORKER2;
    let syn = steer(&memory, &packet(SYN), &client());
    steer(&memory, &answer_to_syn(), &syn.translated.reversed());
    memory.records.take();
    let ack = steer(&memory, &relayed(ACK), &client());
    assert_eq!(ack.verdict, Verdict::ToBackend);
    let client_mac = packet(ACK).source_mac;
    let known = || memory.established.entries()[&client()].client_mac;
    assert_eq!(known(), client_mac);
    // The connection is reported to the peer once a second, because it does not know the connection.
    memory.records.take();
    for _ in 0..40 {
        memory.wait(SECOND / 10);
        steer(&memory, &relayed(ACK), &client());
    }
    assert_eq!(known(), client_mac);
    let records = memory.records.take();
    assert!((3..=4).contains(&records.len()), "{records:?}");
    assert!(records.iter().all(|it| it.kind == record_kind::PRESENT));
    // The client's own frames do.
    let moved = PacketMeta {
        source_mac: Mac::from([2, 0, 0, 0, 0, 99]),
        ..packet(ACK)
    };
    steer(&memory, &moved, &client());
    assert_eq!(known(), moved.source_mac);
}

#[test]
fn an_unknown_client_is_reported_once_for_the_agents() {
    let mut memory = manager(mode::DSR);
    let service = Service {
        id: 0,
        flags: service_flag::QUERY_AGENTS,
    };
    memory
        .services
        .insert(laboratory::service_key(SERVICE), service);
    let sent = PacketMeta {
        sequence: 4711,
        ..packet(ACK)
    };
    for _ in 0..3 {
        let decision = steer(&memory, &sent, &client());
        assert_eq!(
            (decision.verdict, decision.exit),
            (Verdict::LookupPending, Exit::Drop)
        );
        memory.wait(SECOND / 4);
    }
    let reported = memory.reported.take();
    let [record] = reported[..] else {
        panic!("one record: {reported:?}");
    };
    assert_eq!(record.kind, record_kind::UNKNOWN_CLIENT);
    assert_eq!(record.client_key::<[u8; 4]>(), client());
    assert_eq!(record.sequences, [4711, WORKER_START + 1]);
    assert_eq!(
        steer(&memory, &packet(RST), &client()).verdict,
        Verdict::NoFlow
    );
    memory.wait(SECOND);
    assert_eq!(steer(&memory, &sent, &client()).verdict, Verdict::NoFlow);
}
