//! XDP: the driver's edge. Checksums are complete here and updated in place (RFC 1624).

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
        xdp_md,
    },
    helpers::generated::bpf_redirect,
    programs::XdpContext,
};
use lb_common::{
    address::{V4, V6},
    headers::{
        ETHERNET_LEN, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, EthernetHeader, Ipv4Header,
        Ipv6Header,
    },
    maps::Neighbour,
    packet::{Bytes, Extent, IpHeader, Quoted},
    steer::{Decision, Exit, Hook},
    verdict::Verdict,
};

use crate::{
    desk::{Desk, Read},
    maps::{Family, Maps, count},
    packet::{Linear, Meeting, decide, segment},
};

/// 1 to send by redirect even where `XDP_TX` would do; set by the loader for drivers that need it.
#[unsafe(no_mangle)]
static XDP_REDIRECTS: u8 = 0;

/// Steers one packet. What needs a next hop that no reply has shown yet, or the loopback interface, or
/// has a VLAN tag, is left untouched to the TC program behind.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let verdict = match linear(ctx.ctx).at::<EthernetHeader>(0) {
        Some(ethernet) => match ethernet.ether_type() {
            Ipv4Header::ETHERTYPE => return of_family::<V4>(ctx.ctx),
            Ipv6Header::ETHERTYPE => return of_family::<V6>(ctx.ctx),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Verdict::HandedOver,
            _ => Verdict::NotIp,
        },
        None => Verdict::Truncated,
    };
    passes(ctx.ctx, verdict);
    XDP_PASS
}

#[inline(always)]
fn of_family<A: Family>(ctx: *mut xdp_md) -> u32 {
    let Some(desk) = A::desk() else {
        return XDP_PASS;
    };
    match read(ctx, desk) {
        Read::Passes | Read::Skipped => XDP_PASS,
        read => {
            decide(desk, read);
            act(ctx, desk, read)
        }
    }
}

/// Looks at a packet, and lays on the desk what the decision needs.
#[inline(never)]
fn read<A: Family>(ctx: *mut xdp_md, desk: &mut Desk<A>) -> Read {
    let bytes = linear(ctx);
    let Some(ip) = bytes.at::<A::Header>(ETHERNET_LEN) else {
        return passes(ctx, Verdict::Truncated);
    };
    let meeting = Meeting {
        hook: Hook::Ingress,
        // SAFETY: the kernel hands a valid context to the program.
        interface: unsafe { (*ctx).ingress_ifindex },
        packets: 1,
        bytes: length(ctx),
        tag: 0,
    };
    let extent = Extent {
        bytes: meeting.bytes,
        coalesced: false,
    };
    let located = match ip.locate(bytes, extent) {
        Ok(located) => located,
        Err(verdict) => return passes(ctx, verdict),
    };
    let read = if located.protocol == A::Header::ICMP {
        desk.take_message(bytes, located, meeting)
    } else {
        desk.take_segment(bytes, located, meeting, extent)
    };
    match read {
        Ok(()) if !Maps::<A>::NEW.may_be_ours(Hook::Ingress, &desk.key) => {
            passes(ctx, Verdict::NotOurs)
        }
        Ok(()) if located.protocol == A::Header::ICMP => Read::Message,
        Ok(()) => Read::Segment,
        Err(verdict) => passes(ctx, verdict),
    }
}

/// Does what was decided.
#[inline(never)]
fn act<A: Family>(ctx: *mut xdp_md, desk: &Desk<A>, read: Read) -> u32 {
    let Desk {
        key,
        arrival,
        decision,
        ..
    } = desk;
    let maps = Maps::<A>::NEW;
    if decision.verdict == Verdict::ToClient && read == Read::Segment {
        maps.learn(
            decision.backend,
            &Neighbour {
                worker: arrival.source_mac,
                manager: arrival.destination_mac,
            },
        );
    }
    let located = desk.located();
    let bytes = linear(ctx);
    if decision.is_forwarded() {
        let Some(Neighbour { worker, manager }) = link(&maps, decision) else {
            // TC will find the connection begun.
            maps.count_connections(decision.backend, decision.opened.into());
            passes(ctx, Verdict::HandedOver);
            return XDP_PASS;
        };
        let Some(ethernet) = bytes.at::<EthernetHeader>(0) else {
            return XDP_DROP;
        };
        ethernet.destination = worker.bytes();
        ethernet.source = manager.bytes();
    }
    maps.account(decision, arrival);
    let (forwarded, leaves) = (decision.is_forwarded(), &decision.leaves);
    match decision.exit {
        Exit::Pass => return XDP_PASS,
        Exit::Drop => return XDP_DROP,
        _ => {}
    }
    if read == Read::Message {
        let Ok(mut message) = Quoted::<A>::view(bytes, located) else {
            return XDP_DROP;
        };
        let rewritten = message.rewrite(key, leaves, forwarded);
        let icmp = &mut message.message.icmp;
        icmp.checksum = rewritten.apply(icmp.checksum);
    } else {
        let Some(mut segment) = segment::<A>(bytes, located) else {
            return XDP_DROP;
        };
        let rewritten = segment.rewrite(leaves, forwarded);
        segment.transport.apply(rewritten);
    }
    if forwarded {
        send(decision.interface, arrival.interface)
    } else {
        XDP_PASS
    }
}

/// The link addresses to leave with, destination first; nothing where only TC knows the way.
#[inline(always)]
fn link<A: Family>(maps: &Maps<A>, decision: &Decision<A>) -> Option<Neighbour> {
    match decision.exit {
        Exit::Backend | Exit::Onwards => {
            let known = maps.neighbour(decision.backend);
            known.filter(Neighbour::is_known)
        }
        Exit::Client if decision.destination_mac.tag() == 0 => Some(Neighbour {
            worker: decision.destination_mac,
            manager: decision.source_mac,
        }),
        _ => None,
    }
}

/// Counts a packet that is left alone.
#[inline(always)]
fn passes(ctx: *mut xdp_md, verdict: Verdict) -> Read {
    count(verdict, 1, length(ctx).into());
    Read::Passes
}

#[inline(always)]
fn length(ctx: *mut xdp_md) -> u32 {
    let Linear { start, end } = linear(ctx);
    (end - start) as u32
}

#[inline(always)]
fn linear(ctx: *mut xdp_md) -> Linear {
    let ctx = XdpContext::new(ctx);
    Linear {
        start: ctx.data(),
        end: ctx.data_end(),
    }
}

#[inline(always)]
fn send(interface: u32, arrived_on: u32) -> u32 {
    // SAFETY: a constant for the verifier, but not for the compiler.
    let redirects = unsafe { core::ptr::read_volatile(&raw const XDP_REDIRECTS) };
    if interface == arrived_on && redirects == 0 {
        XDP_TX
    } else {
        // SAFETY: the helper takes integers only.
        unsafe { bpf_redirect(interface, 0) as u32 }
    }
}
