//! TCP segments over IPv6 for a client behind a narrow path. No router fragments them (RFC 8200, section 5), so they
//! leave as smaller segments, of at most [`MTU`] bytes.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
        bpf_adj_room_mode::BPF_ADJ_ROOM_NET,
    },
    btf_maps::PerCpuArray,
    helpers::generated::{
        bpf_clone_redirect, bpf_csum_diff, bpf_csum_update, bpf_l4_csum_replace,
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    macros::btf_map,
};
use lb_common::{
    checksum::Difference,
    headers::{ETHERNET_LEN, Ipv6Header, TcpFlags, TcpHeader},
};

use crate::{redirect::redirect, trace::barrier_var};

/// The MTU that every IPv6 link has.
pub const MTU: u32 = 1280;
/// A longer frame that is not a GSO packet cannot be divided.
pub const DIVISIBLE: u32 = (TCP + size_of::<TcpHeader>()) as u32 + FIRST + CHUNK as u32;

const TCP: usize = ETHERNET_LEN + size_of::<Ipv6Header>();
const HEAD: usize = TCP + size_of::<TcpHeader>();
/// Offsets of the fields that division changes.
const PAYLOAD_LENGTH: usize = ETHERNET_LEN + 4;
const SEQUENCE: usize = TCP + 4;
const FLAGS: usize = TCP + 13;
const CHECKSUM: u32 = TCP as u32 + 16;

const CHUNK: usize = 512;
/// Payload of the first segment. Even, so that the second one's checksum is over the same words.
const FIRST: u32 = 2 * CHUNK as u32;

#[repr(C, align(8))]
struct Scratch {
    chunk: [u8; CHUNK],
    head: [u8; HEAD],
}

#[btf_map(name = "narrow_scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The fields in which the parts of a segment differ.
#[derive(Clone, Copy)]
struct Part {
    /// Of TCP header and payload, in bytes.
    length: u32,
    sequence: u32,
    flags: u8,
    /// The one's-complement sum of the payload.
    sum: Difference,
}

/// Sends a rewritten segment by an interface.
#[inline(never)]
pub fn send(skb: *mut __sk_buff, interface: u32) -> i32 {
    // SAFETY: a per-CPU slot, of which each CPU uses one at a time, because TC programs run with bottom halves off.
    let Some(scratch) = SCRATCH.get_ptr_mut(0).map(|slot| unsafe { &mut *slot }) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: a valid context; programs may read the fields.
    let (length, gso_size) = unsafe { ((*skb).len, (*skb).gso_size) };
    if !load(skb, 0, &mut scratch.head) {
        return TC_ACT_SHOT;
    }
    let start = TCP as u32 + u32::from(scratch.head[TCP + 12] >> 4) * 4;
    let fits = ETHERNET_LEN as u32 + MTU;
    if gso_size != 0 {
        let excess = (start + gso_size).saturating_sub(fits);
        if excess != 0 && !reduce_segments(skb, excess) {
            return TC_ACT_SHOT;
        }
    } else if length > fits && !send_first(skb, interface, scratch, start) {
        return TC_ACT_SHOT;
    }
    redirect(interface, 0)
}

/// Reduces the segment size of a GSO packet: the kernel reduces it when the headers grow, and with
/// `BPF_F_ADJ_ROOM_FIXED_GSO` leaves it when they shrink again.
#[inline(always)]
fn reduce_segments(skb: *mut __sk_buff, excess: u32) -> bool {
    let (bytes, keep) = (excess as i32, BPF_F_ADJ_ROOM_FIXED_GSO.into());
    // SAFETY: a valid context, no pointer into which is used afterwards. Linux 5.2, 2278f6cc151a.
    unsafe {
        bpf_skb_adjust_room(skb, bytes, BPF_ADJ_ROOM_NET, 0) == 0
            && bpf_skb_adjust_room(skb, -bytes, BPF_ADJ_ROOM_NET, keep) == 0
    }
}

