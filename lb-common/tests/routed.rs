//! Mode `routed`: the worker sees the client's address, and its answers pass the manager on their way.

mod laboratory;

use laboratory::{
    ACK, FIN, MANAGER, Memory, RST, SECOND, SERVICE, SYN, WORKER1, WORKER2, answer_to_syn, backend,
    connects, key, laboratory, packet, service_key, steer,
};
use lb_common::{
    headers::PROTOCOL_UDP,
    maps::{FlowKey, LOOPBACK, Policy, Service, ServiceKey, first_choice, mode, policy},
    steer::{Decision, Exit, Hook, PacketMeta},
    verdict::Verdict,
};

const OTHER_SERVICE: ([u8; 4], u16) = (MANAGER, 443);
const CLIENT: ([u8; 4], u16) = ([198, 51, 100, 9], 40_000);
const WORKERS: [([u8; 4], u16); 2] = [([10, 0, 1, 101], 8_081), ([10, 0, 1, 102], 8_082)];

#[test]
fn only_the_destination_is_translated_and_no_port_is_taken() {
    let mut memory = lab();
    memory.settings.nat_port_count = 0;
    let client = key(CLIENT, SERVICE);
    let syn = steer(&memory, &packet(SYN), &client);
    assert_eq!((syn.verdict, syn.exit), (Verdict::ToBackend, Exit::Backend));
    assert_eq!(syn.translated, key(CLIENT, WORKERS[0]));

    let answer = steer(&memory, &answer_to_syn(), &key(WORKERS[0], CLIENT));
    assert_eq!(
        (answer.verdict, answer.exit),
        (Verdict::ToClient, Exit::Client)
    );
    assert_eq!(answer.translated, key(SERVICE, CLIENT));

    let ack = steer(&memory, &packet(ACK), &client);
    assert_eq!(
        (ack.verdict, ack.translated),
        (Verdict::ToBackend, syn.translated)
    );
    assert!(memory.handshakes().is_empty());
    assert_eq!(memory.established.entries().len(), 2);
    let reply = steer(&memory, &packet(ACK), &key(WORKERS[0], CLIENT));
    assert_eq!(reply.translated, key(SERVICE, CLIENT));
    assert_eq!(memory.counted(WORKER1).unanswered, 0);
}

#[test]
fn a_datagram_is_answered_by_way_of_the_manager() {
    let mut memory = lab();
    let service = ServiceKey {
        protocol: PROTOCOL_UDP,
        ..service_key(SERVICE)
    };
    memory.services.insert(service, Service { id: 0, flags: 0 });
    let datagram = |key: FlowKey| FlowKey {
        protocol: PROTOCOL_UDP.into(),
        ..key
    };
    let client = datagram(key(CLIENT, SERVICE));
    let answer = datagram(key(WORKERS[0], CLIENT));
    for established in [0, 0, 2] {
        let request = steer(&memory, &packet(0), &client);
        assert_eq!(request.translated, answer.reversed());
        assert_eq!(memory.established.entries().len(), established);
        let reply = steer(&memory, &packet(0), &answer);
        assert_eq!(reply.translated, client.reversed());
    }
}

#[test]
fn errors_go_both_ways_from_the_first_packet_on() {
    let memory = lab();
    let (client, answer) = (key(CLIENT, SERVICE), key(WORKERS[0], CLIENT));
    let goes_both_ways = || {
        let to_client = steer_error(&memory, &packet(0), &answer);
        assert_eq!(
            (to_client.verdict, to_client.translated),
            (Verdict::ToClient, client.reversed())
        );
        let to_worker = steer_error(&memory, &packet(0), &client);
        assert_eq!(
            (to_worker.verdict, to_worker.translated),
            (Verdict::ToBackend, answer.reversed())
        );
    };
    _ = steer(&memory, &packet(SYN), &client);
    goes_both_ways();
    _ = steer(&memory, &answer_to_syn(), &answer);
    _ = steer(&memory, &packet(ACK), &client);
    goes_both_ways();
}

#[test]
fn an_answer_is_the_workers_own_to_a_client_of_its_own() {
    let memory = lab();
    _ = steer(&memory, &packet(SYN), &key(CLIENT, SERVICE));
    let stranger = ([10, 0, 1, 200], 8_081);
    for answer in [
        key(WORKERS[1], CLIENT),
        key(stranger, CLIENT),
        key((WORKERS[0].0, 9), CLIENT),
        key(WORKERS[0], (CLIENT.0, 40_001)),
    ] {
        let decision = steer(&memory, &answer_to_syn(), &answer);
        assert_eq!(
            (decision.verdict, decision.exit),
            (Verdict::NotOurs, Exit::Pass)
        );
    }
}

/// Where a worker of mode `dsr` has the manager as its router, its answers pass here as they are.
#[test]
fn answers_of_other_modes_are_not_taken_for_routed_ones() {
    let mut memory = lab();
    memory.backends[WORKER1 as usize].mode = mode::DSR;
    _ = steer(&memory, &packet(SYN), &key(CLIENT, SERVICE));
    let answer = steer(&memory, &answer_to_syn(), &key(SERVICE, CLIENT));
    assert_eq!(answer.verdict, Verdict::NotOurs);
}

