//! A frame's view: what is taken for ours, and that rewriting leaves every checksum right.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use lb_common::{
    frame::{Extent, TCP_FRAME_LEN, TcpFrame, short_frame},
    headers::{EthernetHeader, Ipv4Header, TcpFlags},
    maps::FlowKey,
    verdict::Verdict,
};
use proptest::prelude::*;

/// A SYN from 192.168.56.1, port 40000, to 192.168.56.101, port 80.
#[rustfmt::skip]
const SYN: [u8; TCP_FRAME_LEN] = [
    0x02, 0x00, 0x00, 0x00, 0x00, 0x65, 0x02, 0x00, 0x00, 0x00, 0x00, 0x01, 0x08, 0x00,
    0x45, 0x00, 0x00, 0x28, 0x1d, 0x0f, 0x40, 0x00, 0x40, 0x06, 0x2c, 0x02,
    192, 168, 56, 1, 192, 168, 56, 101,
    0x9c, 0x40, 0x00, 0x50, 0xff, 0xff, 0xff, 0xf0, 0x00, 0x00, 0x00, 0x00,
    0x50, 0x02, 0x72, 0x10, 0x00, 0x00, 0x00, 0x00,
];

const WHOLE: Extent = Extent {
    bytes: TCP_FRAME_LEN as u32,
    coalesced: false,
};

#[test]
fn the_tuple_is_read_from_the_wire() {
    assert_eq!(
        view(&SYN).tuple(WHOLE),
        Ok(FlowKey {
            source: [192, 168, 56, 1],
            destination: [192, 168, 56, 101],
            source_port: [0x9c, 0x40],
            destination_port: [0x00, 0x50],
            protocol: 6,
        })
    );
    let tcp = view(&SYN).tcp;
    assert_eq!(tcp.sequence(), 0xffff_fff0);
    assert_eq!(tcp.flags(), TcpFlags(2));
}

