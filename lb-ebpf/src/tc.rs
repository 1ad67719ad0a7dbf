//! TC: the socket buffer's edge. Checksums go through helpers, which know partial ones.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh},
    helpers::generated::{
        bpf_get_prandom_u32, bpf_redirect, bpf_redirect_neigh, bpf_skb_load_bytes,
        bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use lb_common::{
    address::{Address, V4, V6},
    checksum::Difference,
    headers::{ETHERNET_LEN, ETHERTYPE_VLAN, EthernetHeader, Ipv4Header, Ipv6Header},
    maps::{LOOPBACK, Mac},
    packet::{Bytes, Extent, IpHeader, Quoted, Segment, TcpFrame, after_hop},
    steer::{Arrival, Decision, Exit, Hook, give_back, steer_established},
    trace::HEAD,
    verdict::Verdict,
};
use lb_ebpf::{
    linear::segment,
    skb::{PACKET_HOST, keep_sum, linear, locate, update_message, update_transport},
};

use crate::{
    desk::{Desk, Read},
    maps::{Family, Maps, count},
    packet::{Meeting, decide, is_nobodys},
    too_large,
    trace::{self, Frame, untold},
};

/// An arbitrary number for `tc_index`.
const STEERED: u32 = 0x6d6c;
/// Steers one packet. Whatever is not ours goes on to the next program (`TC_ACT_UNSPEC`).
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program.
    let verdict = match u16::from_be(unsafe { (*skb).protocol } as u16) {
        Ipv4Header::ETHERTYPE if is_nobodys::<V4>(linear(skb), hook) => Verdict::NotOurs,
        Ipv6Header::ETHERTYPE if is_nobodys::<V6>(linear(skb), hook) => Verdict::NotOurs,
        Ipv4Header::ETHERTYPE => {
            return match established_tcp(skb, hook) {
                ANOTHER_WAY => of_family::<V4>(skb, hook),
                action => action,
            };
        }
        Ipv6Header::ETHERTYPE => return of_family::<V6>(skb, hook),
        _ => Verdict::NotIp,
    };
    match Met::with(skb, hook) {
        Ok(met) => met.leaves_alone(verdict),
        Err(_) => TC_ACT_UNSPEC,
    }
}

/// What [`established_tcp`] returns instead of an action.
const ANOTHER_WAY: i32 = i32::MIN;

/// Steers what most packets are, TCP of an established flow over IPv4, by the shortest way: the steps
/// are those of all packets, but nothing is laid on the desk between them. Packets that are to be told
/// of go the other way, so that this one has no room to keep for it.
#[inline(never)]
fn established_tcp(skb: *mut __sk_buff, hook: Hook) -> i32 {
    if trace::is_wanted() {
        return ANOTHER_WAY;
    }
    let maps = Maps::<V4>::NEW;
    let Some(frame) = linear(skb).at::<TcpFrame>(0).filter(|it| it.is_one()) else {
        return ANOTHER_WAY;
    };
    let Ok(met) = Met::with(skb, hook) else {
        return TC_ACT_UNSPEC;
    };
    let segment = frame.segment();
    let offset = match segment.ip.locate(linear(skb), met.extent) {
        Ok(located) => located.offset,
        Err(verdict) => return met.leaves_alone(verdict),
    };
    if let Err(verdict) = segment.check((offset - ETHERNET_LEN) as u32, met.extent) {
        return met.leaves_alone(verdict);
    }
    let key = segment.tuple();
    let arrival = met.meeting.with(&segment);
    let mut decision = Decision::NONE;
    if !steer_established(&maps, &arrival, &key, &mut decision) {
        return ANOTHER_WAY;
    }
    if exceeded(skb, &arrival, &decision) != 0 {
        // The general way decides once more, and answers.
        give_back(&maps, &arrival, &key);
        return ANOTHER_WAY;
    }
    maps.account(&decision, &arrival);
    match decision.exit {
        Exit::Pass => TC_ACT_UNSPEC,
        Exit::Drop => TC_ACT_SHOT,
        _ => forward(skb, offset, segment, &arrival, &decision),
    }
}

