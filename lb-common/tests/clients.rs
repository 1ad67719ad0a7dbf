//! How many connections one client may have, and how many that nothing proves the flow table takes.

mod laboratory;

use laboratory::{
    ACK, Memory, RST, SECOND, SERVICE, SYN, answer_to_syn, backend, key, laboratory, packet,
    service_key, steer,
};
use lb_common::{
    headers::PROTOCOL_UDP,
    maps::{FlowKey, Service, ServiceKey, mode},
    steer::Decision,
    verdict::Verdict,
};

const WORKER: ([u8; 4], u16) = ([10, 0, 0, 101], 8_081);

#[test]
fn a_client_has_as_many_connections_as_it_may_in_every_mode() {
    for mode in [mode::NAT, mode::ROUTED, mode::DSR] {
        let memory = lab(mode, 3);
        let [one, two, three, four] = [1, 2, 3, 4].map(|port| client(9, port));
        for half_open in [&one, &two] {
            assert_eq!(begins(&memory, half_open).verdict, Verdict::ToBackend);
        }
        connects(&memory, &three, mode);
        assert_eq!(begins(&memory, &four).verdict, Verdict::ClientLimit);
        // Existing connections continue, and other clients are not affected.
        assert_eq!(begins(&memory, &one).verdict, Verdict::ToBackend);
        assert_eq!(begins(&memory, &client(8, 1)).verdict, Verdict::ToBackend);

        for ended in [&one, &three] {
            _ = steer(&memory, &packet(RST), ended);
            assert_eq!(begins(&memory, &four).verdict, Verdict::ToBackend, "{mode}");
            _ = steer(&memory, &packet(RST), &four);
        }
    }
}

#[test]
fn what_a_client_leaves_half_open_counts_until_its_place_is_needed() {
    let mut memory = lab(mode::NAT, 16);
    memory.settings.half_open_buckets = 1;
    for port in 0..16 {
        assert_eq!(
            begins(&memory, &client(9, port)).verdict,
            Verdict::ToBackend
        );
    }
    assert_eq!(
        begins(&memory, &client(9, 16)).verdict,
        Verdict::ClientLimit
    );
    assert_eq!(begins(&memory, &client(8, 0)).verdict, Verdict::ToBackend);
    assert_eq!(begins(&memory, &client(9, 16)).verdict, Verdict::ToBackend);
}

#[test]
fn datagrams_count_like_connections() {
    let memory = lab(mode::NAT, 2);
    let datagrams = |port| FlowKey {
        protocol: PROTOCOL_UDP.into(),
        ..client(9, port)
    };
    for port in [1, 2] {
        let asked = steer(&memory, &packet(0), &datagrams(port));
        assert_eq!(asked.verdict, Verdict::ToBackend);
    }
    let refused = steer(&memory, &packet(0), &datagrams(3));
    assert_eq!(refused.verdict, Verdict::ClientLimit);
}

/// The worker's packets do not pass the manager, and a forger can imitate the client's.
#[test]
fn forged_connections_past_the_manager_leave_room_in_the_flow_table() {
    let mut memory = lab(mode::DSR, 0);
    memory.settings.direct_flows = 8;
    let honest: Vec<_> = (0..4).map(|port| client(8, port)).collect();
    for client in &honest {
        connects(&memory, client, mode::DSR);
    }
    for forged in 0..1_000 {
        let forged = client(9, forged);
        connects(&memory, &forged, mode::DSR);
        memory.wait(SECOND / 1_000);
    }
    assert_eq!(memory.established.entries().len(), 16);
    for client in &honest {
        let request = steer(&memory, &packet(ACK), client);
        assert_eq!(request.verdict, Verdict::ToBackend);
    }
    // A true connection without room stays a handshake until there is room.
    let late = client(7, 1);
    connects(&memory, &late, mode::DSR);
    assert_eq!(memory.established.entries().len(), 16);
    _ = steer(&memory, &packet(RST), &honest[0]);
    let mut far = packet(ACK);
    far.sequence = 100 << 20;
    assert_eq!(steer(&memory, &far, &late).verdict, Verdict::ToBackend);
    let entries = memory.established.entries();
    assert_eq!(entries[&late].sequence, 100 << 20);
}

fn begins(memory: &Memory, client: &FlowKey) -> Decision {
    steer(memory, &packet(SYN), client)
}

fn connects(memory: &Memory, client: &FlowKey, mode: u8) {
    let syn = begins(memory, client);
    assert_eq!(syn.verdict, Verdict::ToBackend);
    if mode != mode::DSR {
        _ = steer(memory, &answer_to_syn(), &syn.translated.reversed());
    }
    for more in [0, 100] {
        let mut ack = packet(ACK);
        ack.sequence = 1;
        ack.acknowledgement += more;
        assert_eq!(steer(memory, &ack, client).verdict, Verdict::ToBackend);
    }
}

fn client(host: u8, port: u16) -> FlowKey {
    key(([10, 0, 0, host], port), SERVICE)
}

/// A service of both protocols with one worker of a mode.
fn lab(mode: u8, per_client: u32) -> Memory {
    let mut memory = laboratory(1_024, &[backend(WORKER, mode)]);
    memory.settings.per_client = per_client;
    let datagrams = |socket| ServiceKey {
        protocol: PROTOCOL_UDP,
        ..service_key(socket)
    };
    memory
        .services
        .insert(datagrams(SERVICE), Service { id: 0, flags: 0 });
    memory.endpoints.insert(datagrams(WORKER), 1);
    memory
}
