//! A packet's views: what is taken for ours, and that rewriting leaves every checksum right. An
//! independent full checksum is the oracle.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod wire;

use lb_common::{
    address::{Address as _, V4, V6},
    headers::{Ipv4Header, Ipv6Header, TcpFlags},
    maps::FlowKey,
    packet::{Extent, IcmpError, IpAddress, IpHeader, Segment},
    verdict::Verdict,
};
use proptest::prelude::*;
use wire::{Ends, Wire, error, frame, segment};

const V4_ENDS: Ends<V4> = Ends {
    source: [192, 168, 56, 1],
    destination: [192, 168, 56, 101],
    source_port: 40_000,
    destination_port: 80,
};

const V6_ENDS: Ends<V6> = Ends {
    source: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    destination: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
    source_port: 40_000,
    destination_port: 80,
};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn tuple<A: IpAddress>(wire: &mut Wire) -> Result<FlowKey<A>, Verdict> {
    tuple_of(wire, |extent| extent)
}

fn tuple_of<A: IpAddress>(
    wire: &mut Wire,
    change: impl Fn(Extent) -> Extent,
) -> Result<FlowKey<A>, Verdict> {
    let extent = change(wire.extent());
    let bytes = wire.bytes();
    let located = wire::ip::<A>(bytes)?.locate(bytes, extent)?;
    let segment: Segment<'_, A> = segment(bytes, located).ok_or(Verdict::Truncated)?;
    segment.check((located.offset - 14) as u32, extent)?;
    Ok(segment.tuple())
}

#[test]
fn the_tuple_is_read_from_the_wire() {
    for protocol in [TCP, UDP] {
        let mut four = frame(V4_ENDS, protocol, 64, b"payload");
        assert_eq!(tuple(&mut four), Ok(V4_ENDS.key(protocol)));
        let mut six = frame(V6_ENDS, protocol, 64, b"payload");
        assert_eq!(tuple(&mut six), Ok(V6_ENDS.key(protocol)));
    }
}

#[test]
fn numbers_and_flags_are_those_of_a_segment() {
    let mut wire = frame(V4_ENDS, TCP, 64, &[]);
    let bytes = wire.bytes();
    let located = wire::ip::<V4>(bytes).unwrap().locate(bytes, wire.extent());
    let segment: Segment<'_, V4> = segment(bytes, located.unwrap()).unwrap();
    assert_eq!(segment.transport.numbers(), (0xffff_fff0, 7));
    assert_eq!(segment.transport.flags(), TcpFlags(2));
}

#[test]
fn what_is_not_ours_is_distinguished() {
    #[rustfmt::skip]
    let rows: &[(&str, usize, &[u8], Verdict)] = &[
        ("version 6 in an IPv4 frame",        14, &[0x65],             Verdict::Malformed),
        ("an IPv4 header of 4 words",         14, &[0x44],             Verdict::Malformed),
        ("one option",                        14, &[0x46],             Verdict::IpOptions),
        ("the most options",                  14, &[0x4f],             Verdict::IpOptions),
        ("GRE",                               23, &[47],               Verdict::OtherProtocol),
        ("GRE behind an option",              14, &[0x46, 0, 0, 0x28, 0, 0, 0, 0, 64, 47], Verdict::OtherProtocol),
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
        let mut wire = frame(V4_ENDS, TCP, 64, &[]);
        wire.write(*at, bytes);
        assert_eq!(tuple::<V4>(&mut wire), Err(*verdict), "{what}");
    }
    #[rustfmt::skip]
    let rows: &[(&str, usize, &[u8], Verdict)] = &[
        ("a length below its header's",       38, &[0, 7],             Verdict::Malformed),
        ("a length beyond the packet",        38, &[0, 9],             Verdict::Malformed),
    ];
    for (what, at, bytes, verdict) in rows {
        let mut wire = frame(V4_ENDS, UDP, 64, &[]);
        wire.write(*at, bytes);
        assert_eq!(tuple::<V4>(&mut wire), Err(*verdict), "{what}");
    }
    #[rustfmt::skip]
    let rows: &[(&str, usize, &[u8], Verdict)] = &[
        ("version 4 in an IPv6 frame",        14, &[0x45],             Verdict::Malformed),
        ("no next header",                    20, &[59],               Verdict::OtherProtocol),
        ("ESP",                               20, &[50],               Verdict::OtherProtocol),
        ("a fragment",                        20, &[44],               Verdict::Fragment),
        ("one byte more claimed than there",  18, &[0, 21],            Verdict::Truncated),
        ("less claimed than the headers take", 18, &[0, 19],           Verdict::Malformed),
        ("a TCP header beyond the packet",    66, &[0x60],             Verdict::Malformed),
        ("a multicast",                       0,  &[0x33, 0x33],       Verdict::NotForUs),
    ];
    for (what, at, bytes, verdict) in rows {
        let mut wire = frame(V6_ENDS, TCP, 64, &[]);
        wire.write(*at, bytes);
        assert_eq!(tuple::<V6>(&mut wire), Err(*verdict), "{what}");
    }
}

