//! The programs of the packet benchmark besides memlb's own: two baselines, and a wrapper.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on the packet as its last run has left it. So the wrapper writes the headers
//! again each time, and then tail-calls the program under test. The first baseline returns at once; the second one does
//! the minimum of a balancer with full address translation and connection tracking.
#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_F_PSEUDO_HDR, TC_ACT_UNSPEC, xdp_action},
    btf_maps::{Array, LruHashMap, ProgramArray},
    helpers::generated::{bpf_l4_csum_replace, bpf_redirect},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    address::{Address, V4},
    headers::{ETHERTYPE_IPV4, PROTOCOL_TCP},
    maps::{Backend, DEFAULT_FLOW_ENTRIES, FlowKey},
    packet::{Rewritten, Segment, TcpFrame, Transport},
};

/// The wrapper's result if it fails: no action of TC or XDP.
const FAILED: u32 = 99;
const TCP_CHECKSUM: u32 = 50;

/// The headers of every repetition.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PacketTemplate {
    headers: TcpFrame,
    /// The source port, host order: this one and those after it, in turn. After 65,536 turns the source
    /// address is the next one.
    first_port: u16,
    /// The number of turns less one; the number is a power of two.
    turn_mask: u32,
    /// The number of destination addresses less one, from that of `headers` on; also a power of two.
    service_mask: u32,
    repetitions: u32,
}

/// A flow entry of the baseline.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BaselineFlow {
    translated: FlowKey,
    backend: u64,
}

#[btf_map(name = "template")]
static TEMPLATE: Array<PacketTemplate, 1> = Array::new();

#[btf_map(name = "under_test")]
static UNDER_TEST: ProgramArray<1> = ProgramArray::new();

#[btf_map(name = "base_flows")]
static FLOWS: LruHashMap<FlowKey, BaselineFlow, { DEFAULT_FLOW_ENTRIES as usize }> =
    LruHashMap::new();

#[btf_map(name = "base_backends")]
static BACKENDS: Array<Backend, 2> = Array::new();

#[classifier]
pub fn wrapper_tc(ctx: TcContext) -> i32 {
    wrap(&ctx, ctx.data(), ctx.data_end()) as i32
}

#[xdp]
pub fn wrapper_xdp(ctx: XdpContext) -> u32 {
    wrap(&ctx, ctx.data(), ctx.data_end())
}

