//! The XDP program. Checksums are complete and updated in place (RFC 1624).

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
    maps::{Mac, Neighbour},
    packet::{Extent, FrameBytes, IcmpError, IpHeader, Segment, TcpFrame},
    steer::{Decision, Exit, Hook, PacketMeta, steer_established, undo_accounting},
    trace::HEAD,
    verdict::Verdict,
};
use lb_ebpf::packet_bytes::{PacketBytes, segment};

use crate::{
    maps::{Family, Maps, count, is_for_other_station},
    packet::{HookContext, decide, is_unrelated},
    packet_scratch::{PacketScratch, Parsed},
    retry, too_large,
    trace::{self, Frame},
};

/// 1: send by redirect even where `XDP_TX` is possible. The loader sets it for drivers that need it.
#[unsafe(no_mangle)]
static XDP_REDIRECTS: u8 = 0;

/// Steers one packet. Passes packets to the TC program if the next hop's link address is unknown, for the loopback
/// interface, with a VLAN tag, or to another station.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let verdict = match packet_bytes(ctx.ctx).at::<EthernetHeader>(0) {
        Some(ethernet) => match ethernet.ether_type() {
            Ipv4Header::ETHERTYPE if is_unrelated::<V4>(packet_bytes(ctx.ctx), Hook::Ingress) => {
                Verdict::NotOurs
            }
            Ipv6Header::ETHERTYPE if is_unrelated::<V6>(packet_bytes(ctx.ctx), Hook::Ingress) => {
                Verdict::NotOurs
            }
            Ipv4Header::ETHERTYPE | Ipv6Header::ETHERTYPE
                if is_for_other_station(interface(ctx.ctx), Mac::read(&ethernet.destination)) =>
            {
                Verdict::HandedOver
            }
            Ipv4Header::ETHERTYPE => {
                return match fast_path(ctx.ctx) {
                    action @ (USE_SLOW_PATH | UNESTABLISHED) => {
                        slow_path::<V4>(ctx.ctx, action == UNESTABLISHED)
                    }
                    action => action,
                };
            }
            Ipv6Header::ETHERTYPE => return slow_path::<V6>(ctx.ctx, false),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Verdict::HandedOver,
            _ => Verdict::NotIp,
        },
        None => Verdict::Truncated,
    };
    pass(ctx.ctx, verdict);
    XDP_PASS
}

/// Results of [`fast_path`] other than an action.
const USE_SLOW_PATH: u32 = u32::MAX;
/// The slow path need not look up the flow.
const UNESTABLISHED: u32 = USE_SLOW_PATH - 1;

/// Steers packets of established TCP flows over IPv4. The steps are the same as in [`slow_path`], but without the
/// scratch map between them. Traced and malformed packets take the slow path.
#[inline(never)]
fn fast_path(ctx: *mut xdp_md) -> u32 {
    if trace::is_enabled() {
        return USE_SLOW_PATH;
    }
    let maps = Maps::<V4>::NEW;
    let Some(frame) = packet_bytes(ctx)
        .at::<TcpFrame>(0)
        .filter(|it| it.is_tcp_ipv4())
    else {
        return USE_SLOW_PATH;
    };
    let segment = frame.segment();
    let (hook_context, extent) = parse_context(ctx);
    if segment.checked_offset(packet_bytes(ctx), extent).is_none() {
        return USE_SLOW_PATH;
    }
    let key = segment.tuple();
    let packet = hook_context.packet_meta(&segment);
    let mut decision = Decision::NONE;
    if !steer_established(&maps, &packet, &key, &mut decision) {
        return UNESTABLISHED;
    }
    learn(&maps, &packet, &decision);
    if let Err(action) = prepare(ctx, segment.ethernet, &packet, &decision, || {}) {
        if decision.is_forwarded() {
            undo_accounting(&maps, &packet, &key);
        }
        return action;
    }
    forward(segment, &packet, &decision)
}

#[inline(always)]
fn slow_path<A: Family>(ctx: *mut xdp_md, is_unestablished: bool) -> u32 {
    let Some(scratch) = A::packet_scratch() else {
        return XDP_PASS;
    };
    match parse(ctx, scratch) {
        Parsed::Passed | Parsed::Skipped => XDP_PASS,
        parsed => {
            decide(scratch, parsed, is_unestablished);
            if scratch.decision.new_connection != 0 {
                retry::keep_syn::<A>(Xdp(ctx));
            }
            act::<A>(ctx, parsed)
        }
    }
}