#[test]
fn what_is_not_ours_is_told_apart() {
    #[rustfmt::skip]
    let rows: &[(&str, usize, &[u8], Verdict)] = &[
        ("ARP",                               12, &[0x08, 0x06],       Verdict::NotIpv4),
        ("IPv6",                              12, &[0x86, 0xdd],       Verdict::NotIpv4),
        ("a VLAN tag",                        12, &[0x81, 0x00],       Verdict::NotIpv4),
        ("version 6 in an IPv4 frame",        14, &[0x65],             Verdict::Malformed),
        ("an IPv4 header of 4 words",         14, &[0x44],             Verdict::Malformed),
        ("one option",                        14, &[0x46],             Verdict::IpOptions),
        ("the most options",                  14, &[0x4f],             Verdict::IpOptions),
        ("UDP",                               23, &[17],               Verdict::NotTcp),
        ("UDP behind an option",              14, &[0x46, 0, 0, 0x28, 0, 0, 0, 0, 64, 17], Verdict::NotTcp),
        ("a first fragment",                  20, &[0x20, 0x00],       Verdict::Fragment),
        ("the last fragment",                 20, &[0x00, 0xb9],       Verdict::Fragment),
        ("one byte more claimed than there",  16, &[0, 41],            Verdict::Truncated),
        ("the most that can be claimed",      16, &[0xff, 0xff],       Verdict::Truncated),
        ("less claimed than the headers take", 16, &[0, 39],           Verdict::Malformed),
        ("a TCP header of 4 words",           46, &[0x40],             Verdict::Malformed),
        ("a TCP header beyond the packet",    46, &[0x60],             Verdict::Malformed),
        ("a broadcast",                       0,  &[0xff; 6],          Verdict::NotForUs),
        ("a multicast",                       0,  &[0x01, 0, 0x5e],    Verdict::NotForUs),
    ];
    for (what, at, bytes, verdict) in rows {
        let mut frame = SYN;
        frame[*at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(view(&frame).tuple(WHOLE), Err(*verdict), "{what}");
    }
}

#[test]
fn what_is_ours_is_not_mistaken() {
    #[rustfmt::skip]
    let rows: &[(&str, usize, &[u8])] = &[
        ("don't fragment",            20, &[0x40, 0x00]),
        ("the reserved bit",          20, &[0x80, 0x00]),
        ("no hop left",               22, &[0]),
        ("every flag",                47, &[0xff]),
        ("a type of service",         15, &[0xff]),
        ("a wrong checksum",          24, &[0xba, 0xad]),
        ("a station of its own kind", 0,  &[0xfe; 6]),
    ];
    for (what, at, bytes) in rows {
        let mut frame = SYN;
        frame[*at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(view(&frame).tuple(WHOLE), view(&SYN).tuple(WHOLE), "{what}");
    }
}

#[test]
fn a_packet_of_many_need_not_say_its_length() {
    let coalesced = Extent {
        bytes: 70_000,
        coalesced: true,
    };
    for length in [[0, 0], [0xff, 0xff]] {
        let mut frame = SYN;
        frame[16..18].copy_from_slice(&length);
        assert!(view(&frame).tuple(coalesced).is_ok());
    }
}

#[test]
fn a_short_frame_is_named_by_what_there_is() {
    for length in 0..TCP_FRAME_LEN {
        for (protocol, ether_type, verdict) in [
            (6, [0x08, 0x00], Verdict::Truncated),
            (17, [0x08, 0x00], Verdict::NotTcp),
            (6, [0x08, 0x06], Verdict::NotIpv4),
        ] {
            let mut frame = SYN;
            frame[23] = protocol;
            frame[12..14].copy_from_slice(&ether_type);
            let whole = view(&frame);
            let ethernet: Option<&EthernetHeader> = (length >= 14).then_some(&whole.ethernet);
            let ip: Option<&Ipv4Header> = (length >= 34).then_some(&whole.ip);
            let expected = match verdict {
                Verdict::NotTcp if length < 34 => Verdict::Truncated,
                Verdict::NotIpv4 if length < 14 => Verdict::Truncated,
                verdict => verdict,
            };
            assert_eq!(short_frame(ethernet, ip), expected, "{length} bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn rewriting_changes_the_tuple_and_keeps_every_checksum_right(
        from in any::<([u8; 4], [u8; 4], [u8; 2], [u8; 2])>(),
        to in any::<([u8; 4], [u8; 4], [u8; 2], [u8; 2])>(),
        sequence in any::<[u8; 8]>(),
        hops in 1..=u8::MAX,
        payload in prop::collection::vec(any::<u8>(), 0..64),
        forwarded in any::<bool>(),
    ) {
        let before = frame(from, sequence, hops, &payload);
        let mut view = view(before[..TCP_FRAME_LEN].try_into().unwrap());
        let rewritten = view.rewrite(&key(to), forwarded);
        rewritten.apply(&mut view.tcp);

        let left_hops = hops - u8::from(forwarded);
        let expected = frame(to, sequence, left_hops, &payload);
        prop_assert_eq!(&bytes(view)[..], &expected[..TCP_FRAME_LEN]);
    }
}

/// A frame with complete checksums, by RFC 1071 in full: the oracle.
fn frame(
    (source, destination, source_port, destination_port): ([u8; 4], [u8; 4], [u8; 2], [u8; 2]),
    sequence: [u8; 8],
    hops: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = [&SYN[..], payload].concat();
    let tcp_length = u16::try_from(20 + payload.len()).unwrap();
    frame[16..18].copy_from_slice(&(20 + tcp_length).to_be_bytes());
    frame[22] = hops;
    frame[24..26].copy_from_slice(&[0, 0]);
    frame[26..30].copy_from_slice(&source);
    frame[30..34].copy_from_slice(&destination);
    frame[34..36].copy_from_slice(&source_port);
    frame[36..38].copy_from_slice(&destination_port);
    frame[38..46].copy_from_slice(&sequence);
    let ip_checksum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&ip_checksum);
    let mut covered = [source, destination].concat();
    covered.extend([0, 6]);
    covered.extend(tcp_length.to_be_bytes());
    covered.extend(&frame[34..]);
    let tcp_checksum = checksum(&covered);
    frame[50..52].copy_from_slice(&tcp_checksum);
    frame
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += (u32::from(pair[0]) << 8) | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn key(
    (source, destination, source_port, destination_port): ([u8; 4], [u8; 4], [u8; 2], [u8; 2]),
) -> FlowKey {
    FlowKey {
        source,
        destination,
        source_port,
        destination_port,
        protocol: 6,
    }
}

fn view(bytes: &[u8; TCP_FRAME_LEN]) -> TcpFrame {
    // SAFETY: a view of byte arrays: the same size, and every bit pattern is valid.
    unsafe { std::mem::transmute(*bytes) }
}

fn bytes(view: TcpFrame) -> [u8; TCP_FRAME_LEN] {
    // SAFETY: as in `view`.
    unsafe { std::mem::transmute(view) }
}
