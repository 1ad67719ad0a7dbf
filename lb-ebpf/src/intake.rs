//! The program that writes records of peers to the flow tables. User space could neither insert many entries at once
//! without overwriting existing ones, nor count connections atomically.

use aya_ebpf::{
    bindings::__sk_buff, btf_maps::PerCpuArray, helpers::generated::bpf_skb_load_bytes,
    macros::btf_map,
};
use lb_common::{
    address::{Address, V4, V6},
    maps::{Admission, FlowRecord, INTAKE_RECORDS, IntakeHeader},
    packet::FrameBytes,
    steer::{FlowScratch, admit},
};
use lb_ebpf::skb::packet_bytes;

use crate::maps::{Family, Maps};

/// Scratch space of its own: before Linux 6.11, packets may arrive on this processor while the program runs.
#[repr(C)]
struct IntakeScratch {
    record: FlowRecord,
    v4: FlowScratch<V4>,
    v6: FlowScratch<V6>,
}

#[btf_map(name = "intake_scratch")]
static INTAKE_SCRATCH: PerCpuArray<IntakeScratch, 1> = PerCpuArray::new();

/// Writes the next record, and counts its [`Admission`].
#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    let Some(header) = packet_bytes(skb).at::<IntakeHeader>(0) else {
        return -1;
    };
    let number = u16::from_ne_bytes(header.next);
    header.next = (number + 1).to_ne_bytes();
    if usize::from(number) >= INTAKE_RECORDS {
        return -1;
    }
    let outcome = admit_record(skb, number.into());
    let Some(header) = packet_bytes(skb).at::<IntakeHeader>(0) else {
        return -1;
    };
    for (number, count) in header.outcomes.iter_mut().enumerate() {
        let present = u16::from_ne_bytes(*count);
        *count = (present + u16::from(number as u32 == outcome)).to_ne_bytes();
    }
    0
}

/// Writes a record. Returns an [`Admission`], or `u32::MAX` if the record cannot be read.
#[inline(always)]
fn admit_record(skb: *mut __sk_buff, number: u32) -> u32 {
    let Some(scratch) = INTAKE_SCRATCH.get_ptr_mut(0) else {
        return u32::MAX;
    };
    // SAFETY: a per-CPU slot. The manager runs this program one at a time.
    let IntakeScratch { record, v4, v6 } = unsafe { &mut *scratch };
    let length = size_of::<FlowRecord>() as u32;
    let offset = size_of::<IntakeHeader>() as u32 + number * length;
    // SAFETY: a valid context, and room for as many bytes.
    let failed =
        unsafe { bpf_skb_load_bytes(skb.cast(), offset, (&raw mut *record).cast(), length) };
    if failed != 0 {
        return u32::MAX;
    }
    if record.client.is_mapped() {
        admit_family::<V4>(record, v4)
    } else {
        admit_family::<V6>(record, v6)
    }
}

#[inline(never)]
fn admit_family<A: Family>(record: &FlowRecord, scratch: &mut FlowScratch<A>) -> u32 {
    let admission: Admission = admit(&Maps::<A>::NEW, record, scratch);
    admission as u32
}
