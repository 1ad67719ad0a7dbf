//! Refused handshakes over maps in memory: who gets the SYN, and when the client gets the RST.

mod laboratory;

use laboratory::{
    ACK, MANAGER, Memory, RST, SERVICE, SYN, answer_to_syn, backend, completes, key, laboratory,
    packet, service_key, steer,
};
use lb_common::{
    maps::{Backend, FlowKey, Policy, Service, first_choice, mode, policy, service_flag},
    steer::{Decision, Exit, PacketMeta},
    verdict::Verdict,
};

const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 9], 40_000);

/// Workers 1 to 5, ranked by their ids.
fn lab(mode: u8) -> Memory {
    let mut memory = laboratory(64, &[backend(worker(1), mode)]);
    memory.backends.resize(8, Backend::default());
    for (place, id) in (first_choice(0, 0)..).zip(1..6) {
        memory.backends[id as usize] = Backend {
            port_pool: id % 4,
            ..backend(worker(id), mode)
        };
        memory.endpoints.insert(service_key(worker(id)), id % 4);
        memory.choices.insert(place, id);
    }
    memory.policies[0] = Policy {
        kind: policy::RANKED,
        slots: 5,
        ..Policy::default()
    };
    let service = Service {
        id: 0,
        flags: service_flag::RETRY_REFUSED,
    };
    memory.services.insert(service_key(SERVICE), service);
    memory
}

fn worker(id: u32) -> ([u8; 4], u16) {
    ([10, 0, 1, id.to_be_bytes()[3]], 8_080)
}

fn begins(memory: &Memory) -> FlowKey {
    let syn = steer(memory, &packet(SYN), &key(CLIENT, SERVICE));
    assert_eq!((syn.verdict, syn.backend), (Verdict::ToBackend, 1));
    syn.translated
}

/// A RST in reply to a SYN with the number 0.
fn refusal() -> PacketMeta {
    PacketMeta {
        acknowledgement: 1,
        ..packet(RST | ACK)
    }
}

fn is_refused(memory: &Memory, translated: &FlowKey) -> Decision {
    steer(memory, &refusal(), &translated.reversed())
}

#[test]
fn at_most_four_workers_get_the_syn() {
    for mode in [mode::NAT, mode::ROUTED] {
        let memory = lab(mode);
        let mut translated = begins(&memory);
        for id in 2..5 {
            let retried = is_refused(&memory, &translated);
            assert_eq!(
                (retried.verdict, retried.exit, retried.backend),
                (Verdict::Retried, Exit::Backend, id)
            );
            translated = retried.translated;
            assert_eq!(translated.destination, worker(id).0);
            let seen = if mode == mode::NAT { MANAGER } else { CLIENT.0 };
            assert_eq!(translated.source, seen);
        }
        let last = is_refused(&memory, &translated);
        assert_eq!((last.verdict, last.exit), (Verdict::ToClient, Exit::Client));
        assert!(memory.handshakes().is_empty());
        let counted: Vec<_> = (1..6)
            .map(|id| memory.counted(id))
            .map(|one| (one.refused, one.retried))
            .collect();
        assert_eq!(counted, [(1, 1), (1, 1), (1, 1), (1, 0), (0, 0)]);
    }
}

#[test]
fn the_next_worker_completes_the_handshake() {
    for mode in [mode::NAT, mode::ROUTED] {
        let memory = lab(mode);
        let retried = is_refused(&memory, &begins(&memory));
        completes(&memory, &key(CLIENT, SERVICE), &retried.translated);
        assert_eq!(memory.active.borrow().get(&2), Some(&1));
        assert_eq!(memory.counted(2).answered, 1);
    }
}

#[test]
fn without_the_syn_or_the_setting_the_client_is_refused() {
    let mut memory = lab(mode::NAT);
    memory.keeps_syns = false;
    let refused = is_refused(&memory, &begins(&memory));
    assert_eq!(refused.verdict, Verdict::ToClient);

    let mut memory = lab(mode::NAT);
    let service = Service { id: 0, flags: 0 };
    memory.services.insert(service_key(SERVICE), service);
    let refused = is_refused(&memory, &begins(&memory));
    assert_eq!(refused.verdict, Verdict::ToClient);
    assert_eq!(memory.counted(1).refused, 1);
}

#[test]
fn xdp_leaves_a_refusal_to_tc_and_changes_nothing() {
    let memory = lab(mode::NAT);
    let translated = begins(&memory);
    let before = memory.handshakes();
    let in_driver = PacketMeta {
        in_driver: true,
        ..refusal()
    };
    let left = steer(&memory, &in_driver, &translated.reversed());
    assert_eq!((left.verdict, left.exit), (Verdict::HandedOver, Exit::Pass));
    assert_eq!(memory.handshakes(), before);
    assert_eq!(memory.counted(1).refused, 0);
}

#[test]
fn what_follows_an_answer_or_acknowledges_something_else_refuses_nothing() {
    let memory = lab(mode::NAT);
    let translated = begins(&memory);
    for (flags, acknowledgement) in [(RST, 1), (RST | ACK, 0), (RST | ACK, 2), (ACK, 1)] {
        let other = PacketMeta {
            acknowledgement,
            ..packet(flags)
        };
        let memory = lab(mode::NAT);
        let translated = begins(&memory);
        let passed = steer(&memory, &other, &translated.reversed());
        assert_eq!(
            passed.verdict,
            Verdict::ToClient,
            "{flags} {acknowledgement}"
        );
    }
    _ = steer(&memory, &answer_to_syn(), &translated.reversed());
    let reset = is_refused(&memory, &translated);
    assert_eq!(reset.verdict, Verdict::ToClient);
    assert_eq!(memory.counted(1).resets, 1);
}
