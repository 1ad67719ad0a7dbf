//! A packet's way through the companion: looked at, decided on, rewritten. It goes on to the next program, unless
//! it would show a client the server in place of the service.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use lb_common::{
    address::{V4, V6},
    companion::{receive, send},
    headers::{ETHERNET_LEN, Ipv4Header, Ipv6Header, TcpFlags},
    packet::{Extent, IpHeader, Located, Quoted},
    verdict::Verdict,
};
use lb_ebpf::{
    linear::segment,
    skb::{PACKET_HOST, keep_sum, linear, locate, update_message, update_transport},
};

use crate::maps::{Desk, Family, Maps, count};

/// Which way a packet crosses the interface.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

#[inline(always)]
pub fn run(ctx: &TcContext, way: Way) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program.
    match u16::from_be(unsafe { (*skb).protocol } as u16) {
        Ipv4Header::ETHERTYPE => cross::<V4>(skb, way),
        Ipv6Header::ETHERTYPE => cross::<V6>(skb, way),
        _ => {
            counted(skb, Verdict::NotIp);
            TC_ACT_UNSPEC
        }
    }
}

#[inline(always)]
fn cross<A: Family>(skb: *mut __sk_buff, way: Way) -> i32 {
    let Some(desk) = A::desk() else {
        return TC_ACT_UNSPEC;
    };
    let mut verdict = read(skb, way, desk);
    if verdict == READ {
        verdict = decide(skb, desk, way);
        if is_translated(verdict) {
            verdict = rewrite(skb, desk, verdict);
        }
    }
    counted(skb, verdict);
    // An answer that would show the client the server instead of the service.
    if verdict == Verdict::NoFlow {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}

/// Not a verdict yet: the packet lies on the desk.
const READ: Verdict = Verdict::HandedOver;

#[inline(always)]
fn is_translated(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::ToBackend | Verdict::ToClient)
}

/// Lays the packet on the desk, or says why it is none to be translated.
#[inline(never)]
fn read<A: Family>(skb: *mut __sk_buff, way: Way, desk: &mut Desk<A>) -> Verdict {
    // SAFETY: as above; fields are read by the verifier's leave.
    let (bytes, kind, gso_size) = unsafe { ((*skb).len, (*skb).pkt_type, (*skb).gso_size) };
    if way == Way::In && kind != PACKET_HOST {
        return Verdict::NotForUs;
    }
    let extent = Extent {
        bytes,
        coalesced: gso_size != 0,
    };
    let outcome = match locate::<A>(skb, extent) {
        Ok(located) if located.protocol == A::Header::ICMP => take_message(skb, located, desk),
        Ok(located) => take_segment(skb, located, extent, desk),
        Err(verdict) => Err(verdict),
    };
    match outcome {
        Ok(()) if !Maps::<A>::of(skb).may_be_ours(way, &desk.crossing.key) => Verdict::NotOurs,
        Ok(()) => READ,
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn take_segment<A: Family>(
    skb: *mut __sk_buff,
    located: Located,
    extent: Extent,
    desk: &mut Desk<A>,
) -> Result<(), Verdict> {
    let segment = segment::<A>(linear(skb), located).ok_or(Verdict::Truncated)?;
    segment.check((located.offset - ETHERNET_LEN) as u32, extent)?;
    desk.crossing.key = segment.tuple();
    desk.crossing.flags = segment.transport.flags();
    desk.crossing.is_message = 0;
    desk.spot = located.into();
    Ok(())
}

#[inline(always)]
fn take_message<A: Family>(
    skb: *mut __sk_buff,
    located: Located,
    desk: &mut Desk<A>,
) -> Result<(), Verdict> {
    let message = Quoted::<A>::view(linear(skb), located)?;
    desk.crossing.key = message.tuple();
    desk.crossing.flags = TcpFlags::NONE;
    desk.crossing.is_message = 1;
    desk.spot = located.into();
    Ok(())
}

#[inline(never)]
fn decide<A: Family>(skb: *mut __sk_buff, desk: &mut Desk<A>, way: Way) -> Verdict {
    match way {
        Way::In => receive(&Maps::of(skb), &mut desk.crossing),
        Way::Out => send(&Maps::of(skb), &mut desk.crossing),
    }
}

/// Gives the packet the tuple that was decided.
#[inline(never)]
fn rewrite<A: Family>(skb: *mut __sk_buff, desk: &mut Desk<A>, verdict: Verdict) -> Verdict {
    let located = desk.spot.located();
    let crossing = &desk.crossing;
    let bytes = linear(skb);
    if crossing.is_message == 1 {
        let Ok(mut message) = Quoted::<A>::view(bytes, located) else {
            return Verdict::Truncated;
        };
        let rewritten = message.rewrite(&crossing.key, &crossing.leaves, false);
        update_message::<A>(skb, located.offset, rewritten);
        keep_sum::<A>(skb, rewritten.addresses);
    } else {
        let Some(mut segment) = segment::<A>(bytes, located) else {
            return Verdict::Truncated;
        };
        let rewritten = segment.rewrite(&crossing.leaves, false);
        update_transport(skb, located.offset, &segment.transport, rewritten);
        keep_sum::<A>(skb, rewritten.addresses);
    }
    verdict
}

#[inline(always)]
fn counted(skb: *mut __sk_buff, verdict: Verdict) {
    // SAFETY: as above.
    let (bytes, segments) = unsafe { ((*skb).len, (*skb).gso_segs) };
    count(verdict, segments.max(1), bytes);
}
