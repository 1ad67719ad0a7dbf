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

/// An arbitrary number for `tc_index`.
pub const STEERED: u32 = 0x6d6c;

/// Notes on a packet that it was steered, for the egress hook that it meets next.
#[inline(always)]
pub fn mark(skb: *mut __sk_buff) {
    // SAFETY: a valid context; the field is the traffic control's own, and may be written.
    unsafe { (*skb).tc_index = STEERED };
}

/// Puts the frame into a VLAN, or into none: each side of a connection has its own.
#[inline(always)]
pub fn set_vlan(skb: *mut __sk_buff, from: u16, to: u16) {
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
pub fn redirect_by_route(interface: u32) -> i32 {
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
pub fn redirect(interface: u32, flags: u64) -> i32 {
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(interface, flags) as i32 }
}
