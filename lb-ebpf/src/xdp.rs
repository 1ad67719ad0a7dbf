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
        Ipv6Header, PROTOCOL_TCP,
    },
    maps::Neighbour,
    packet::{Bytes, Extent, IpHeader, Quoted, Segment, TcpFrame},
    steer::{Arrival, Decision, Exit, Hook, give_back, steer_established},
    trace::HEAD,
    verdict::Verdict,
};
use lb_ebpf::linear::{Linear, segment};

use crate::{
    desk::{Desk, Read},
    maps::{Family, Maps, count},
    packet::{Meeting, decide, is_nobodys},
    too_large,
    trace::{self, Frame},
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
            Ipv4Header::ETHERTYPE if is_nobodys::<V4>(linear(ctx.ctx), Hook::Ingress) => {
                Verdict::NotOurs
            }
            Ipv6Header::ETHERTYPE if is_nobodys::<V6>(linear(ctx.ctx), Hook::Ingress) => {
                Verdict::NotOurs
            }
            Ipv4Header::ETHERTYPE => {
                return match established_tcp(ctx.ctx) {
                    ANOTHER_WAY => of_family::<V4>(ctx.ctx),
                    action => action,
                };
            }
            Ipv6Header::ETHERTYPE => return of_family::<V6>(ctx.ctx),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Verdict::HandedOver,
            _ => Verdict::NotIp,
        },
        None => Verdict::Truncated,
    };
    passes(ctx.ctx, verdict);
    XDP_PASS
}

/// What [`established_tcp`] returns instead of an action.
const ANOTHER_WAY: u32 = u32::MAX;