/// Parses a packet into the scratch map.
#[inline(never)]
fn parse<A: Family>(ctx: *mut xdp_md, scratch: &mut PacketScratch<A>) -> Parsed {
    let bytes = packet_bytes(ctx);
    let Some(ip) = bytes.at::<A::Header>(ETHERNET_LEN) else {
        return pass(ctx, Verdict::Truncated);
    };
    let (hook_context, extent) = parse_context(ctx);
    let located = match ip.locate(bytes, extent) {
        Ok(located) => located,
        Err(verdict) => return pass(ctx, verdict),
    };
    match scratch.parse(bytes, located, hook_context, extent) {
        Ok(parsed) => parsed,
        Err(verdict) => pass(ctx, verdict),
    }
}

/// Carries out the decision, in a global function, see [`lb_common::steer::stages`].
#[inline(always)]
fn act<A: Family>(ctx: *mut xdp_md, parsed: Parsed) -> u32 {
    if A::IS_V4 {
        act_xdp_v4(ctx, parsed)
    } else {
        act_xdp_v6(ctx, parsed)
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn act_xdp_v4(ctx: *mut xdp_md, parsed: Parsed) -> u32 {
    act_here::<V4>(ctx, parsed)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn act_xdp_v6(ctx: *mut xdp_md, parsed: Parsed) -> u32 {
    act_here::<V6>(ctx, parsed)
}

#[inline(always)]
fn act_here<A: Family>(ctx: *mut xdp_md, parsed: Parsed) -> u32 {
    let Some(scratch) = A::packet_scratch() else {
        return XDP_DROP;
    };
    let scratch: &PacketScratch<A> = scratch;
    let PacketScratch {
        key,
        packet,
        decision,
        ..
    } = scratch;
    let maps = Maps::<A>::NEW;
    let (bytes, located) = (packet_bytes(ctx), scratch.header_offset.located());
    let trace_packet =
        || trace::steered(Xdp(ctx), key, packet, decision, parsed == Parsed::Segment);
    if parsed == Parsed::IcmpError {
        let Ok(mut message) = IcmpError::<A>::view(bytes, located) else {
            return XDP_DROP;
        };
        if let Err(action) = prepare(ctx, message.ethernet, packet, decision, trace_packet) {
            return action;
        }
        let rewritten = message.rewrite(key, &decision.translated, decision.is_forwarded());
        let icmp = &mut message.message.icmp;
        icmp.checksum = rewritten.apply(icmp.checksum);
        return send(decision, packet);
    }
    let Some(ethernet) = bytes.at::<EthernetHeader>(0) else {
        return XDP_DROP;
    };
    learn(&maps, packet, decision);
    if let Err(action) = prepare(ctx, ethernet, packet, decision, trace_packet) {
        if decision.is_forwarded() {
            undo_accounting(&maps, packet, key);
        }
        return action;
    }
    // Two branches to the end, so that the verifier keeps the type of the header.
    let forwarded = if located.protocol == PROTOCOL_TCP {
        segment::<A>(bytes, located.as_tcp()).map(|segment| forward(segment, packet, decision))
    } else {
        segment::<A>(bytes, located.as_udp()).map(|segment| forward(segment, packet, decision))
    };
    forwarded.unwrap_or(XDP_DROP)
}

/// Rewrites and sends a segment or datagram.
#[inline(always)]
fn forward<A: Family>(
    mut segment: Segment<'_, A>,
    packet: &PacketMeta,
    decision: &Decision<A>,
) -> u32 {
    let rewritten = segment.rewrite(&decision.translated, decision.is_forwarded());
    segment.transport.apply(rewritten);
    send(decision, packet)
}

/// Learns link addresses from a worker's reply.
#[inline(always)]
fn learn<A: Family>(maps: &Maps<A>, packet: &PacketMeta, decision: &Decision<A>) {
    if decision.verdict == Verdict::ToClient && decision.plausible != 0 {
        maps.learn(
            decision.backend,
            packet.interface,
            &Neighbour {
                worker: packet.source_mac,
                manager: packet.destination_mac,
            },
        );
    }
}

/// Counts and traces the packet, and writes its link addresses. Returns the action if there is nothing to rewrite, or
/// if TC must send the packet.
#[inline(always)]
fn prepare<A: Family>(
    ctx: *mut xdp_md,
    ethernet: &mut EthernetHeader,
    packet: &PacketMeta,
    decision: &Decision<A>,
    trace_packet: impl FnOnce(),
) -> Result<(), u32> {
    let maps = Maps::<A>::NEW;
    if decision.is_forwarded() {
        let link = link(&maps, decision).filter(|_| fits(ctx, packet, decision));
        let Some(Neighbour { worker, manager }) = link else {
            // TC finds the connection already begun.
            maps.count_connections(decision.backend, decision.new_connection.into());
            return Err(pass_action(ctx, Verdict::HandedOver));
        };
        worker.write(&mut ethernet.destination);
        manager.write(&mut ethernet.source);
    }
    maps.account(decision, packet);
    trace_packet();
    match decision.exit {
        Exit::Pass => Err(XDP_PASS),
        Exit::Drop => Err(XDP_DROP),
        _ => Ok(()),
    }
}

/// Whether the packet fits the next link. If not, TC sends the error.
#[inline(always)]
fn fits<A: Family>(ctx: *mut xdp_md, packet: &PacketMeta, decision: &Decision<A>) -> bool {
    decision.interface == packet.interface
        || !too_large::may_exceed(packet, decision)
        || too_large::exceeded(ctx.cast(), decision.interface, false) == 0
}

/// The link addresses of the outgoing frame; `None` if only TC can send it.
#[inline(always)]
fn link<A: Family>(maps: &Maps<A>, decision: &Decision<A>) -> Option<Neighbour> {
    match decision.exit {
        Exit::Backend | Exit::Dsr => maps.neighbour(decision.backend),
        Exit::Client if decision.destination_mac.tag() == 0 => Some(Neighbour {
            worker: decision.destination_mac,
            manager: decision.source_mac,
        }),
        _ => None,
    }
}

/// The frame for the trace.
#[derive(Clone, Copy)]
struct Xdp(*mut xdp_md);

impl Frame for Xdp {
    const IS_XDP: bool = true;

    /// Copies pairs of bytes, because the verifier demands accesses of constant size.
    #[inline(always)]
    fn copy_head(self, head: &mut [u8; HEAD]) -> usize {
        let (start, end) = packet_bytes(self.0).bounds();
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
fn parse_context(ctx: *mut xdp_md) -> (HookContext, Extent) {
    let hook_context = HookContext {
        hook: Hook::Ingress,
        in_driver: true,
        interface: interface(ctx),
        packets: 1,
        bytes: length(ctx),
        tag: 0,
    };
    let extent = Extent {
        bytes: hook_context.bytes,
        coalesced: false,
    };
    (hook_context, extent)
}

/// The index of the interface at which the packet arrives.
#[inline(always)]
fn interface(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx).ingress_ifindex }
}

#[inline(always)]
fn pass_action(ctx: *mut xdp_md, verdict: Verdict) -> u32 {
    pass(ctx, verdict);
    XDP_PASS
}

/// Counts a packet that is passed.
#[inline(always)]
fn pass(ctx: *mut xdp_md, verdict: Verdict) -> Parsed {
    let (hook_context, _) = parse_context(ctx);
    count(verdict, 1, hook_context.bytes.into());
    trace::passed(Xdp(ctx), hook_context, verdict);
    Parsed::Passed
}

#[inline(always)]
fn length(ctx: *mut xdp_md) -> u32 {
    let (start, end) = packet_bytes(ctx).bounds();
    (end - start) as u32
}

#[inline(always)]
fn packet_bytes(ctx: *mut xdp_md) -> PacketBytes {
    let ctx = XdpContext::new(ctx);
    // SAFETY: the context names the packet's bounds. The programs use no view after a helper has changed the
    // packet, which the verifier checks, and view each header once at a time.
    unsafe { PacketBytes::new(ctx.data(), ctx.data_end()) }
}

/// Sends a rewritten packet to the decision's exit.
#[inline(always)]
fn send<A>(decision: &Decision<A>, packet: &PacketMeta) -> u32 {
    let interface = decision.interface;
    if !decision.is_forwarded() {
        return XDP_PASS;
    }
    // SAFETY: a global variable that the loader sets.
    let redirects = unsafe { core::ptr::read_volatile(&raw const XDP_REDIRECTS) };
    if interface == packet.interface && redirects == 0 {
        XDP_TX
    } else {
        // SAFETY: the helper takes integers only.
        unsafe { bpf_redirect(interface, 0) as u32 }
    }
}
