//! Slots of the handshake table: a free one is found without reading it, and none that is held is taken.

mod laboratory;

use laboratory::{
    MANAGER, Memory, RST, SERVICE, SYN, WORKER2, backend, completes, key, laboratory, packet, steer,
};
use lb_common::{
    maps::{FlowKey, SLOTS_PER_BUCKET, mode},
    steer::Tables as _,
    verdict::Verdict,
};

/// One bucket.
fn lab() -> Memory {
    let worker = backend(([10, 0, 0, 101], 8_081), mode::NAT);
    let local = backend((MANAGER, 8_080), mode::LOCAL);
    let mut memory = laboratory(64, &[worker, local]);
    memory.settings.half_open_buckets = 1;
    memory.half_open.truncate(SLOTS_PER_BUCKET as usize);
    memory
}

fn client(number: u8) -> FlowKey {
    key(([10, 0, 9, number], 40_000), SERVICE)
}

/// Begins the client's connection and returns its tuple to the worker.
fn begins(memory: &Memory, number: u8) -> FlowKey {
    let decision = steer(memory, &packet(SYN), &client(number));
    assert_eq!(decision.verdict, Verdict::ToBackend);
    decision.translated
}

#[test]
fn the_end_of_a_handshake_frees_its_slot() {
    let memory = lab();
    let clients = 0..SLOTS_PER_BUCKET as u8;
    let mut translated: Vec<FlowKey> = clients.map(|number| begins(&memory, number)).collect();
    // One client resets, another completes its handshake.
    _ = steer(&memory, &packet(RST), &client(3));
    completes(&memory, &client(7), &translated[7]);
    for (number, ended) in [(100, 3), (101, 7)] {
        translated[ended] = begins(&memory, number);
    }
    for (index, translated) in translated.iter().enumerate() {
        let number = match index {
            3 => 100,
            7 => 101,
            other => other as u8,
        };
        completes(&memory, &client(number), translated);
    }
}

#[test]
fn a_handshake_that_has_lost_its_port_leaves_its_slot_to_the_next_one() {
    const CLIENTS: u8 = SLOTS_PER_BUCKET as u8;
    let worker = |host, port| backend(([10, 0, 0, host], port), mode::NAT);
    let mut memory = laboratory(64, &[worker(101, 8_081), worker(102, 8_082)]);
    memory.settings.half_open_buckets = 1;
    memory.half_open.truncate(SLOTS_PER_BUCKET as usize);
    memory.settings.nat_port_count = CLIENTS.into();
    memory.settings.nat_port_count -= 1;
    let translated: Vec<FlowKey> = (0..CLIENTS).map(|it| begins(&memory, it)).collect();
    let (last, others) = translated.split_last().unwrap();
    assert_eq!(others.iter().filter(|it| *it == last).count(), 1);

    memory.selection[0] = WORKER2;
    let to_other = begins(&memory, 100);
    completes(&memory, &client(100), &to_other);
    for (number, translated) in (0..).zip(&translated) {
        if number == CLIENTS - 1 || translated != last {
            completes(&memory, &client(number), translated);
        }
    }
}

#[test]
fn the_late_end_of_a_former_handshake_frees_no_slot() {
    let memory = lab();
    let tag = || memory.owner_tags(0).unwrap()[0];
    for number in 0..3 {
        _ = begins(&memory, number);
        let former = tag();
        _ = steer(&memory, &packet(RST), &client(number));
        let translated = begins(&memory, 100 + number);
        // Another processor is slower with the end.
        memory.clear_owner_tag(0, 0, former & 0b11);
        completes(&memory, &client(100 + number), &translated);
    }
}
