//! Denied clients: their new connections are refused and their open ones end.

use std::net::IpAddr;

use lb_common::verdict::Verdict;
use memlb_tests::packet_test;

use crate::{
    bench::Bench,
    frame::{ACK, Family, PSH, RST},
    lan::{CLIENT, OTHER_CLIENT, WORKER1},
};

/// Bits of a network that both clients are in.
fn network(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

fn all(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// What the manager does when it ends a denied client's connections.
fn ends_all(bench: &mut Bench) {
    for (key, mut flow) in bench.entries() {
        flow.superseded = 1;
        flow.counted = 0;
        bench.put(key, flow);
    }
}

#[packet_test(at_both_edges)]
fn a_denied_client_begins_no_flow(bench: &mut Bench) {
    let address = CLIENT.address(bench.family);
    bench.denies(address, all(address));
    let call = bench.call(CLIENT, 40_000);
    let datagrams = bench.datagrams(CLIENT, 40_000);
    for segment in [
        call.syn(),
        call.ack(),
        call.request(RST),
        datagrams.syn().payload(*b"?"),
    ] {
        bench.receives(&segment).is_dropped(Verdict::Denied);
    }
    assert!(bench.handshakes().is_empty() && bench.entries().is_empty());
    // What is no service's is none of this list's business.
    let elsewhere = call.syn().to(crate::lan::MANAGER.at(bench.family, 22));
    bench.receives(&elsewhere).passes(Verdict::NotOurs);
    bench.call(OTHER_CLIENT, 40_000).connects(bench, WORKER1);

    bench.allows_all();
    bench.call(CLIENT, 40_000).connects(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn a_denied_network_contains_exactly_its_clients(bench: &mut Bench) {
    let address = CLIENT.address(bench.family);
    bench.denies(address, network(bench.family));
    for client in [CLIENT, OTHER_CLIENT] {
        let syn = bench.call(client, 40_000).syn();
        bench.receives(&syn).is_dropped(Verdict::Denied);
    }
    // Prefixes of this length, of the other family and of a neighbour, deny no client here.
    bench.allows_all();
    let abroad = match bench.family {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    };
    bench.denies(CLIENT.address(abroad), network(abroad));
    let neighbour = OTHER_CLIENT.address(bench.family);
    bench.denies(neighbour, all(neighbour));
    bench.call(CLIENT, 40_000).connects(bench, WORKER1);
}

#[packet_test(at_both_edges)]
fn a_handshake_of_a_denied_client_is_not_completed(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    call.is_answered(bench, WORKER1);
    let address = CLIENT.address(bench.family);
    bench.denies(address, all(address));
    for segment in [call.ack(), call.syn()] {
        bench.receives(&segment).is_dropped(Verdict::Denied);
    }
    assert!(bench.entries().is_empty());
}

#[packet_test(at_both_edges)]
fn an_ended_connection_of_a_denied_client_stays_ended(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let address = CLIENT.address(bench.family);
    bench.denies(address, all(address));
    ends_all(bench);
    let request = call.request(PSH | ACK).payload(*b"GET /");
    bench.receives(&request).is_dropped(Verdict::Denied);
    // The kernel answers the worker with RST, and its server lets go.
    let reply = call.reply(WORKER1, PSH | ACK).payload(*b"HTTP/1.1");
    bench.receives(&reply).passes(Verdict::NotOurs);
    bench.receives(&request).is_dropped(Verdict::Denied);
    assert!(bench.entries().is_empty());
}