#[test]
fn a_repeated_syn_goes_to_another_worker_and_is_counted() {
    let mut memory = lab();
    for (place, worker) in (first_choice(0, 0)..).zip([WORKER1, WORKER2]) {
        memory.choices.insert(place, worker);
    }
    memory.policies[0] = Policy {
        kind: policy::RANKED,
        slots: 2,
        ..Policy::default()
    };
    let client = key(CLIENT, SERVICE);
    _ = steer(&memory, &packet(SYN), &client);
    memory.wait(SECOND);
    let retried = steer(&memory, &packet(SYN), &client);
    assert_eq!(retried.backend, WORKER2);
    assert_eq!(retried.translated, key(CLIENT, WORKERS[1]));
    assert_eq!(memory.counted(WORKER1).unanswered, 1);
    assert_eq!(memory.counted(WORKER2).unanswered, 0);

    // The first one answers late: its handshake is gone.
    let late = steer(&memory, &answer_to_syn(), &key(WORKERS[0], CLIENT));
    assert_eq!(late.verdict, Verdict::NotOurs);
    let answer = steer(&memory, &answer_to_syn(), &key(WORKERS[1], CLIENT));
    assert_eq!(answer.verdict, Verdict::ToClient);
}

#[test]
fn an_acknowledgement_of_an_answer_that_passed_elsewhere_is_counted() {
    let memory = lab();
    let client = key(CLIENT, SERVICE);
    _ = steer(&memory, &packet(SYN), &client);
    let ack = steer(&memory, &packet(ACK), &client);
    assert_eq!(ack.verdict, Verdict::ToBackend);
    assert_eq!(memory.counted(WORKER1).unanswered, 1);
    assert_eq!(memory.established.entries().len(), 0);
}

/// Else the worker's answer would be taken for one of the connection before.
#[test]
fn what_is_left_of_an_earlier_connection_is_superseded() {
    let memory = lab();
    let client = key(CLIENT, SERVICE);
    connects(&memory, &client);
    memory.established.remove(&client);
    memory.wait(SECOND);
    connects(&memory, &client);
    assert_eq!(memory.established.entries().len(), 2);
    let ended = [client, key(WORKERS[0], CLIENT)];
    for tuple in ended {
        _ = steer(&memory, &packet(FIN | ACK), &tuple);
    }
    connects(&memory, &client);
    assert_eq!(memory.active.borrow()[&WORKER1], 2);
}

#[test]
fn two_services_do_not_share_a_tuple() {
    let mut memory = lab();
    memory
        .services
        .insert(service_key(OTHER_SERVICE), Service { id: 1, flags: 0 });
    memory.selection[1] = WORKER1;
    connects(&memory, &key(CLIENT, SERVICE));
    let syn = steer(&memory, &packet(SYN), &key(CLIENT, OTHER_SERVICE));
    assert_eq!(
        (syn.verdict, syn.exit),
        (Verdict::PortsExhausted, Exit::Pass)
    );
    let other = (CLIENT.0, 40_001);
    connects(&memory, &key(other, OTHER_SERVICE));
}

#[test]
fn a_client_on_the_manager_is_served_unless_it_calls_itself_localhost() {
    let memory = lab();
    let from_here = PacketMeta {
        hook: Hook::Loopback,
        interface: LOOPBACK,
        ..packet(SYN)
    };
    let client = key((MANAGER, 40_000), SERVICE);
    let syn = steer(&memory, &from_here, &client);
    assert_eq!(syn.translated, key((MANAGER, 40_000), WORKERS[0]));
    let answer = steer(&memory, &answer_to_syn(), &syn.translated.reversed());
    assert_eq!(
        (answer.exit, answer.translated),
        (Exit::Loopback, client.reversed())
    );
    let localhost = key(([127, 0, 0, 1], 40_000), SERVICE);
    let refused = steer(&memory, &from_here, &localhost);
    assert_eq!(
        (refused.verdict, refused.exit),
        (Verdict::NoRoute, Exit::Pass)
    );
}

#[test]
fn a_refusal_ends_the_handshake() {
    let memory = lab();
    _ = steer(&memory, &packet(SYN), &key(CLIENT, SERVICE));
    let refusal = PacketMeta {
        acknowledgement: 1,
        ..packet(RST | ACK)
    };
    let decision = steer(&memory, &refusal, &key(WORKERS[0], CLIENT));
    assert_eq!(decision.verdict, Verdict::ToClient);
    assert!(memory.handshakes().is_empty());
}

fn steer_error(memory: &Memory, packet: &PacketMeta, key: &FlowKey) -> Decision {
    let mut decision = Decision::NONE;
    lb_common::steer::steer_error(memory, packet, key, &mut decision);
    decision
}

fn lab() -> Memory {
    laboratory(16, &WORKERS.map(|worker| backend(worker, mode::ROUTED)))
}