/// Sends the first half of a segment, and makes the second half of it. Checksums stay what they were, right or wrong.
#[inline(always)]
fn send_first(skb: *mut __sk_buff, interface: u32, scratch: &mut Scratch, start: u32) -> bool {
    // SAFETY: a valid context; programs may read the field.
    let length = unsafe { (*skb).len };
    let Scratch { head, chunk } = scratch;
    let mut first_sum = Difference::default();
    for half in 0..2 {
        if !load(skb, start + half * CHUNK as u32, chunk) {
            return false;
        }
        first_sum = first_sum.plus(payload_sum(chunk));
    }
    chunk.fill(0);
    // The verifier of Linux 6.1 demands a lower bound of the length, and learns none from a comparison with 0.
    let rest = barrier_var(u64::from(length.wrapping_sub(start + FIRST + 1)));
    if rest >= CHUNK as u64 {
        return false;
    }
    let rest = rest + 1;
    let payload = chunk.as_mut_ptr().cast();
    // SAFETY: a valid context, and room for as many bytes.
    if unsafe { bpf_skb_load_bytes(skb.cast(), start + FIRST, payload, rest as u32) } != 0 {
        return false;
    }
    let rest_sum = payload_sum(chunk);
    let header = start - TCP as u32;
    let whole = Part {
        length: length - TCP as u32,
        sequence: u32::from_be_bytes([
            head[SEQUENCE],
            head[SEQUENCE + 1],
            head[SEQUENCE + 2],
            head[SEQUENCE + 3],
        ]),
        flags: head[FLAGS],
        sum: first_sum.plus(rest_sum),
    };
    let first = Part {
        length: header + FIRST,
        flags: whole.flags & !(TcpFlags::FIN | TcpFlags::PSH),
        sum: first_sum,
        ..whole
    };
    let second = Part {
        length: header + rest as u32,
        sequence: whole.sequence.wrapping_add(FIRST),
        flags: whole.flags,
        sum: rest_sum,
    };
    // SAFETY: a valid context, no pointer into which is used afterwards, and a payload of that length.
    unsafe {
        convert_to_part(skb, whole, first)
            && bpf_clone_redirect(skb, interface, 0) == 0
            && convert_to_part(skb, first, second)
            && bpf_skb_store_bytes(skb, start, payload, rest as u32, RECOMPUTE) == 0
    }
}

const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;

/// Changes a packet's length, headers and checksum from one part to another, but not its payload.
#[inline(never)]
fn convert_to_part(skb: *mut __sk_buff, from: Part, to: Part) -> bool {
    let length = |part: Part| (part.length as u16).to_be_bytes();
    let (sequence, flags) = (to.sequence.to_be_bytes(), [to.flags]);
    let sum = |part: Part| (part.sum.raw() as u32).to_ne_bytes();
    let payload = Difference::of_u32(sum(from), sum(to));
    let header = Difference::of_u32(from.sequence.to_be_bytes(), sequence)
        .plus(Difference::of_u16([0, from.flags], [0, to.flags]));
    // SAFETY: a valid context, no pointer into which is used afterwards, and values of those lengths. An update of the
    // card's sum (CHECKSUM_COMPLETE) fails without effect if there is none.
    unsafe {
        bpf_csum_update(skb, !payload.raw() as u32);
        bpf_skb_change_tail(skb, TCP as u32 + to.length, 0) == 0
            && store(skb, PAYLOAD_LENGTH, &length(to), RECOMPUTE)
            && store(skb, SEQUENCE, &sequence, 0)
            && store(skb, FLAGS, &flags, 0)
            && bpf_l4_csum_replace(
                skb,
                CHECKSUM,
                0,
                Difference::of_u16(length(from), length(to)).raw(),
                BPF_F_PSEUDO_HDR.into(),
            ) == 0
            && bpf_l4_csum_replace(skb, CHECKSUM, 0, payload.plus(header).raw(), 0) == 0
    }
}

#[inline(always)]
fn payload_sum(chunk: &mut [u8; CHUNK]) -> Difference {
    let bytes = chunk.as_mut_ptr().cast();
    // SAFETY: as many bytes.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes, CHUNK as u32, 0) };
    Difference::of_u32([0xff; 4], (sum as u32).to_ne_bytes())
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u32, bytes: &mut [u8; N]) -> bool {
    // SAFETY: a valid context, and room for as many bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) == 0 }
}

/// # Safety
/// No pointer into the packet is used afterwards.
#[inline(always)]
unsafe fn store<const N: usize>(
    skb: *mut __sk_buff,
    offset: usize,
    bytes: &[u8; N],
    flags: u64,
) -> bool {
    let bytes = bytes.as_ptr().cast();
    // SAFETY: a valid context, and as many bytes.
    unsafe { bpf_skb_store_bytes(skb, offset as u32, bytes, N as u32, flags) == 0 }
}
