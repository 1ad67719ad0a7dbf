//! The TC program. Checksums are updated by helpers, which handle partial ones.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_clone_redirect, bpf_get_prandom_u32, bpf_skb_load_bytes},
    programs::TcContext,
};
use lb_common::{
    address::{Address, V4, V6},
    checksum::Difference,
    headers::{ETHERNET_LEN, ETHERTYPE_VLAN, EthernetHeader, Ipv4Header, Ipv6Header},
    maps::{LOOPBACK, Mac},
    packet::{
        Extent, FrameBytes, IcmpError, IpAddress, IpHeader, Segment, TcpFrame, Transport, after_hop,
    },
    steer::{Decision, Exit, Hook, PacketMeta, Tables, steer_established, undo_accounting},
    trace::HEAD,
    verdict::Verdict,
};
use lb_ebpf::{
    packet_bytes::segment,
    skb::{PACKET_HOST, locate, packet_bytes, update_message, update_packet_sum, update_transport},
};

use crate::{
    maps::{Family, Maps, count},
    narrow,
    packet::{HookContext, decide, is_unrelated},
    packet_scratch::{PacketScratch, Parsed},
    peer,
    redirect::{STEERED, mark, redirect, redirect_by_route, redirect_to_neighbour, set_vlan},
    retry, too_large,
    trace::{self, Frame, barrier_var},
};

