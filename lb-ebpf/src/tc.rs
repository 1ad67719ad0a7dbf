//! TC: the socket buffer's edge. Checksums go through helpers, which know partial ones.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh,
    },
    helpers::generated::{bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use lb_common::{
    frame::{Extent, Rewritten, TCP_FRAME_LEN, TcpFrame},
    maps::LOOPBACK,
    steer::{Exit, Hook, steer},
    verdict::Verdict,
};

use crate::{
    maps::Maps,
    packet::{Bytes, arrival},
};

const PACKET_HOST: u32 = 0;
const AF_INET: u32 = 2;
const TCP_CHECKSUM: u32 = 50;
/// An arbitrary number for `tc_index`.
const STEERED: u32 = 0x6d6c;

/// Steers one packet. Whatever is not ours goes on to the next program (`TC_ACT_UNSPEC`).
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program; fields are read by the verifier's
    // leave.
    let (length, tagged, interface, received_on, steered, kind, gso_size, gso_segments) = unsafe {
        (
            (*skb).len,
            (*skb).vlan_present,
            (*skb).ifindex,
            (*skb).ingress_ifindex,
            (*skb).tc_index,
            (*skb).pkt_type,
            (*skb).gso_size,
            (*skb).gso_segs,
        )
    };
    let forwarded = hook == Hook::Egress && received_on != 0;
    if forwarded && steered == STEERED {
        return TC_ACT_UNSPEC;
    }
    let maps = Maps;
    let packets = if gso_segments == 0 { 1 } else { gso_segments };
    let verdict = 'verdict: {
        if hook == Hook::Ingress && kind != PACKET_HOST {
            break 'verdict Verdict::NotForUs;
        }
        if tagged != 0 {
            // The kernel keeps the tag beside the frame, which looks as if it had none.
            break 'verdict Verdict::NotIpv4;
        }
        let Some(frame) = frame(ctx, length) else {
            break 'verdict bytes(ctx).verdict_on_short();
        };
        let extent = Extent {
            bytes: length,
            coalesced: gso_size != 0,
        };
        let key = match frame.tuple(extent) {
            Ok(key) => key,
            Err(verdict) => break 'verdict verdict,
        };
        if !maps.may_be_ours(hook, &key) {
            if forwarded {
                // Seen, and counted, on its way in.
                return TC_ACT_UNSPEC;
            }
            break 'verdict Verdict::NotOurs;
        }
        let arrival = arrival(frame, hook, interface, packets, length);
        let decision = steer(&maps, &arrival, &key);
        maps.account(&decision, &arrival);
        return match decision.exit {
            Exit::Pass => TC_ACT_UNSPEC,
            Exit::Drop => TC_ACT_SHOT,
            Exit::Here => {
                update_checksum(skb, frame.rewrite(&decision.leaves, false));
                TC_ACT_UNSPEC
            }
            Exit::Backend => {
                mark(skb);
                update_checksum(skb, frame.rewrite(&decision.leaves, true));
                to_neighbour(decision.interface, decision.next_hop)
            }
            Exit::Client => {
                mark(skb);
                frame.ethernet.destination = decision.destination_mac.bytes();
                frame.ethernet.source = decision.source_mac.bytes();
                update_checksum(skb, frame.rewrite(&decision.leaves, true));
                redirect(decision.interface, 0)
            }
            Exit::Loopback => {
                // The link address of `lo`, without which the stack takes the frame for another's.
                frame.ethernet.destination = [0; 6];
                update_checksum(skb, frame.rewrite(&decision.leaves, true));
                redirect(LOOPBACK, BPF_F_INGRESS.into())
            }
        };
    };
    maps.count(verdict, packets.into(), length.into());
    TC_ACT_UNSPEC
}

/// Notes on a packet that it was steered, for the egress hook that it meets next.
#[inline(always)]
fn mark(skb: *mut __sk_buff) {
    // SAFETY: a valid context; the field is the traffic control's own, and may be written.
    unsafe { (*skb).tc_index = STEERED };
}

#[inline(always)]
fn bytes(ctx: &TcContext) -> Bytes {
    Bytes {
        start: ctx.data(),
        end: ctx.data_end(),
    }
}

/// The headers, pulled into the linear part when the kernel keeps them elsewhere.
#[inline(always)]
fn frame<'a>(ctx: &TcContext, length: u32) -> Option<&'a mut TcpFrame> {
    if let Some(frame) = bytes(ctx).tcp_frame() {
        return Some(frame);
    }
    if length < TCP_FRAME_LEN as u32 || ctx.pull_data(TCP_FRAME_LEN as u32).is_err() {
        return None;
    }
    bytes(ctx).tcp_frame()
}

/// Brings the TCP checksum up to date, complete or partial.
#[inline(always)]
fn update_checksum(skb: *mut __sk_buff, rewritten: Rewritten) {
    let Rewritten { addresses, ports } = rewritten;
    // SAFETY: a valid context. The offset lies within the linear part, so that neither call fails:
    // the rewrite just wrote there.
    unsafe {
        bpf_l4_csum_replace(
            skb,
            TCP_CHECKSUM,
            0,
            addresses.raw(),
            BPF_F_PSEUDO_HDR.into(),
        );
        bpf_l4_csum_replace(skb, TCP_CHECKSUM, 0, ports.raw(), 0);
    }
}

/// Sends the packet to `next_hop`; the kernel resolves it if need be, and holds the packet meanwhile.
#[inline(always)]
fn to_neighbour(interface: u32, next_hop: [u8; 4]) -> i32 {
    // SAFETY: plain integers, for which zero is a value.
    let mut params: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    params.nh_family = AF_INET;
    params.__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(next_hop);
    // SAFETY: `params` lives on the stack for the call. Linux 5.10, ba452c9e996d.
    unsafe {
        bpf_redirect_neigh(
            interface,
            &raw mut params,
            size_of::<bpf_redir_neigh>() as i32,
            0,
        ) as i32
    }
}

#[inline(always)]
fn redirect(interface: u32, flags: u64) -> i32 {
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(interface, flags) as i32 }
}
