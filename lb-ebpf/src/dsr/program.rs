//! The DSR translator's program: parse, decide, rewrite. Packets pass to the next program, unless they would reach a
//! client with the server's address instead of the service's.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use lb_common::{
    address::{V4, V6},
    dsr::{handle_reply, handle_request},
    headers::{ETHERNET_LEN, Ipv4Header, Ipv6Header, TcpFlags},
    packet::{Extent, IcmpError, IpHeader, Located},
    verdict::Verdict,
};
use lb_ebpf::{
    packet_bytes::segment,
    skb::{PACKET_HOST, locate, packet_bytes, update_message, update_packet_sum, update_transport},
};

use crate::{
    direction::Direction,
    maps::{Family, Maps, PacketScratch, count},
};

#[inline(always)]
pub fn run(ctx: &TcContext, direction: Direction) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program.
    match u16::from_be(unsafe { (*skb).protocol } as u16) {
        Ipv4Header::ETHERTYPE => run_family::<V4>(skb, direction),
        Ipv6Header::ETHERTYPE => run_family::<V6>(skb, direction),
        _ => {
            count_packet(skb, Verdict::NotIp);
            TC_ACT_UNSPEC
        }
    }
}

#[inline(always)]
fn run_family<A: Family>(skb: *mut __sk_buff, direction: Direction) -> i32 {
    let Some(scratch) = A::packet_scratch() else {
        return TC_ACT_UNSPEC;
    };
    let mut verdict = parse(skb, direction, scratch);
    if verdict == PARSED {
        verdict = decide(skb, scratch, direction);
        if is_translated(verdict) {
            verdict = rewrite(skb, scratch, verdict);
        }
    }
    count_packet(skb, verdict);
    // A reply that would reach the client with the server's address.
    if verdict == Verdict::NoFlow {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}

/// Result of `parse` for a packet in the scratch map; not a verdict.
const PARSED: Verdict = Verdict::HandedOver;

#[inline(always)]
fn is_translated(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::ToBackend | Verdict::ToClient)
}

/// Parses the packet into the scratch map, or returns the verdict of a packet that is not translated.
#[inline(never)]
fn parse<A: Family>(
    skb: *mut __sk_buff,
    direction: Direction,
    scratch: &mut PacketScratch<A>,
) -> Verdict {
    // SAFETY: the kernel passes a valid context; the verifier checks the fields.
    let (bytes, kind, gso_size) = unsafe { ((*skb).len, (*skb).pkt_type, (*skb).gso_size) };
    if direction == Direction::Ingress && kind != PACKET_HOST {
        return Verdict::NotForUs;
    }
    let extent = Extent {
        bytes,
        coalesced: gso_size != 0,
    };
    let outcome = match locate::<A>(skb, extent) {
        Ok(located) if located.protocol == A::Header::ICMP => parse_error(skb, located, scratch),
        Ok(located) => parse_segment(skb, located, extent, scratch),
        Err(verdict) => Err(verdict),
    };
    match outcome {
        Ok(()) if !Maps::<A>::of(skb).is_tracked_port(direction, &scratch.packet.key) => {
            Verdict::NotOurs
        }
        Ok(()) => PARSED,
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn parse_segment<A: Family>(
    skb: *mut __sk_buff,
    located: Located,
    extent: Extent,
    scratch: &mut PacketScratch<A>,
) -> Result<(), Verdict> {
    let segment = segment::<A>(packet_bytes(skb), located).ok_or(Verdict::Truncated)?;
    segment.check((located.offset - ETHERNET_LEN) as u32, extent)?;
    scratch.packet.key = segment.tuple();
    scratch.packet.flags = segment.transport.flags();
    scratch.packet.is_icmp_error = 0;
    scratch.header_offset = located.into();
    Ok(())
}

#[inline(always)]
fn parse_error<A: Family>(
    skb: *mut __sk_buff,
    located: Located,
    scratch: &mut PacketScratch<A>,
) -> Result<(), Verdict> {
    let message = IcmpError::<A>::view(packet_bytes(skb), located)?;
    scratch.packet.key = message.tuple();
    scratch.packet.flags = TcpFlags::NONE;
    scratch.packet.is_icmp_error = 1;
    scratch.header_offset = located.into();
    Ok(())
}

#[inline(never)]
fn decide<A: Family>(
    skb: *mut __sk_buff,
    scratch: &mut PacketScratch<A>,
    direction: Direction,
) -> Verdict {
    match direction {
        Direction::Ingress => handle_request(&Maps::of(skb), &mut scratch.packet),
        Direction::Egress => handle_reply(&Maps::of(skb), &mut scratch.packet),
    }
}

/// Rewrites the packet to the decision's tuple.
#[inline(never)]
fn rewrite<A: Family>(
    skb: *mut __sk_buff,
    scratch: &mut PacketScratch<A>,
    verdict: Verdict,
) -> Verdict {
    let located = scratch.header_offset.located();
    let packet = &scratch.packet;
    let bytes = packet_bytes(skb);
    if packet.is_icmp_error == 1 {
        let Ok(mut message) = IcmpError::<A>::view(bytes, located) else {
            return Verdict::Truncated;
        };
        let rewritten = message.rewrite(&packet.key, &packet.translated, false);
        update_message::<A>(skb, located.offset, rewritten);
        update_packet_sum::<A>(skb, rewritten.addresses);
    } else {
        let Some(mut segment) = segment::<A>(bytes, located) else {
            return Verdict::Truncated;
        };
        let rewritten = segment.rewrite(&packet.translated, false);
        update_transport(skb, located.offset, &segment.transport, rewritten);
        update_packet_sum::<A>(skb, rewritten.addresses);
    }
    verdict
}

#[inline(always)]
fn count_packet(skb: *mut __sk_buff, verdict: Verdict) {
    // SAFETY: the kernel passes a valid context; the verifier checks the fields.
    let (bytes, segments) = unsafe { ((*skb).len, (*skb).gso_segs) };
    count(verdict, segments.max(1), bytes);
}
