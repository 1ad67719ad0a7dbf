//! Lengths, fields and checksums in rewritten packets.

use lb_common::verdict::Verdict;
use memlb_tests::packet_test;

use crate::{
    bench::{Bench, Edge, FrameContext},
    frame::{ACK, Family, PSH, at, with, with_ip_field},
    lan::{CLIENT, ETH1, MANAGER, WORKER1},
    segment::Segment,
};

#[packet_test(at_both_edges)]
fn a_padded_frame_is_steered(bench: &mut Bench) {
    for mut call in [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)] {
        call.connects(bench, WORKER1);
        let padding = [0xee; 6];
        let padded = [&call.ack().frame()[..], &padding].concat();
        let outcome = bench.receives(padded);
        outcome.was_sent_to(WORKER1, 0);
        let expected = call.at_worker(WORKER1, &call.ack()).frame();
        assert_eq!(outcome.left, [&expected[..], &padding].concat());
    }
}

#[packet_test(in_both_modes)]
fn the_traffic_class_is_kept(bench: &mut Bench) {
    for mut call in [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)] {
        call.connects(bench, WORKER1);
        for class in [1, 2, 3, 0xb8, 0xff] {
            call.requests(bench, WORKER1, &call.ack().traffic_class(class));
            let reply = call.reply(WORKER1, ACK).traffic_class(class);
            call.replies(bench, WORKER1, &reply);
        }
    }
}

#[packet_test(at_edge(Edge::Tc))]
fn a_merged_packet_is_counted_by_its_segments(bench: &mut Bench) {
    let large = FrameContext {
        gso: Some((1_000, 3)),
        ..FrameContext::received_on(ETH1)
    };
    for mut call in [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)] {
        call.connects(bench, WORKER1);
        let up = call.request(PSH | ACK).payload([b'u'; 2_900]);
        bench
            .meets(&up, large)
            .goes_to(WORKER1, &call.at_worker(WORKER1, &up));
        let down = call.reply(WORKER1, PSH | ACK).payload([b'd'; 2_901]);
        bench
            .meets(&down, large)
            .comes_from(WORKER1, &call.at_client(&down));
        let elsewhere = MANAGER.at(bench.family, 53);
        let other = call.syn().payload([b'o'; 2_000]).to(elsewhere);
        bench.meets(&other, large).passes(Verdict::NotOurs);

        // Larger than IP can say (BIG TCP): the length is left at 0.
        let outcome = bench.meets(unsaid(&up), large);
        outcome.was_sent_to(WORKER1, 0);
        assert_eq!(outcome.left, unsaid(&call.at_worker(WORKER1, &up)));
    }
}

fn unsaid(segment: &Segment) -> Vec<u8> {
    match segment.family() {
        Family::V4 => with_ip_field(segment.frame(), at::TOTAL_LENGTH, &[0, 0]),
        Family::V6 => with(segment.frame(), at::PAYLOAD_LENGTH, &[0, 0]),
    }
}

#[packet_test(at_both_edges)]
fn a_checksum_of_zero_stays_correct(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    // A payload that is the checksum itself makes the sum come out as nothing.
    let plain = call.request(ACK).payload([0, 0]);
    let zero_before = plain
        .clone()
        .payload(plain.written_checksum().to_be_bytes());
    assert_eq!(zero_before.written_checksum(), 0);
    call.requests(bench, WORKER1, &zero_before);
    let after = call.at_worker(WORKER1, &plain).written_checksum();
    let zero_after = plain.payload(after.to_be_bytes());
    assert_eq!(call.at_worker(WORKER1, &zero_after).written_checksum(), 0);
    call.requests(bench, WORKER1, &zero_after);
}

#[packet_test(in_both_modes)]
fn a_datagrams_checksum_never_becomes_zero(bench: &mut Bench) {
    let call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    // One that comes out as 0 is written as all ones.
    let plain = call.request(0).payload([0, 0]);
    let after = call.at_worker(WORKER1, &plain).written_checksum();
    let all_ones = plain.payload(after.to_be_bytes());
    let expected = call.at_worker(WORKER1, &all_ones);
    assert_eq!(expected.written_checksum(), 0xffff);
    call.requests(bench, WORKER1, &all_ones);

    let plain = call.reply(WORKER1, 0).payload([0, 0]);
    let after = call.at_client(&plain).written_checksum();
    let all_ones = plain.payload(after.to_be_bytes());
    assert_eq!(call.at_client(&all_ones).written_checksum(), 0xffff);
    call.replies(bench, WORKER1, &all_ones);
}

#[packet_test(at_both_edges)]
fn a_datagram_without_a_checksum_stays_without(bench: &mut Bench) {
    let mut call = bench.datagrams(CLIENT, 40_000);
    let first = call.syn().payload(*b"?").checksum(0);
    call.begins_with(bench, WORKER1, &first);
    for length in 0..4 {
        let answer = call.reply(WORKER1, 0).payload(vec![b'!'; length]);
        call.replies(bench, WORKER1, &answer.checksum(0));
        let next = call.request(0).payload(vec![b'?'; length]);
        call.requests(bench, WORKER1, &next.checksum(0));
    }
    assert_eq!(bench.entries().len(), 2);
}

#[packet_test(at_both_edges)]
fn a_datagram_may_be_shorter_than_its_packet(bench: &mut Bench) {
    let call = bench.datagrams(CLIENT, 40_000).connected(bench, WORKER1);
    let datagram = call.request(0).payload(*b"told");
    let long = |segment: &Segment| {
        let longer = segment.clone().payload(*b"told, and some more");
        let longer = longer.checksum(segment.written_checksum()).frame();
        let length = segment.frame()[bench.family.transport() + 4..][..2].to_vec();
        with(longer, bench.family.transport() + 4, &length)
    };
    let outcome = bench.receives(long(&datagram));
    outcome.was_sent_to(WORKER1, 0);
    let expected = long(&call.at_worker(WORKER1, &datagram));
    assert_eq!(outcome.left, expected);
}

#[packet_test(in_both_modes)]
fn a_wrong_checksum_stays_wrong(bench: &mut Bench) {
    for mut call in [bench.call(CLIENT, 40_000), bench.datagrams(CLIENT, 40_000)] {
        call.connects(bench, WORKER1);
        let data = call.request(PSH | ACK).payload(*b"intact");
        let damaged = |segment: &Segment| {
            let mut frame = segment.frame();
            *frame.last_mut().unwrap() ^= 0x40;
            frame
        };
        let outcome = bench.receives(damaged(&data));
        // The receiver must see the damage, so the checksum of the intact payload stays.
        assert_eq!(outcome.left, damaged(&call.at_worker(WORKER1, &data)));
    }
}