#[classifier]
pub fn return_tc(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[xdp]
pub fn return_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
pub fn translate_tc(ctx: TcContext) -> i32 {
    let Some(frame) = frame(ctx.data(), ctx.data_end()) else {
        return TC_ACT_UNSPEC;
    };
    let Some((rewritten, interface)) = translate(frame) else {
        return TC_ACT_UNSPEC;
    };
    let Rewritten { addresses, ports } = rewritten;
    let skb = ctx.skb.skb;
    // SAFETY: a valid context, and an offset within the packet that was just written.
    unsafe {
        bpf_l4_csum_replace(
            skb,
            TCP_CHECKSUM,
            0,
            addresses.raw(),
            BPF_F_PSEUDO_HDR.into(),
        );
        bpf_l4_csum_replace(skb, TCP_CHECKSUM, 0, ports.raw(), 0);
        bpf_redirect(interface, 0) as i32
    }
}

#[xdp]
pub fn translate_xdp(ctx: XdpContext) -> u32 {
    let Some(frame) = frame(ctx.data(), ctx.data_end()) else {
        return xdp_action::XDP_PASS;
    };
    let Some((rewritten, interface)) = translate(frame) else {
        return xdp_action::XDP_PASS;
    };
    frame.tcp.checksum = rewritten.apply(frame.tcp.checksum);
    // SAFETY: a valid context, of which the field may be read; the helper takes integers only.
    unsafe {
        if interface == (*ctx.ctx).ingress_ifindex {
            xdp_action::XDP_TX
        } else {
            bpf_redirect(interface, 0) as u32
        }
    }
}

/// Returns only if the tail call fails.
#[inline(always)]
fn wrap(ctx: &impl EbpfContext, start: usize, end: usize) -> u32 {
    let (Some(template), Some(frame)) = (TEMPLATE.get_ptr_mut(0), frame(start, end)) else {
        return FAILED;
    };
    // SAFETY: a slot of an array map; one test run at a time.
    let template = unsafe { &mut *template };
    *frame = template.headers;
    let turn = template.repetitions & template.turn_mask;
    frame.tcp.source_port = template.first_port.wrapping_add(turn as u16).to_be_bytes();
    let [.., last] = &mut frame.ip.source;
    *last = last.wrapping_add((turn >> 16) as u8);
    let [.., next_to_last, last] = &mut frame.ip.destination;
    let service = u16::from_be_bytes([*next_to_last, *last]);
    let service = service.wrapping_add((turn & template.service_mask) as u16);
    [*next_to_last, *last] = service.to_be_bytes();
    template.repetitions = template.repetitions.wrapping_add(1);
    // SAFETY: nothing here waits to be dropped.
    unsafe { UNDER_TEST.tail_call(ctx, 0) };
    FAILED
}

/// One look-up of the flow, one of its backend, addresses, ports and the IPv4 checksum rewritten.
#[inline(always)]
fn translate(frame: &mut TcpFrame) -> Option<(Rewritten, u32)> {
    let TcpFrame { ethernet, ip, tcp } = &*frame;
    if ethernet.ether_type() != ETHERTYPE_IPV4
        || ip.protocol != PROTOCOL_TCP
        || ip.header_words() != 5
        || ip.is_fragment()
    {
        return None;
    }
    let key = FlowKey {
        source: ip.source,
        destination: ip.destination,
        source_port: tcp.source_port,
        destination_port: tcp.destination_port,
        protocol: ip.protocol.into(),
    };
    // SAFETY: copied at once.
    let known = unsafe { FLOWS.get(key) }.copied();
    let tracked = match known {
        Some(tracked) => tracked,
        None if tcp.flags().is_syn() => begin(&key)?,
        None => return None,
    };
    let backend = BACKENDS.get(tracked.backend as u32)?;
    let interface = backend.interface;
    let mut segment = Segment::<V4> {
        ethernet: &mut frame.ethernet,
        ip: &mut frame.ip,
        transport: Transport::Tcp(&mut frame.tcp),
    };
    Some((segment.rewrite(&tracked.translated, true), interface))
}

/// The minimum of a new flow: an entry for each direction. The port is the client's.
#[inline(always)]
fn begin(key: &FlowKey) -> Option<BaselineFlow> {
    let backend = BACKENDS.get(1)?;
    let request = BaselineFlow {
        translated: FlowKey {
            source: V4::from_mapped(&backend.source),
            destination: V4::from_mapped(&backend.address),
            destination_port: backend.port.to_be_bytes(),
            ..*key
        },
        backend: 1,
    };
    let reply = BaselineFlow {
        translated: key.reversed(),
        ..request
    };
    let reply_key = request.translated.reversed();
    FLOWS.insert(reply_key, reply, BPF_ANY.into()).ok()?;
    FLOWS.insert(key, request, BPF_ANY.into()).ok()?;
    Some(request)
}

#[inline(always)]
fn frame<'a>(start: usize, end: usize) -> Option<&'a mut TcpFrame> {
    // SAFETY: within the packet, as the verifier checks again; align 1; every bit pattern is valid;
    // the only view of these bytes.
    (start + size_of::<TcpFrame>() <= end).then(|| unsafe { &mut *(start as *mut TcpFrame) })
}

const _: () = assert!(size_of::<PacketTemplate>() == 68 && size_of::<BaselineFlow>() == 24);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never linked: the verifier would reject an endless loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