#[test]
fn extension_headers_are_passed_over_up_to_a_bound() {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const OPTIONS: u8 = 60;
    const MOBILITY: u8 = 135;
    let eight = |kind| (kind, 8);
    /// Kinds and lengths of extension headers, and what comes of them.
    type Row<'a> = (&'a str, &'a [(u8, usize)], Result<(), Verdict>);
    #[rustfmt::skip]
    let rows: &[Row<'_>] = &[
        ("one",                      &[eight(HOP_BY_HOP)],                  Ok(())),
        ("one of many bytes",        &[(OPTIONS, 256)],                     Ok(())),
        ("four",                     &[eight(HOP_BY_HOP), eight(ROUTING), eight(OPTIONS), eight(OPTIONS)], Ok(())),
        ("five",                     &[eight(OPTIONS); 5],                  Err(Verdict::ExtensionHeaders)),
        ("one of too many bytes",    &[(OPTIONS, 264)],                     Err(Verdict::ExtensionHeaders)),
        ("two of too many bytes",    &[(OPTIONS, 128), (OPTIONS, 136)],     Err(Verdict::ExtensionHeaders)),
        ("an unsupported one",       &[eight(MOBILITY)],                    Err(Verdict::OtherProtocol)),
    ];
    for (what, extensions, expected) in rows {
        for protocol in [TCP, UDP] {
            let mut wire = frame(V6_ENDS, protocol, 64, b"payload").extended(extensions);
            let expected = expected.map(|()| V6_ENDS.key(protocol));
            assert_eq!(tuple::<V6>(&mut wire), expected, "{what}");
        }
    }
    let mut on_its_way = frame(V6_ENDS, TCP, 64, &[]).extended(&[eight(ROUTING)]);
    on_its_way.write(54 + 3, &[1]);
    assert_eq!(tuple::<V6>(&mut on_its_way), Err(Verdict::ExtensionHeaders));
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
        let mut wire = frame(V4_ENDS, TCP, 64, &[]);
        wire.write(*at, bytes);
        assert_eq!(tuple(&mut wire), Ok(V4_ENDS.key(TCP)), "{what}");
    }
}

#[test]
fn a_gso_packet_may_lack_its_length() {
    let coalesced = |_| Extent {
        bytes: 70_000,
        coalesced: true,
    };
    for length in [[0, 0], [0xff, 0xff]] {
        for protocol in [TCP, UDP] {
            let mut wire = frame(V4_ENDS, protocol, 64, &[]);
            wire.write(16, &length);
            assert!(tuple_of::<V4>(&mut wire, coalesced).is_ok());
            let mut wire = frame(V6_ENDS, protocol, 64, &[]);
            wire.write(18, &length);
            assert!(tuple_of::<V6>(&mut wire, coalesced).is_ok());
        }
    }
}

