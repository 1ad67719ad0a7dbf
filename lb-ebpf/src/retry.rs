//! Stores SYNs, and sends them to another worker in place of the first worker's RST.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT},
    btf_maps::PerCpuArray,
    helpers::generated::{
        bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    macros::btf_map,
};
use lb_common::{
    maps::LOOPBACK,
    packet::{SYN_LEN, Syn},
    steer::{Exit, Tables as _, kept_slot, retry_refused},
};

use crate::{
    maps::{Family, Maps, syn},
    packet_scratch::PacketScratch,
    redirect::{mark, redirect, redirect_to_neighbour, set_vlan},
    trace::Frame,
};

/// The SYN that is being sent again.
#[btf_map(name = "syn_scratch")]
static SYN_SCRATCH: PerCpuArray<Syn, 1> = PerCpuArray::new();

/// Stores the SYN of a handshake that has just begun.
#[inline(never)]
pub fn keep_syn<A: Family>(frame: impl Frame) -> u32 {
    let Some(syn) = kept_slot(&Maps::<A>::NEW).and_then(syn::<A>) else {
        return 0;
    };
    let copied = frame.copy_head(&mut syn.frame);
    syn.complete::<A>(copied);
    syn.length
}

/// Completes the decision on a RST that may lead to another worker.
#[inline(never)]
pub fn decide<A: Family>(scratch: &mut PacketScratch<A>) -> u32 {
    let (packet, decision) = (&scratch.packet, &mut scratch.decision);
    retry_refused(&Maps::<A>::NEW, packet, decision);
    0
}

/// Replaces a RST by the SYN of its handshake, and sends it to the decision's backend. A SYN for a server of this host
/// arrives once more.
#[inline(never)]
pub fn send_again<A: Family>(skb: *mut __sk_buff, scratch: &PacketScratch<A>) -> i32 {
    let maps = Maps::<A>::NEW;
    let (decision, tag) = (&scratch.decision, scratch.packet.source_mac.tag());
    let (Some(kept), Some(sent)) = (
        kept_slot(&maps).and_then(syn::<A>),
        SYN_SCRATCH.get_ptr_mut(0),
    ) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: a per-CPU slot. Each CPU handles one packet at a time, because every hook runs with bottom halves off.
    let sent = unsafe { &mut *sent };
    *sent = *kept;
    sent.translate(&decision.translated);
    if !replace::<A>(skb, sent) {
        return TC_ACT_SHOT;
    }
    if decision.exit == Exit::Local {
        set_vlan(skb, tag, decision.destination_mac.tag());
        let is_from_here = decision.interface == LOOPBACK;
        let direction = if is_from_here { 0 } else { BPF_F_INGRESS };
        return redirect(decision.interface, direction.into());
    }
    maps.count_traffic(decision.backend, |traffic| {
        traffic.packets_in += 1;
        traffic.bytes_in += u64::from(sent.length);
    });
    mark(skb);
    set_vlan(skb, tag, 0);
    redirect_to_neighbour(decision.interface, decision.next_hop)
}

/// Replaces a packet that is shorter than [`SYN_LEN`]; returns whether that succeeded.
#[inline(always)]
fn replace<A: Family>(skb: *mut __sk_buff, syn: &mut Syn) -> bool {
    // SAFETY: a valid context, no pointer into which is used afterwards, and a frame of that length. The kernel drops a
    // checksum over the whole packet (CHECKSUM_COMPLETE) when the packet grows.
    unsafe {
        if bpf_skb_change_tail(skb, SYN_LEN as u32, 0) != 0 {
            return false;
        }
        if is_partial::<A>(skb) {
            syn.set_partial_checksum::<A>();
        }
        bpf_skb_store_bytes(skb, 0, syn.frame.as_ptr().cast(), SYN_LEN as u32, 0) == 0
            && bpf_skb_change_tail(skb, syn.length, 0) == 0
    }
}

/// Whether the network card completes the checksum (CHECKSUM_PARTIAL): the helper then changes it only for changes of
/// the pseudo header.
#[inline(always)]
fn is_partial<A: Family>(skb: *mut __sk_buff) -> bool {
    let offset = Syn::checksum_offset::<A>() as u32;
    let (mut before, mut after) = (0_u16, 0_u16);
    let load = |word: &mut u16| {
        // SAFETY: a valid context, and room for two bytes.
        unsafe { bpf_skb_load_bytes(skb.cast(), offset, (&raw mut *word).cast(), 2) == 0 }
    };
    let is_loaded = load(&mut before);
    // SAFETY: a valid context. The packet is overwritten afterwards.
    let is_changed = unsafe { bpf_l4_csum_replace(skb, offset, 0, 1, 0) == 0 };
    is_loaded && is_changed && load(&mut after) && before == after
}