#[inline(always)]
fn of_family<A: Family>(skb: *mut __sk_buff, hook: Hook) -> i32 {
    let Some(desk) = A::desk() else {
        return TC_ACT_UNSPEC;
    };
    match read(skb, hook, desk) {
        Read::Passes | Read::Skipped => TC_ACT_UNSPEC,
        read => {
            decide(desk, read);
            let mtu = match read {
                Read::Segment => exceeded(skb, &desk.arrival, &desk.decision),
                // No error is answered with another one (RFC 1122, section 3.2.2).
                _ => 0,
            };
            if mtu == 0 {
                return act(skb, desk, read);
            }
            // Its sender will try once more.
            Maps::<A>::NEW.count_connections(desk.decision.backend, desk.decision.opened.into());
            desk.decision.verdict = Verdict::TooLarge;
            desk.decision.exit = Exit::Drop;
            act(skb, desk, read);
            too_large::answer::<A>(skb, mtu)
        }
    }
}

/// What the next link takes, if the packet is larger; 0 if it fits.
#[inline(always)]
fn exceeded<A: Address>(skb: *mut __sk_buff, arrival: &Arrival, decision: &Decision<A>) -> u32 {
    if !too_large::may_exceed(arrival, decision) {
        return 0;
    }
    too_large::exceeded(skb.cast(), decision.interface, true)
}

/// Looks at a packet, and lays on the desk what the decision needs.
#[inline(never)]
fn read<A: Family>(skb: *mut __sk_buff, hook: Hook, desk: &mut Desk<A>) -> Read {
    let met = match Met::with(skb, hook) {
        Ok(met) => met,
        Err(read) => return read,
    };
    let located = match locate::<A>(skb, met.extent) {
        Ok(located) => located,
        Err(verdict) => return met.passes(verdict),
    };
    if located.protocol == A::Header::ICMP && hook == Hook::Egress {
        return met.passes(Verdict::OtherProtocol);
    }
    match desk.take(linear(skb), located, met.meeting, met.extent) {
        Ok(read) => read,
        Err(verdict) => met.passes(verdict),
    }
}

/// Does what was decided.
#[inline(never)]
fn act<A: Family>(skb: *mut __sk_buff, desk: &Desk<A>, read: Read) -> i32 {
    let Desk {
        key,
        arrival,
        decision,
        ..
    } = desk;
    Maps::<A>::NEW.account(decision, arrival);
    trace::steered(Skb(skb), key, arrival, decision, read == Read::Segment);
    let (bytes, located) = (linear(skb), desk.spot.located());
    match decision.exit {
        Exit::Pass => return TC_ACT_UNSPEC,
        Exit::Drop => return TC_ACT_SHOT,
        _ => {}
    }
    if read == Read::Message {
        let Ok(mut message) = Quoted::<A>::view(bytes, located) else {
            return TC_ACT_SHOT;
        };
        address(message.ethernet, decision);
        let rewritten = message.rewrite(key, &decision.leaves, decision.is_forwarded());
        update_message::<A>(skb, located.offset, rewritten);
        keep_sum::<A>(skb, rewritten.addresses.plus(hops(arrival, decision)));
        return send(skb, arrival.source_mac.tag(), decision);
    }
    match segment::<A>(bytes, located) {
        Some(segment) => forward(skb, located.offset, segment, arrival, decision),
        None => TC_ACT_SHOT,
    }
}

/// Rewrites a segment or datagram and sends it on.
#[inline(always)]
fn forward<A: Family>(
    skb: *mut __sk_buff,
    offset: usize,
    mut segment: Segment<'_, A>,
    arrival: &Arrival,
    decision: &Decision<A>,
) -> i32 {
    address(segment.ethernet, decision);
    let rewritten = segment.rewrite(&decision.leaves, decision.is_forwarded());
    if decision.exit != Exit::Onwards {
        update_transport(skb, offset, &segment.transport, rewritten);
    }
    keep_sum::<A>(skb, rewritten.addresses.plus(hops(arrival, decision)));
    send(skb, arrival.source_mac.tag(), decision)
}

