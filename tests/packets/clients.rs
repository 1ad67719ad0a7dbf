//! `limits.per_client`, and the share of the flow table for mode `dsr`.

use lb_common::{maps::mode, verdict::Verdict};
use memlb_tests::packet_test;

use crate::{
    bench::Bench,
    call::Call,
    frame::{Family, RST},
    lan::{CLIENT, OTHER_CLIENT, WORKER1},
    segment::Segment,
};

#[packet_test(in_both_modes)]
fn connections_of_a_client_are_limited(bench: &mut Bench) {
    bench.settings(|settings| settings.per_client = 4);
    let half_open = bench.call(CLIENT, 40_000).begun(bench, WORKER1);
    let mut calls: Vec<_> = (1..4)
        .map(|number| match number {
            3 => bench.datagrams(CLIENT, 40_003),
            _ => bench.call(CLIENT, 40_000 + number),
        })
        .collect();
    for call in &mut calls {
        call.connects(bench, WORKER1);
    }
    for refused in [bench.call(CLIENT, 50_000), bench.datagrams(CLIENT, 50_000)] {
        bench.receives(&refused.syn()).passes(Verdict::ClientLimit);
    }
    // Of IPv6, both are in one network.
    let other = bench.call(OTHER_CLIENT, 40_000);
    let outcome = bench.receives(&other.syn());
    match bench.family {
        Family::V4 => outcome.was_sent_to(WORKER1, 1),
        Family::V6 => outcome.passes(Verdict::ClientLimit),
    }
    // Existing connections continue.
    half_open.requests(bench, WORKER1, &half_open.syn());
    half_open.establishes(bench, WORKER1);
    for ended in [&half_open, &calls[0]] {
        ended.requests(bench, WORKER1, &ended.request(RST));
        let mut next = bench.call(CLIENT, ended.port + 20_000);
        next.connects(bench, WORKER1);
        bench
            .receives(&bench.call(CLIENT, 50_000).syn())
            .passes(Verdict::ClientLimit);
    }
}

/// Without a limit, the programs count no clients.
#[packet_test(at_both_edges)]
fn connections_are_unlimited_without_a_limit(bench: &mut Bench) {
    for port in 40_000..40_100 {
        bench.call(CLIENT, port).connects(bench, WORKER1);
    }
    assert_eq!(bench.counted(Verdict::ClientLimit), 0);
}

/// A forger can imitate every packet of such a connection that passes the manager.
#[packet_test(at_both_edges)]
fn direct_connections_leave_room_for_others(bench: &mut Bench) {
    bench.settings(|settings| settings.direct_flows = 8);
    let direct = |bench: &Bench, call: &Call| {
        for segment in [call.syn(), call.ack(), more(call)] {
            let outcome = bench.receives(&segment);
            outcome.leaves_as(&call.at_dsr_worker(WORKER1, &segment));
        }
    };
    bench.call(OTHER_CLIENT, 40_000).connected(bench, WORKER1);
    bench.backend(WORKER1.id, |backend| backend.mode = mode::DSR);
    let honest = bench.call(CLIENT, 40_000);
    direct(bench, &honest);
    for port in 41_000..41_400 {
        direct(bench, &bench.call(CLIENT, port));
    }
    assert_eq!(bench.entries().len(), 2 * (1 + 8));
    let request = honest.ack();
    bench
        .receives(&request)
        .goes_to(WORKER1, &honest.at_dsr_worker(WORKER1, &request));
}

fn more(call: &Call) -> Segment {
    let mut more = call.ack();
    more.acknowledgement = more.acknowledgement.wrapping_add(100);
    more
}