/// Steers what most packets are, TCP of an established flow over IPv4, by the shortest way: the steps
/// are those of all packets, but nothing is laid on the desk between them. Packets that are to be told
/// of go the other way, so that this one has no room to keep for it.
#[inline(never)]
fn established_tcp(ctx: *mut xdp_md) -> u32 {
    if trace::is_wanted() {
        return ANOTHER_WAY;
    }
    let maps = Maps::<V4>::NEW;
    let Some(frame) = linear(ctx).at::<TcpFrame>(0).filter(|it| it.is_one()) else {
        return ANOTHER_WAY;
    };
    let segment = frame.segment();
    let (meeting, extent) = meet(ctx);
    let offset = match segment.ip.locate(linear(ctx), extent) {
        Ok(located) => located.offset,
        Err(verdict) => return leaves_alone(ctx, verdict),
    };
    if let Err(verdict) = segment.check((offset - ETHERNET_LEN) as u32, extent) {
        return leaves_alone(ctx, verdict);
    }
    let key = segment.tuple();
    let arrival = meeting.with(&segment);
    let mut decision = Decision::NONE;
    if !steer_established(&maps, &arrival, &key, &mut decision) {
        return ANOTHER_WAY;
    }
    learn(&maps, &arrival, &decision);
    if let Err(action) = prepare(ctx, segment.ethernet, &arrival, &decision, || {}) {
        if decision.is_forwarded() {
            give_back(&maps, &arrival, &key);
        }
        return action;
    }
    forward(segment, &arrival, &decision)
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
    let (meeting, extent) = meet(ctx);
    let located = match ip.locate(bytes, extent) {
        Ok(located) => located,
        Err(verdict) => return passes(ctx, verdict),
    };
    match desk.take(bytes, located, meeting, extent) {
        Ok(read) => read,
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
    let (bytes, located) = (linear(ctx), desk.spot.located());
    let tell = || trace::steered(Xdp(ctx), key, arrival, decision, read == Read::Segment);
    if read == Read::Message {
        let Ok(mut message) = Quoted::<A>::view(bytes, located) else {
            return XDP_DROP;
        };
        if let Err(action) = prepare(ctx, message.ethernet, arrival, decision, tell) {
            return action;
        }
        let rewritten = message.rewrite(key, &decision.leaves, decision.is_forwarded());
        let icmp = &mut message.message.icmp;
        icmp.checksum = rewritten.apply(icmp.checksum);
        return send(decision, arrival);
    }
    let Some(ethernet) = bytes.at::<EthernetHeader>(0) else {
        return XDP_DROP;
    };
    learn(&maps, arrival, decision);
    if let Err(action) = prepare(ctx, ethernet, arrival, decision, tell) {
        if decision.is_forwarded() {
            give_back(&maps, arrival, key);
        }
        return action;
    }
    // In two branches to the end: the verifier must not forget which header it is.
    let forwarded = if located.protocol == PROTOCOL_TCP {
        segment::<A>(bytes, located.as_tcp()).map(|segment| forward(segment, arrival, decision))
    } else {
        segment::<A>(bytes, located.as_udp()).map(|segment| forward(segment, arrival, decision))
    };
    forwarded.unwrap_or(XDP_DROP)
}

/// Rewrites a segment or datagram and sends it on.
#[inline(always)]
fn forward<A: Family>(
    mut segment: Segment<'_, A>,
    arrival: &Arrival,
    decision: &Decision<A>,
) -> u32 {
    let rewritten = segment.rewrite(&decision.leaves, decision.is_forwarded());
    segment.transport.apply(rewritten);
    send(decision, arrival)
}

/// Learns the link addresses of a worker that answers.
#[inline(always)]
fn learn<A: Family>(maps: &Maps<A>, arrival: &Arrival, decision: &Decision<A>) {
    if decision.verdict == Verdict::ToClient && decision.plausible != 0 {
        maps.learn(
            decision.backend,
            arrival.interface,
            &Neighbour {
                worker: arrival.source_mac,
                manager: arrival.destination_mac,
            },
        );
    }
}

/// Counts the packet, `tell`s of it, and writes its link addresses. Returns the action at once where there is nothing
/// to rewrite, or what is to be done is beyond XDP.
#[inline(always)]
fn prepare<A: Family>(
    ctx: *mut xdp_md,
    ethernet: &mut EthernetHeader,
    arrival: &Arrival,
    decision: &Decision<A>,
    tell: impl FnOnce(),
) -> Result<(), u32> {
    let maps = Maps::<A>::NEW;
    if decision.is_forwarded() {
        let link = link(&maps, decision).filter(|_| fits(ctx, arrival, decision));
        let Some(Neighbour { worker, manager }) = link else {
            // TC will find the connection begun.
            maps.count_connections(decision.backend, decision.opened.into());
            return Err(leaves_alone(ctx, Verdict::HandedOver));
        };
        ethernet.destination = worker.bytes();
        ethernet.source = manager.bytes();
    }
    maps.account(decision, arrival);
    tell();
    match decision.exit {
        Exit::Pass => Err(XDP_PASS),
        Exit::Drop => Err(XDP_DROP),
        _ => Ok(()),
    }
}

/// Whether the next link takes the packet; TC answers one that it does not.
#[inline(always)]
fn fits<A: Family>(ctx: *mut xdp_md, arrival: &Arrival, decision: &Decision<A>) -> bool {
    decision.interface == arrival.interface
        || !too_large::may_exceed(arrival, decision)
        || too_large::exceeded(ctx.cast(), decision.interface, false) == 0
}

/// The link addresses to leave with, destination first; nothing where only TC knows the way.
#[inline(always)]
fn link<A: Family>(maps: &Maps<A>, decision: &Decision<A>) -> Option<Neighbour> {
    match decision.exit {
        Exit::Backend | Exit::Onwards => maps.neighbour(decision.backend),
        Exit::Client if decision.destination_mac.tag() == 0 => Some(Neighbour {
            worker: decision.destination_mac,
            manager: decision.source_mac,
        }),
        _ => None,
    }
}

/// The frame, for the trace.
#[derive(Clone, Copy)]
struct Xdp(*mut xdp_md);

impl Frame for Xdp {
    const IS_XDP: bool = true;

    /// Copies pairs of bytes, because the verifier knows no length but a constant one.
    #[inline(always)]
    fn copy_head(self, head: &mut [u8; HEAD]) -> usize {
        let Linear { start, end } = linear(self.0);
        let (pairs, _) = head.as_chunks_mut::<2>();
        for (number, pair) in pairs.iter_mut().enumerate() {
            let from = start + 2 * number;
            if from + 2 > end {
                break;
            }
            // SAFETY: within the packet, as the verifier checks again.
            *pair = unsafe { *(from as *const [u8; 2]) };
        }
        (end - start).min(HEAD)
    }

    #[inline(always)]
    fn emit(self) {
        trace_xdp(self.0);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_xdp(ctx: *mut xdp_md) -> u32 {
    trace::emit(Xdp(ctx))
}

#[inline(always)]
fn meet(ctx: *mut xdp_md) -> (Meeting, Extent) {
    let meeting = Meeting {
        hook: Hook::Ingress,
        in_driver: true,
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
    (meeting, extent)
}

#[inline(always)]
fn leaves_alone(ctx: *mut xdp_md, verdict: Verdict) -> u32 {
    passes(ctx, verdict);
    XDP_PASS
}

/// Counts a packet that is left alone.
#[inline(always)]
fn passes(ctx: *mut xdp_md, verdict: Verdict) -> Read {
    let (meeting, _) = meet(ctx);
    count(verdict, 1, meeting.bytes.into());
    trace::left_alone(Xdp(ctx), meeting, verdict);
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

/// Sends a rewritten packet where the decision says.
#[inline(always)]
fn send<A>(decision: &Decision<A>, arrival: &Arrival) -> u32 {
    let interface = decision.interface;
    if !decision.is_forwarded() {
        return XDP_PASS;
    }
    // SAFETY: a constant for the verifier, but not for the compiler.
    let redirects = unsafe { core::ptr::read_volatile(&raw const XDP_REDIRECTS) };
    if interface == arrival.interface && redirects == 0 {
        XDP_TX
    } else {
        // SAFETY: the helper takes integers only.
        unsafe { bpf_redirect(interface, 0) as u32 }
    }
}