/// Steers one packet. Unrelated packets go on to the next program (`TC_ACT_UNSPEC`).
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook) -> i32 {
    let skb = ctx.skb.skb;
    if hook == Hook::Egress && is_steered(skb) {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the kernel hands a valid context to the program.
    let verdict = match u16::from_be(unsafe { (*skb).protocol } as u16) {
        Ipv4Header::ETHERTYPE if is_unrelated::<V4>(packet_bytes(skb), hook) => Verdict::NotOurs,
        Ipv6Header::ETHERTYPE if is_unrelated::<V6>(packet_bytes(skb), hook) => Verdict::NotOurs,
        Ipv4Header::ETHERTYPE => {
            return match fast_path(skb, hook) {
                action @ (USE_SLOW_PATH | UNESTABLISHED) => {
                    slow_path::<V4>(skb, hook, action == UNESTABLISHED)
                }
                action => action,
            };
        }
        Ipv6Header::ETHERTYPE => return slow_path::<V6>(skb, hook, false),
        _ => Verdict::NotIp,
    };
    match SkbContext::parse(skb, hook) {
        Ok(context) => context.pass_action(verdict),
        Err(_) => TC_ACT_UNSPEC,
    }
}

/// Whether a program of this host has forwarded the packet here.
#[inline(always)]
fn is_steered(skb: *mut __sk_buff) -> bool {
    // SAFETY: the kernel passes a valid context; the verifier checks the fields.
    unsafe { (*skb).tc_index == STEERED && (*skb).ingress_ifindex != 0 }
}

/// Results of [`fast_path`] other than an action.
const USE_SLOW_PATH: i32 = i32::MIN;
/// The slow path need not look up the flow.
const UNESTABLISHED: i32 = USE_SLOW_PATH + 1;

/// Steers packets of established TCP flows over IPv4. The steps are the same as in [`slow_path`], but without the
/// scratch map between them. Traced and malformed packets take the slow path.
#[inline(never)]
fn fast_path(skb: *mut __sk_buff, hook: Hook) -> i32 {
    if trace::is_enabled() {
        return USE_SLOW_PATH;
    }
    let maps = Maps::<V4>::NEW;
    let Some(frame) = packet_bytes(skb)
        .at::<TcpFrame>(0)
        .filter(|it| it.is_tcp_ipv4())
    else {
        return USE_SLOW_PATH;
    };
    let Ok(context) = SkbContext::read(skb, hook) else {
        return USE_SLOW_PATH;
    };
    let segment = frame.segment();
    let Some(offset) = segment.checked_offset(packet_bytes(skb), context.extent) else {
        return USE_SLOW_PATH;
    };
    let key = segment.tuple();
    let packet = context.hook_context.packet_meta(&segment);
    let mut decision = Decision::NONE;
    if !steer_established(&maps, &packet, &key, &mut decision) {
        return UNESTABLISHED;
    }
    if exceeded(skb, &packet, &decision) != 0 {
        // The slow path decides again and sends the error.
        undo_accounting(&maps, &packet, &key);
        return USE_SLOW_PATH;
    }
    maps.account(&decision, &packet);
    match decision.exit {
        Exit::Pass => TC_ACT_UNSPEC,
        Exit::Drop => TC_ACT_SHOT,
        _ => forward(
            skb,
            offset,
            segment,
            &packet,
            &decision,
            Difference::default(),
        ),
    }
}

#[inline(always)]
fn slow_path<A: Family>(skb: *mut __sk_buff, hook: Hook, is_unestablished: bool) -> i32 {
    let Some(scratch) = A::packet_scratch() else {
        return TC_ACT_UNSPEC;
    };
    match parse(skb, hook, scratch) {
        Parsed::Passed | Parsed::Skipped => TC_ACT_UNSPEC,
        parsed => {
            decide(scratch, parsed, is_unestablished);
            if scratch.decision.new_connection != 0 {
                retry::keep_syn::<A>(Skb(skb));
            }
            if scratch.decision.verdict == Verdict::Retried {
                retry::decide(scratch);
            }
            if scratch.decision.verdict == Verdict::Retried {
                return send_again(skb, scratch);
            }
            let mtu = match parsed {
                Parsed::Segment => exceeded(skb, &scratch.packet, &scratch.decision),
                // No error about an error (RFC 1122, section 3.2.2).
                _ => 0,
            };
            if mtu == 0 {
                return act::<A>(skb, parsed);
            }
            // The sender will retry.
            Maps::<A>::NEW.count_connections(
                scratch.decision.backend,
                scratch.decision.new_connection.into(),
            );
            scratch.decision.verdict = Verdict::TooLarge;
            scratch.decision.exit = Exit::Drop;
            act::<A>(skb, parsed);
            too_large::send_error::<A>(skb, mtu)
        }
    }
}

/// Counts and traces a RST, and sends a SYN in its place.
#[inline(never)]
fn send_again<A: Family>(skb: *mut __sk_buff, scratch: &PacketScratch<A>) -> i32 {
    let PacketScratch {
        key,
        packet,
        decision,
        ..
    } = scratch;
    Maps::<A>::NEW.account(decision, packet);
    trace::steered(Skb(skb), key, packet, decision, true);
    retry::send_again(skb, scratch)
}

/// The next link's MTU if the packet exceeds it, else 0.
#[inline(always)]
fn exceeded<A: Address>(skb: *mut __sk_buff, packet: &PacketMeta, decision: &Decision<A>) -> u32 {
    if !too_large::may_exceed(packet, decision) {
        return 0;
    }
    // SAFETY: a valid context; programs may read the field.
    let is_one_packet = unsafe { (*skb).gso_size } == 0;
    if size_of::<A>() == size_of::<V6>()
        && decision.exit == Exit::ClientInFragments
        && is_one_packet
        && packet.bytes > narrow::DIVISIBLE
    {
        return narrow::MTU;
    }
    too_large::exceeded(skb.cast(), decision.interface, true)
}

/// Parses a packet into the scratch map.
#[inline(never)]
fn parse<A: Family>(skb: *mut __sk_buff, hook: Hook, scratch: &mut PacketScratch<A>) -> Parsed {
    let context = match SkbContext::parse(skb, hook) {
        Ok(context) => context,
        Err(parsed) => return parsed,
    };
    let located = match locate::<A>(skb, context.extent) {
        Ok(located) => located,
        Err(verdict) => return context.pass(verdict),
    };
    if located.protocol == A::Header::ICMP && hook == Hook::Egress {
        return context.pass(Verdict::OtherProtocol);
    }
    match scratch.parse(
        packet_bytes(skb),
        located,
        context.hook_context,
        context.extent,
    ) {
        Ok(parsed) => parsed,
        Err(verdict) => context.pass(verdict),
    }
}

/// Carries out the decision, in a global function, see [`lb_common::steer::stages`].
#[inline(always)]
fn act<A: Family>(skb: *mut __sk_buff, parsed: Parsed) -> i32 {
    if A::IS_V4 {
        act_skb_v4(skb, parsed)
    } else {
        act_skb_v6(skb, parsed)
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn act_skb_v4(skb: *mut __sk_buff, parsed: Parsed) -> i32 {
    act_here::<V4>(skb, parsed)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn act_skb_v6(skb: *mut __sk_buff, parsed: Parsed) -> i32 {
    act_here::<V6>(skb, parsed)
}

#[inline(always)]
fn act_here<A: Family>(skb: *mut __sk_buff, parsed: Parsed) -> i32 {
    let Some(scratch) = A::packet_scratch() else {
        return TC_ACT_SHOT;
    };
    let scratch: &PacketScratch<A> = scratch;
    let PacketScratch {
        key,
        packet,
        decision,
        ..
    } = scratch;
    Maps::<A>::NEW.account(decision, packet);
    trace::steered(Skb(skb), key, packet, decision, parsed == Parsed::Segment);
    let (bytes, located) = (packet_bytes(skb), scratch.header_offset.located());
    match decision.exit {
        Exit::Pass => return TC_ACT_UNSPEC,
        Exit::Drop => return TC_ACT_SHOT,
        Exit::Reset => return reset_worker(skb, scratch),
        Exit::Peers => return peer::relay(skb, packet.interface),
        _ => {}
    }
    if parsed == Parsed::IcmpError {
        let Ok(mut message) = IcmpError::<A>::view(bytes, located) else {
            return TC_ACT_SHOT;
        };
        set_link_addresses(message.ethernet, decision);
        let rewritten = message.rewrite(key, &decision.translated, decision.is_forwarded());
        update_message::<A>(skb, located.offset, rewritten);
        update_packet_sum::<A>(
            skb,
            rewritten.addresses.plus(hop_limit_change(packet, decision)),
        );
        return send(skb, packet.source_mac.tag(), decision);
    }
    match segment::<A>(bytes, located) {
        Some(segment) => forward(
            skb,
            located.offset,
            segment,
            packet,
            decision,
            Difference::default(),
        ),
        None => TC_ACT_SHOT,
    }
}

/// Lets a copy of a SYN arrive once more, and makes the SYN a RST to the worker of an evicted handshake.
#[inline(always)]
fn reset_worker<A: Family>(skb: *mut __sk_buff, scratch: &PacketScratch<A>) -> i32 {
    // SAFETY: a valid context, no pointer into which is used afterwards; programs may read the field.
    let failed = unsafe { bpf_clone_redirect(skb, (*skb).ifindex, BPF_F_INGRESS.into()) };
    let located = scratch.header_offset.located();
    let (0, Some(mut segment), Some(flow_scratch)) = (
        failed,
        segment::<A>(packet_bytes(skb), located.as_tcp()),
        Maps::<A>::NEW.flow_scratch(),
    ) else {
        return TC_ACT_SHOT;
    };
    let changed = match &mut segment.transport {
        Transport::Tcp(tcp) => tcp.make_reset(flow_scratch.pending.reset_sequence),
        Transport::Udp(_) => return TC_ACT_SHOT,
    };
    let (packet, decision) = (&scratch.packet, &scratch.decision);
    forward(skb, located.offset, segment, packet, decision, changed)
}

/// Rewrites and sends a segment or datagram whose transport header has already been `changed`.
#[inline(always)]
fn forward<A: Family>(
    skb: *mut __sk_buff,
    offset: usize,
    mut segment: Segment<'_, A>,
    packet: &PacketMeta,
    decision: &Decision<A>,
    changed: Difference,
) -> i32 {
    set_link_addresses(segment.ethernet, decision);
    let mut rewritten = segment.rewrite(&decision.translated, decision.is_forwarded());
    rewritten.ports = rewritten.ports.plus(changed);
    if decision.exit != Exit::Dsr {
        update_transport(skb, offset, &segment.transport, rewritten);
    }
    update_packet_sum::<A>(
        skb,
        rewritten.addresses.plus(hop_limit_change(packet, decision)),
    );
    send(skb, packet.source_mac.tag(), decision)
}

/// The difference that forwarding makes to the hop limit.
#[inline(always)]
fn hop_limit_change<A: Address>(packet: &PacketMeta, decision: &Decision<A>) -> Difference {
    let before = packet.time_to_live;
    let after = if decision.is_forwarded() {
        after_hop(before)
    } else {
        before
    };
    Difference::of_u16([0, before], [0, after])
}

/// Writes link addresses, unless the kernel does.
#[inline(always)]
fn set_link_addresses<A>(ethernet: &mut EthernetHeader, decision: &Decision<A>) {
    match decision.exit {
        Exit::Client | Exit::ClientInFragments => {
            decision.destination_mac.write(&mut ethernet.destination);
            decision.source_mac.write(&mut ethernet.source);
        }
        // The link address of `lo`: the stack drops frames to another one.
        Exit::Loopback => ethernet.destination = [0; 6],
        _ => {}
    }
}

/// Sends a rewritten packet to the decision's exit.
#[inline(always)]
fn send<A: IpAddress>(skb: *mut __sk_buff, tag: u16, decision: &Decision<A>) -> i32 {
    match decision.exit {
        Exit::Pass | Exit::Local => TC_ACT_UNSPEC,
        Exit::Drop | Exit::Peers => TC_ACT_SHOT,
        Exit::Backend | Exit::Dsr | Exit::Reset => {
            mark(skb);
            set_vlan(skb, tag, 0);
            redirect_to_neighbour(decision.interface, decision.next_hop)
        }
        Exit::ClientByRoute => {
            mark(skb);
            set_vlan(skb, tag, 0);
            redirect_by_route(decision.interface)
        }
        Exit::Client => redirect_to_client(skb, tag, decision),
        Exit::ClientInFragments if size_of::<A>() == size_of::<V6>() => {
            mark(skb);
            set_vlan(skb, tag, decision.destination_mac.tag());
            narrow::send(skb, decision.interface)
        }
        Exit::ClientInFragments => {
            if let Some(ip) = packet_bytes(skb).at::<A::Header>(ETHERNET_LEN) {
                // SAFETY: the helper takes no argument.
                ip.allow_fragments(unsafe { bpf_get_prandom_u32() } as u16);
            }
            redirect_to_client(skb, tag, decision)
        }
        Exit::Loopback => {
            set_vlan(skb, tag, 0);
            redirect(LOOPBACK, BPF_F_INGRESS.into())
        }
    }
}

#[inline(always)]
fn redirect_to_client<A: Address>(skb: *mut __sk_buff, tag: u16, decision: &Decision<A>) -> i32 {
    mark(skb);
    set_vlan(skb, tag, decision.destination_mac.tag());
    redirect(decision.interface, 0)
}

/// The frame for the trace. Its first bytes may be outside the linear part.
#[derive(Clone, Copy)]
struct Skb(*mut __sk_buff);

impl Frame for Skb {
    const IS_XDP: bool = false;

    #[inline(always)]
    fn copy_head(self, head: &mut [u8; HEAD]) -> usize {
        // SAFETY: a valid context, of which the field may be read.
        let length = u64::from(unsafe { (*self.0).len }).min(HEAD as u64);
        // Never true. The verifier of Linux 6.1 demands a lower bound of the length, in the same register that is
        // passed to the helper; without `barrier_var` the compiler compares a copy.
        let length = barrier_var(length);
        if length < ETHERNET_LEN as u64 {
            return 0;
        }
        // SAFETY: a valid context, and room for `length` bytes.
        let failed = unsafe {
            bpf_skb_load_bytes(self.0.cast(), 0, head.as_mut_ptr().cast(), length as u32)
        };
        if failed == 0 { length as usize } else { 0 }
    }

    #[inline(always)]
    fn emit(self) {
        trace_skb(self.0);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_skb(skb: *mut __sk_buff) -> u32 {
    trace::emit(Skb(skb))
}

/// Metadata of a packet from its socket buffer.
#[derive(Clone, Copy)]
struct SkbContext {
    frame: Skb,
    hook_context: HookContext,
    extent: Extent,
    /// The packet is being forwarded, not sent by this host.
    is_forwarded: bool,
}

impl SkbContext {
    /// Reads the context. Counts packets that it excludes.
    #[inline(always)]
    fn parse(skb: *mut __sk_buff, hook: Hook) -> Result<Self, Parsed> {
        Self::read(skb, hook).map_err(|(context, verdict)| context.pass(verdict))
    }

    /// Reads the context. Returns it with the verdict of packets that it excludes.
    #[inline(always)]
    fn read(skb: *mut __sk_buff, hook: Hook) -> Result<Self, (Self, Verdict)> {
        // SAFETY: the kernel passes a valid context; the verifier checks the fields.
        let (length, interface, received_on, kind, gso_size, tagged) = unsafe {
            (
                (*skb).len,
                (*skb).ifindex,
                (*skb).ingress_ifindex,
                (*skb).pkt_type,
                (*skb).gso_size,
                (*skb).vlan_present != 0,
            )
        };
        let mut context = Self {
            frame: Skb(skb),
            hook_context: HookContext {
                hook,
                in_driver: false,
                interface,
                packets: 1,
                bytes: length,
                tag: 0,
            },
            extent: Extent {
                bytes: length,
                coalesced: gso_size != 0,
            },
            is_forwarded: hook == Hook::Egress && received_on != 0,
        };
        if context.extent.coalesced {
            // SAFETY: as above.
            context.hook_context.packets = unsafe { (*skb).gso_segs }.max(1);
        }
        if hook == Hook::Ingress && kind != PACKET_HOST {
            return Err((context, Verdict::NotForUs));
        }
        if tagged {
            // SAFETY: as above.
            let (tag, protocol) = unsafe { ((*skb).vlan_tci, (*skb).vlan_proto) };
            context.hook_context.tag = Mac::tag_of(tag as u16);
            // The kernel keeps the outermost tag outside the frame.
            if protocol != u32::from(ETHERTYPE_VLAN.to_be()) {
                return Err((context, Verdict::NotIp));
            }
        }
        Ok(context)
    }

    #[inline(always)]
    fn pass_action(&self, verdict: Verdict) -> i32 {
        self.pass(verdict);
        TC_ACT_UNSPEC
    }

    /// Counts a packet that is passed. Forwarded packets were counted at ingress.
    #[inline(always)]
    fn pass(&self, verdict: Verdict) -> Parsed {
        if self.is_forwarded {
            return Parsed::Skipped;
        }
        let HookContext { packets, bytes, .. } = self.hook_context;
        count(verdict, packets.into(), bytes.into());
        trace::passed(self.frame, self.hook_context, verdict);
        Parsed::Passed
    }
}
