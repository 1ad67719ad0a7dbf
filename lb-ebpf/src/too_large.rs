//! Packets that are larger than the next link's MTU. The kernel neither checks nor fragments redirected packets, so
//! the driver or the link would drop them.

use core::ffi::c_void;

use crate::redirect::send_back;
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    btf_maps::PerCpuArray,
    helpers::generated::{
        bpf_check_mtu, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    macros::btf_map,
};
use lb_common::{
    address::{Address, V4},
    headers::ETHERNET_LEN,
    packet::too_large::{
        ERROR_V6_LEN, HEAD_V6_LEN, icmp_error_v4, icmp_error_v6, may_be_fragmented,
    },
    steer::{Decision, Hook, PacketMeta},
};

/// Frames up to this length are not checked: every IPv6 link carries them (RFC 8200, section 5).
const FITS: u32 = ETHERNET_LEN as u32 + 1280;

/// Whether a packet may exceed the next link's MTU.
#[inline(always)]
pub fn may_exceed<A: Address>(packet: &PacketMeta, decision: &Decision<A>) -> bool {
    packet.bytes > FITS && packet.hook == Hook::Ingress && decision.is_forwarded()
}

/// Returns the interface's MTU if the packet exceeds it, else 0. With `segments`, checks each packet of a GSO packet.
///
/// # Minimum kernel version
///
/// Linux 5.12, 34b2021cc616.
#[inline(always)]
pub fn exceeded(ctx: *mut c_void, interface: u32, segments: bool) -> u32 {
    let mut mtu = 0_u32;
    // SAFETY: a valid context, and a word to write to. `BPF_MTU_CHK_SEGS` is 1.
    let found = unsafe { bpf_check_mtu(ctx, interface, &raw mut mtu, 0, segments.into()) };
    if found > 0 { mtu } else { 0 }
}

/// Sends an ICMP error with the MTU to the packet's sender. Packets that may be fragmented are dropped.
#[inline(always)]
pub fn send_error<A: Address>(skb: *mut __sk_buff, mtu: u32) -> i32 {
    if size_of::<A>() == size_of::<V4>() {
        send_error_v4(skb, mtu)
    } else {
        send_error_v6(skb, mtu)
    }
}

#[inline(never)]
fn send_error_v4(skb: *mut __sk_buff, mtu: u32) -> i32 {
    let Some(ErrorScratch { head, frame }) = error_scratch() else {
        return TC_ACT_SHOT;
    };
    let (Some(head), Some(frame)) = (head.first_chunk_mut(), frame.first_chunk_mut()) else {
        return TC_ACT_SHOT;
    };
    if !load(skb, head) || may_be_fragmented(head) {
        return TC_ACT_SHOT;
    }
    icmp_error_v4(frame, head, mtu as u16);
    replace(skb, frame)
}

#[inline(never)]
fn send_error_v6(skb: *mut __sk_buff, mtu: u32) -> i32 {
    let Some(ErrorScratch { head, frame }) = error_scratch() else {
        return TC_ACT_SHOT;
    };
    if !load(skb, head) {
        return TC_ACT_SHOT;
    }
    icmp_error_v6(frame, head, mtu);
    replace(skb, frame)
}

/// Scratch space for an error: on the stack, the verifier would demand aligned accesses.
#[repr(C)]
struct ErrorScratch {
    head: [u8; HEAD_V6_LEN],
    frame: [u8; ERROR_V6_LEN],
}

#[btf_map(name = "error_scratch")]
static ERROR_SCRATCH: PerCpuArray<ErrorScratch, 1> = PerCpuArray::new();

#[inline(always)]
fn error_scratch() -> Option<&'static mut ErrorScratch> {
    // SAFETY: a per-CPU slot. Each CPU handles one packet at a time, because every hook runs with bottom halves off.
    ERROR_SCRATCH
        .get_ptr_mut(0)
        .map(|error_scratch| unsafe { &mut *error_scratch })
}

/// Copies the beginning of a frame; returns whether the frame is long enough.
#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, head: &mut [u8; N]) -> bool {
    // SAFETY: a valid context, and room for as many bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), 0, head.as_mut_ptr().cast(), N as u32) == 0 }
}

/// Replaces the packet by a frame and sends it back.
#[inline(always)]
fn replace<const N: usize>(skb: *mut __sk_buff, frame: &[u8; N]) -> i32 {
    // SAFETY: a valid context, no pointer into which is used afterwards, and a frame of that length.
    let failed = unsafe {
        bpf_skb_change_tail(skb, N as u32, 0) != 0
            || bpf_skb_store_bytes(skb, 0, frame.as_ptr().cast(), N as u32, 0) != 0
    };
    if failed { TC_ACT_SHOT } else { send_back(skb) }
}
