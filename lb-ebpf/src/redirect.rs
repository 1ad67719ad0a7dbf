//! Redirection of socket buffers to other interfaces and VLANs.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_redir_neigh},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_skb_vlan_pop, bpf_skb_vlan_push},
};
use lb_common::{
    address::{Address, V4},
    headers::ETHERTYPE_VLAN,
    maps::Mac,
};

/// Mark of steered packets in `tc_index`; an arbitrary number.
pub const STEERED: u32 = 0x6d6c;

/// Marks a packet as steered, for the egress hook that it passes next.
#[inline(always)]
pub fn mark(skb: *mut __sk_buff) {
    // SAFETY: a valid context; programs may write the field.
    unsafe { (*skb).tc_index = STEERED };
}

/// Replaces the VLAN tag `from` by `to`; 0: untagged.
#[inline(always)]
pub fn set_vlan(skb: *mut __sk_buff, from: u16, to: u16) {
    if from == to {
        return;
    }
    // SAFETY: a valid context. Neither call can fail, because the kernel keeps the tag outside the frame.
    unsafe {
        if from != 0 {
            bpf_skb_vlan_pop(skb);
        }
        if to != 0 {
            bpf_skb_vlan_push(skb, ETHERTYPE_VLAN.to_be(), Mac::untagged(to));
        }
    }
}

/// Sends the packet to a next hop. The kernel resolves its link address and queues the packet meanwhile.
#[inline(always)]
pub fn redirect_to_neighbour<A: Address>(interface: u32, next_hop: A) -> i32 {
    const AF_INET: u64 = 2;
    const AF_INET6: u64 = 10;
    let is_four = size_of::<A>() == size_of::<V4>();
    if is_four && next_hop == A::NONE {
        return redirect_by_route(interface);
    }
    let bits = if is_four {
        next_hop.word().to_be().into()
    } else {
        u128::from_ne_bytes(next_hop.mapped())
    };
    let family = if is_four { AF_INET } else { AF_INET6 };
    // A `bpf_redir_neigh`: family, four words of address, padding. As words, because the verifier demands aligned
    // words on the stack.
    let mut neighbour = [
        family | (bits as u64) << 32,
        (bits >> 32) as u64,
        (bits >> 96) as u64,
    ];
    // SAFETY: `neighbour` outlives the call and is not smaller than a `bpf_redir_neigh`. Linux 5.10, ba452c9e996d.
    unsafe {
        bpf_redirect_neigh(
            interface,
            (&raw mut neighbour).cast(),
            size_of::<bpf_redir_neigh>() as i32,
            0,
        ) as i32
    }
}

/// Sends the packet to the next hop of the kernel's route through `interface`, of either family.
#[inline(always)]
pub fn redirect_by_route(interface: u32) -> i32 {
    // SAFETY: the helper takes no next hop as well. Linux 5.10, ba452c9e996d.
    unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Sends a frame back through the interface on which it arrived.
#[inline(always)]
pub fn send_back(skb: *mut __sk_buff) -> i32 {
    mark(skb);
    // SAFETY: a valid context; programs may read the field.
    redirect(unsafe { (*skb).ifindex }, 0)
}

#[inline(always)]
pub fn redirect(interface: u32, flags: u64) -> i32 {
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(interface, flags) as i32 }
}