/// What a packet's way through the manager changes in its hop limit.
#[inline(always)]
fn hops<A: Address>(arrival: &Arrival, decision: &Decision<A>) -> Difference {
    let before = arrival.time_to_live;
    let after = if decision.is_forwarded() {
        after_hop(before)
    } else {
        before
    };
    Difference::of_u16([0, before], [0, after])
}

/// Writes the link addresses that the kernel does not.
#[inline(always)]
fn address<A>(ethernet: &mut EthernetHeader, decision: &Decision<A>) {
    match decision.exit {
        Exit::Client | Exit::ClientInFragments => {
            ethernet.destination = decision.destination_mac.bytes();
            ethernet.source = decision.source_mac.bytes();
        }
        // The link address of `lo`, without which the stack takes the frame for another's.
        Exit::Loopback => ethernet.destination = [0; 6],
        _ => {}
    }
}

/// Sends a rewritten packet where the decision says.
#[inline(always)]
fn send<A: Address>(skb: *mut __sk_buff, tag: u16, decision: &Decision<A>) -> i32 {
    match decision.exit {
        Exit::Pass | Exit::Here => TC_ACT_UNSPEC,
        Exit::Drop => TC_ACT_SHOT,
        Exit::Backend | Exit::Onwards => {
            mark(skb);
            move_to_vlan(skb, tag, 0);
            to_neighbour(decision.interface, decision.next_hop)
        }
        Exit::ClientByRoute => {
            mark(skb);
            move_to_vlan(skb, tag, 0);
            by_route(decision.interface)
        }
        Exit::Client => to_client(skb, tag, decision),
        Exit::ClientInFragments => {
            if let Some(ip) = linear(skb).at::<A::Header>(ETHERNET_LEN) {
                // SAFETY: the helper takes no argument.
                ip.allow_fragments(unsafe { bpf_get_prandom_u32() } as u16);
            }
            to_client(skb, tag, decision)
        }
        Exit::Loopback => {
            move_to_vlan(skb, tag, 0);
            redirect(LOOPBACK, BPF_F_INGRESS.into())
        }
    }
}

#[inline(always)]
fn to_client<A: Address>(skb: *mut __sk_buff, tag: u16, decision: &Decision<A>) -> i32 {
    mark(skb);
    move_to_vlan(skb, tag, decision.destination_mac.tag());
    redirect(decision.interface, 0)
}

/// The frame, for the trace: its first bytes may lie anywhere.
#[derive(Clone, Copy)]
struct Skb(*mut __sk_buff);

impl Frame for Skb {
    const IS_XDP: bool = false;

