//! Frames that really arrive, through XDP and the kernel's stack to TC behind it. A test run of a single program cannot
//! show VLAN tags, which the kernel keeps outside the frame.

use lb_common::verdict::Verdict;
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge, at_edge},
    call::Call,
    frame::{ACK, CUSTOMER_TAG, PSH, SERVICE_TAG, at, tagged},
    lan::{CLIENT, FAR1, MANAGER, WORKER1},
    message::Problem,
    outcome::Counted,
    sniffer::{Sniffed, Sniffer},
};

/// A tag's control information: a VLAN, some priorities, and no VLAN but a priority.
const TAGS: [u16; 4] = [5, 0xe005, 0x2fff, 0x6000];

#[packet_test(at_edge(Edge::Xdp))]
fn truncated_packets_pass_xdp_and_tc(bench: &mut Bench) {
    bench.attach_ingress();
    let whole = bench.call(CLIENT, 40_000).syn().frame();
    for length in at::IP..whole.len() {
        // Once at either edge.
        assert_eq!(
            bench.lets_in(&whole[..length]),
            [Counted::Verdict {
                verdict: Verdict::Truncated,
                packets: 2,
                bytes: 2 * length as u64,
            }]
        );
    }
}

#[packet_test(at_edge(Edge::Xdp))]
fn tc_steers_a_tagged_frame_that_xdp_passes(bench: &mut Bench) {
    bench.attach_ingress();
    let syn = bench.call(CLIENT, 40_000).syn();
    let bytes = syn.frame().len() as u64;
    assert_eq!(
        bench.lets_in(&syn.as_vlan(5)),
        [
            Counted::Verdict {
                verdict: Verdict::HandedOver,
                packets: 1,
                bytes: bytes + 4,
            },
            Counted::ToBackend {
                id: WORKER1.id,
                connections: 1,
                packets: 1,
                bytes,
            }
        ]
    );
    assert_eq!(bench.handshakes().len(), 1);
}

#[packet_test(at_edge(Edge::Xdp))]
fn service_tags_and_double_tags_pass_untouched(bench: &mut Bench) {
    bench.attach_ingress();
    let syn = bench.call(CLIENT, 40_000).syn();
    for (frame, without_tag) in [
        (tagged(syn.frame(), SERVICE_TAG, 5), syn.frame()),
        (tagged(syn.as_vlan(7), SERVICE_TAG, 5), syn.as_vlan(7)),
        (tagged(syn.as_vlan(7), CUSTOMER_TAG, 5), syn.as_vlan(7)),
    ] {
        assert_eq!(
            bench.lets_in(&frame),
            [
                Counted::Verdict {
                    verdict: Verdict::NotIp,
                    packets: 1,
                    bytes: without_tag.len() as u64,
                },
                Counted::Verdict {
                    verdict: Verdict::HandedOver,
                    packets: 1,
                    bytes: frame.len() as u64,
                },
            ]
        );
    }
    assert!(bench.handshakes().is_empty());
}

#[test]
fn a_client_in_a_vlan_reaches_a_worker_in_none() {
    in_vlans(|bench, wire, call| {
        for tag in TAGS {
            connects(bench, wire, call, Some(tag), None);
        }
    });
}

#[test]
fn a_worker_in_a_vlan_answers_a_client_in_none() {
    in_vlans(|bench, wire, call| {
        for tag in TAGS {
            connects(bench, wire, call, None, Some(tag));
        }
    });
}

#[test]
fn a_client_and_a_worker_are_in_two_vlans_or_in_one() {
    in_vlans(|bench, wire, call| {
        for (client, worker) in [(5, 7), (7, 5), (5, 5), (0xe005, 5)] {
            connects(bench, wire, call, Some(client), Some(worker));
        }
    });
}

#[test]
fn replies_follow_a_client_into_another_vlan() {
    in_vlans(|bench, wire, call| {
        connects(bench, wire, call, Some(5), None);
        for client in [Some(6), None, Some(5)] {
            requests(bench, wire, call, client);
            replies(bench, wire, call, client, None);
        }
    });
}

#[test]
fn an_error_crosses_vlans_as_its_flow_does() {
    in_vlans(|bench, wire, call| {
        connects(bench, wire, call, Some(5), Some(7));
        let about = call.request(PSH | ACK).payload([b'x'; 30]);
        let message = call.worker_complains(WORKER1, Problem::TooBig(1_280), &about);
        arrives(bench, message.frame(), Some(7));
        is_sent(wire, call.complaint_at_client(&message).frame(), Some(5));
        let about = call.at_client(&call.reply(WORKER1, ACK));
        let message = call.complains(Problem::HostUnreachable, &about);
        arrives(bench, message.frame(), Some(5));
        let told = call.complaint_at_worker(WORKER1, &message);
        is_sent(
            wire,
            told.macs(MANAGER.mac, WORKER1.station.mac).frame(),
            None,
        );
    });
}

/// Tells a story of frames that arrive with tags, once for each protocol.
fn in_vlans(story: impl Fn(&Bench, &Sniffer, &mut Call) + Sync) {
    at_edge(Edge::Xdp, |bench| {
        bench.attach_ingress();
        bench.resolves_neighbour(WORKER1);
        let wire = Sniffer::on(FAR1).unwrap();
        for mut call in [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)] {
            story(bench, &wire, &mut call);
        }
    });
}

/// Goes through a connection, from the next port on, whose client and worker send with these tags.
#[track_caller]
fn connects(
    bench: &Bench,
    wire: &Sniffer,
    call: &mut Call,
    client: Option<u16>,
    worker: Option<u16>,
) {
    call.port += 1;
    let syn = call.syn();
    arrives(bench, syn.frame(), client);
    let handshake = bench.handshake(call.request_key()).unwrap();
    call.nat_port = u16::from_be_bytes(handshake.translated.source_port);
    let sent_on = call.at_worker(WORKER1, &syn);
    is_sent(wire, sent_on.frame(), None);
    let syn_ack = call.syn_ack(WORKER1);
    arrives(bench, syn_ack.frame(), worker);
    is_sent(wire, call.at_client(&syn_ack).frame(), client);
    // Datagrams take two exchanges and a third request.
    for _ in 0..2 {
        requests(bench, wire, call, client);
        replies(bench, wire, call, client, worker);
    }
    assert!(bench.entry(call.request_key()).is_some());
}

#[track_caller]
fn requests(bench: &Bench, wire: &Sniffer, call: &Call, tag: Option<u16>) {
    let data = call.request(PSH | ACK).payload(*b"GET / HTTP/1.1\r\n");
    arrives(bench, data.frame(), tag);
    is_sent(wire, call.at_worker(WORKER1, &data).frame(), None);
}

#[track_caller]
fn replies(bench: &Bench, wire: &Sniffer, call: &Call, client: Option<u16>, worker: Option<u16>) {
    let page = call.reply(WORKER1, PSH | ACK).payload([b'x'; 33]);
    arrives(bench, page.frame(), worker);
    is_sent(wire, call.at_client(&page).frame(), client);
}

fn arrives(bench: &Bench, frame: Vec<u8>, tag: Option<u16>) {
    let frame = match tag {
        Some(tag) => tagged(frame, CUSTOMER_TAG, tag),
        None => frame,
    };
    bench.lets_in(&frame);
}

#[track_caller]
fn is_sent(wire: &Sniffer, frame: Vec<u8>, tag: Option<u16>) {
    assert_eq!(wire.next().unwrap(), Sniffed { frame, tag });
}