#[test]
fn a_cut_packet_is_truncated_wherever_it_is_cut() {
    for protocol in [TCP, UDP] {
        let whole = frame(V4_ENDS, protocol, 64, b"payload");
        for length in 14..whole.len() {
            let mut wire = whole.cut(length);
            assert_eq!(tuple::<V4>(&mut wire), Err(Verdict::Truncated), "{length}");
        }
        let whole = frame(V6_ENDS, protocol, 64, b"payload").extended(&[(60, 16)]);
        for length in 14..whole.len() {
            let mut wire = whole.cut(length);
            assert_eq!(tuple::<V6>(&mut wire), Err(Verdict::Truncated), "{length}");
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let mut wire = frame(V4_ENDS, UDP, 64, b"payload");
    wire.write(40, &[0, 0]);
    let to = Ends {
        source_port: 4_096,
        ..V4_ENDS
    };
    rewrite(&mut wire, &to.key(UDP), true);
    assert_eq!(wire.0[40..42], [0, 0]);
}

#[test]
fn the_tuple_of_an_error_is_that_of_the_answers() {
    let mut four = error(V4_ENDS, TCP, [10, 0, 0, 7]);
    assert_eq!(
        quoted_tuple::<V4>(&mut four),
        Ok(V4_ENDS.key(TCP).reversed())
    );
    let mut six = error(V6_ENDS, UDP, [0xfe; 16]);
    assert_eq!(
        quoted_tuple::<V6>(&mut six),
        Ok(V6_ENDS.key(UDP).reversed())
    );

    let mut echo = error(V4_ENDS, TCP, [10, 0, 0, 7]);
    echo.write(34, &[8]);
    assert_eq!(quoted_tuple::<V4>(&mut echo), Err(Verdict::OtherProtocol));
    let mut solicitation = error(V6_ENDS, TCP, [0xfe; 16]);
    solicitation.write(54, &[135]);
    assert_eq!(
        quoted_tuple::<V6>(&mut solicitation),
        Err(Verdict::OtherProtocol)
    );
    let mut of_a_ping = error(V4_ENDS, TCP, [10, 0, 0, 7]);
    of_a_ping.write(34 + 8 + 9, &[1]);
    assert_eq!(
        quoted_tuple::<V4>(&mut of_a_ping),
        Err(Verdict::OtherProtocol)
    );
    let mut of_a_fragment = error(V4_ENDS, TCP, [10, 0, 0, 7]);
    of_a_fragment.write(34 + 8 + 6, &[0, 1]);
    assert_eq!(
        quoted_tuple::<V4>(&mut of_a_fragment),
        Err(Verdict::OtherProtocol)
    );
}

fn quoted_tuple<A: IpAddress>(wire: &mut Wire) -> Result<FlowKey<A>, Verdict> {
    let extent = wire.extent();
    let bytes = wire.bytes();
    let located = wire::ip::<A>(bytes)?.locate(bytes, extent)?;
    assert_eq!(located.protocol, A::Header::ICMP);
    Ok(IcmpError::<A>::view(bytes, located)?.tuple())
}

/// Rewrites a packet as XDP does.
fn rewrite<A: IpAddress>(wire: &mut Wire, translated: &FlowKey<A>, forwarded: bool) {
    let extent = wire.extent();
    let bytes = wire.bytes();
    let located = wire::ip::<A>(bytes).unwrap().locate(bytes, extent).unwrap();
    let mut segment: Segment<'_, A> = segment(bytes, located).unwrap();
    let rewritten = segment.rewrite(translated, forwarded);
    segment.transport.apply(rewritten);
}

fn rewritten_equals_rebuilt<A: wire::Family>(
    from: Ends<A>,
    to: Ends<A>,
    protocol: u8,
    hops: u8,
    payload: &[u8],
    forwarded: bool,
) {
    let mut wire = frame(from, protocol, hops, payload);
    rewrite(&mut wire, &to.key(protocol), forwarded);
    // A hop less, but never none.
    let left = if forwarded {
        hops.saturating_sub(1).max(1)
    } else {
        hops
    };
    let fresh = frame(to, protocol, left, payload);
    assert_eq!(wire.0, fresh.0);
}

fn rewritten_error_equals_rebuilt<A: wire::Family>(
    about: Ends<A>,
    protocol: u8,
    router: A,
    translated: Ends<A>,
) {
    let mut wire = error(about, protocol, router);
    let extent = wire.extent();
    let bytes = wire.bytes();
    let located = wire::ip::<A>(bytes).unwrap().locate(bytes, extent).unwrap();
    let mut message = IcmpError::<A>::view(bytes, located).unwrap();
    let key = message.tuple();
    let rewritten = message.rewrite(&key, &translated.key(protocol), true);
    let icmp = &mut message.message.icmp;
    icmp.checksum = rewritten.apply(icmp.checksum);

    let hides = translated.source != key.source;
    let sender = if hides { translated.source } else { router };
    let mut fresh = error(translated.reversed(), protocol, sender);
    fresh.hop::<A>();
    assert_eq!(wire.0, fresh.0);
}

fn ends<A: IpAddress + Arbitrary>() -> impl Strategy<Value = Ends<A>> {
    any::<(A, A, u16, u16)>().prop_map(|(source, destination, source_port, destination_port)| {
        Ends {
            source,
            destination,
            source_port,
            destination_port,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn rewriting_changes_the_tuple_and_keeps_every_checksum_right(
        (four_from, four_to) in (ends::<V4>(), ends::<V4>()),
        (six_from, six_to) in (ends::<V6>(), ends::<V6>()),
        protocol in prop::sample::select(vec![TCP, UDP]),
        hops in prop_oneof![0..=2_u8, 0..=u8::MAX],
        payload in prop::collection::vec(any::<u8>(), 0..64),
        forwarded in any::<bool>(),
    ) {
        rewritten_equals_rebuilt(four_from, four_to, protocol, hops, &payload, forwarded);
        rewritten_equals_rebuilt(six_from, six_to, protocol, hops, &payload, forwarded);
    }

    #[test]
    fn an_error_quotes_the_packet_that_its_receiver_sent(
        (four, six) in (any::<(V4, bool)>(), any::<(V6, bool)>()),
        (four_about, four_leaves) in (ends::<V4>(), ends::<V4>()),
        (six_about, six_leaves) in (ends::<V6>(), ends::<V6>()),
        protocol in prop::sample::select(vec![TCP, UDP]),
    ) {
        // Half of the time the translation leaves the sender alone.
        let translated = |stays, about: Ends<V4>, translated: Ends<V4>| Ends {
            source: if stays { about.destination } else { translated.source },
            ..translated
        };
        let leaves4 = translated(four.1, four_about, four_leaves);
        rewritten_error_equals_rebuilt(four_about, protocol, four.0, leaves4);
        let leaves6 = Ends {
            source: if six.1 { six_about.destination } else { six_leaves.source },
            ..six_leaves
        };
        rewritten_error_equals_rebuilt(six_about, protocol, six.0, leaves6);
    }
}

#[test]
fn headers_return_their_fields() {
    assert_eq!(<Ipv4Header as IpHeader>::ETHERTYPE, 0x0800);
    assert_eq!(<Ipv6Header as IpHeader>::ETHERTYPE, 0x86dd);
    assert_eq!(V4::from_mapped(&[10, 0, 0, 1].mapped()), [10, 0, 0, 1]);
    assert_eq!([10, 0, 0, 1].mapped()[10..], [0xff, 0xff, 10, 0, 0, 1]);
}