    #[inline(always)]
    fn copy_head(self, head: &mut [u8; HEAD]) -> usize {
        // SAFETY: a valid context, of which the field may be read.
        let length = u64::from(unsafe { (*self.0).len }).min(HEAD as u64);
        // No frame is shorter. Older verifiers (Linux 6.1) want to see that there is anything to copy, and
        // in the very register that is compared; the compiler would take a copy of it.
        let length = untold(length);
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

/// What there is to know of a packet beside its bytes.
#[derive(Clone, Copy)]
struct Met {
    frame: Skb,
    meeting: Meeting,
    extent: Extent,
    /// On its way through the manager, not from it.
    is_forwarded: bool,
}

impl Met {
    /// Looks at the context, which may say already that the packet is none of ours.
    #[inline(always)]
    fn with(skb: *mut __sk_buff, hook: Hook) -> Result<Self, Read> {
        // SAFETY: the kernel hands a valid context to the program; fields are read by the verifier's
        // leave.
        let (length, interface, received_on, steered, kind, gso_size, gso_segments) = unsafe {
            (
                (*skb).len,
                (*skb).ifindex,
                (*skb).ingress_ifindex,
                (*skb).tc_index,
                (*skb).pkt_type,
                (*skb).gso_size,
                (*skb).gso_segs,
            )
        };
        // SAFETY: as above.
        let (tagged, tag, tag_protocol) =
            unsafe { ((*skb).vlan_present, (*skb).vlan_tci, (*skb).vlan_proto) };
        let is_forwarded = hook == Hook::Egress && received_on != 0;
        if is_forwarded && steered == STEERED {
            return Err(Read::Skipped);
        }
        let met = Self {
            frame: Skb(skb),
            meeting: Meeting {
                hook,
                in_driver: false,
                interface,
                packets: if gso_segments == 0 { 1 } else { gso_segments },
                bytes: length,
                tag: if tagged == 0 {
                    0
                } else {
                    Mac::tag_of(tag as u16)
                },
            },
            extent: Extent {
                bytes: length,
                coalesced: gso_size != 0,
            },
            is_forwarded,
        };
        if hook == Hook::Ingress && kind != PACKET_HOST {
            return Err(met.passes(Verdict::NotForUs));
        }
        // The kernel keeps the outermost tag beside the frame.
        if tagged != 0 && tag_protocol != u32::from(ETHERTYPE_VLAN.to_be()) {
            return Err(met.passes(Verdict::NotIp));
        }
        Ok(met)
    }

    #[inline(always)]
    fn leaves_alone(&self, verdict: Verdict) -> i32 {
        self.passes(verdict);
        TC_ACT_UNSPEC
    }

    /// Counts a packet that is left alone. What is forwarded was seen, and counted, on its way in.
    #[inline(always)]
    fn passes(&self, verdict: Verdict) -> Read {
        if self.is_forwarded {
            return Read::Skipped;
        }
        let Meeting { packets, bytes, .. } = self.meeting;
        count(verdict, packets.into(), bytes.into());
        trace::left_alone(self.frame, self.meeting, verdict);
        Read::Passes
    }
}

/// Notes on a packet that it was steered, for the egress hook that it meets next.
#[inline(always)]
fn mark(skb: *mut __sk_buff) {
    // SAFETY: a valid context; the field is the traffic control's own, and may be written.
    unsafe { (*skb).tc_index = STEERED };
}

/// Puts the frame into a VLAN, or into none: each side of a connection has its own.
#[inline(always)]
fn move_to_vlan(skb: *mut __sk_buff, from: u16, to: u16) {
    if from == to {
        return;
    }
    // SAFETY: a valid context. Neither call can fail: the kernel keeps the tag beside the frame.
    unsafe {
        if from != 0 {
            bpf_skb_vlan_pop(skb);
        }
        if to != 0 {
            bpf_skb_vlan_push(skb, ETHERTYPE_VLAN.to_be(), Mac::untagged(to));
        }
    }
}

/// Sends the packet to a next hop; the kernel resolves it if need be, and holds the packet meanwhile.
#[inline(always)]
fn to_neighbour<A: Address>(interface: u32, next_hop: A) -> i32 {
    const AF_INET: u64 = 2;
    const AF_INET6: u64 = 10;
    let is_four = size_of::<A>() == size_of::<V4>();
    if is_four && next_hop == A::NONE {
        return by_route(interface);
    }
    let bits = if is_four {
        next_hop.word().to_be().into()
    } else {
        u128::from_ne_bytes(next_hop.mapped())
    };
    let family = if is_four { AF_INET } else { AF_INET6 };
    // A `bpf_redir_neigh`: the family, four words of address, and what fills up the last word, because
    // the verifier wants words on the stack in their places.
    let mut neighbour = [
        family | (bits as u64) << 32,
        (bits >> 32) as u64,
        (bits >> 96) as u64,
    ];
    // SAFETY: `neighbour` outlives the call, and is no smaller than what it stands for. Linux 5.10,
    // ba452c9e996d.
    unsafe {
        bpf_redirect_neigh(
            interface,
            (&raw mut neighbour).cast(),
            size_of::<bpf_redir_neigh>() as i32,
            0,
        ) as i32
    }
}

/// Sends the packet to the next hop of the kernel's route through `interface`, whatever its family.
#[inline(always)]
fn by_route(interface: u32) -> i32 {
    // SAFETY: the helper takes no next hop as well. Linux 5.10, ba452c9e996d.
    unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Sends a frame out of the interface that it came in by.
#[inline(always)]
pub fn send_back(skb: *mut __sk_buff) -> i32 {
    mark(skb);
    // SAFETY: a valid context, of which the field may be read.
    redirect(unsafe { (*skb).ifindex }, 0)
}

#[inline(always)]
fn redirect(interface: u32, flags: u64) -> i32 {
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(interface, flags) as i32 }
}
