//! The trace: tells of single packets, when somebody asks for it, what became of them.
//!
//! While nobody does, a packet costs one load and one branch for it. So that it stays so, whatever
//! telling takes is done behind the branch, and laid on a sheet of its own instead of the stack.

use core::{arch::asm, hint::cold_path};

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::btf_map,
};
use lb_common::{
    address::Address,
    headers::TcpFlags,
    maps::{FlowKey, TRACE_BYTES, TRACE_WINDOW_NS, TraceCounts, TraceEvent, TraceOrder, place},
    steer::{Arrival, Decision, Exit, Hook},
    trace::HEAD,
    verdict::Verdict,
};

use crate::{
    maps::{add, service_of},
    packet::Meeting,
};

/// Map `trace`. A variable is read without a look-up.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.trace")]
static mut TRACE: TraceOrder = TraceOrder::OFF;

#[btf_map(name = "trace_counts")]
static COUNTS: Array<TraceCounts, 1> = Array::new();

#[btf_map(name = "trace_events")]
static EVENTS: RingBuf<TraceEvent, { TRACE_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "sheet")]
static SHEET: PerCpuArray<Sheet, 1> = PerCpuArray::new();

/// What is told of the packet at hand.
#[repr(C)]
struct Sheet {
    event: TraceEvent,
    head: [u8; HEAD],
}

/// A frame, as its program gets it.
pub trait Frame: Copy {
    /// Whether XDP met it, before any hook of TC.
    const IS_XDP: bool;

    /// Copies its first bytes, and returns how many those are.
    fn copy_head(self, head: &mut [u8; HEAD]) -> usize;

    /// [`emit`] as a function that the verifier looks at by itself, not on each way that leads to it:
    /// a global one, of the context alone.
    fn emit(self);
}

/// Tells of a packet that was decided on, and is still as it arrived.
#[inline(always)]
pub fn steered<A: Address>(
    frame: impl Frame,
    key: &FlowKey<A>,
    arrival: &Arrival,
    decision: &Decision<A>,
    is_segment: bool,
) {
    if !is_wanted() {
        return;
    }
    cold_path();
    let Some(Sheet { event, .. }) = sheet() else {
        return;
    };
    let meeting = Meeting {
        hook: arrival.hook,
        in_driver: arrival.in_driver,
        interface: arrival.interface,
        packets: arrival.packets,
        bytes: arrival.bytes,
        tag: 0,
    };
    event.arrives = mapped(key);
    event.leaves = match decision.exit {
        Exit::Pass | Exit::Drop => FlowKey::NONE,
        _ => mapped(&decision.leaves),
    };
    event.backend = decision.backend;
    event.protocol = if is_segment { key.protocol as u8 } else { 0 };
    let TcpFlags(flags) = arrival.flags;
    event.kind = flags;
    tell(frame, meeting, decision.verdict);
}

/// Tells of a packet that was left alone.
#[inline(always)]
pub fn left_alone(frame: impl Frame, meeting: Meeting, verdict: Verdict) {
    if !is_wanted() {
        return;
    }
    cold_path();
    let Some(Sheet { event, .. }) = sheet() else {
        return;
    };
    event.arrives = FlowKey::NONE;
    event.leaves = FlowKey::NONE;
    event.backend = 0;
    event.protocol = 0;
    event.kind = 0;
    tell(frame, meeting, verdict);
}

/// Whether somebody may want to be told of packets.
#[inline(always)]
pub fn is_wanted() -> bool {
    // SAFETY: an aligned word of a map, which others write whole.
    unsafe { core::ptr::read_volatile(&raw const TRACE.until_ns) != 0 }
}

#[inline(always)]
fn tell<F: Frame>(frame: F, meeting: Meeting, verdict: Verdict) {
    let Some(Sheet { event, .. }) = sheet() else {
        return;
    };
    event.interface = meeting.interface;
    event.packets = meeting.packets;
    event.bytes = meeting.bytes;
    event.verdict = verdict as u8;
    event.place = match meeting.hook {
        Hook::Ingress if F::IS_XDP => place::XDP,
        Hook::Ingress => place::INGRESS,
        Hook::Egress => place::EGRESS,
        Hook::Loopback => place::LOOPBACK,
    };
    frame.emit();
}

/// Tells what is on the sheet, if it is wanted. Returns what nobody needs.
#[inline(always)]
pub fn emit(frame: impl Frame) -> u32 {
    let (Some(Sheet { event, head }), Some(counts)) = (sheet(), COUNTS.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: a map's value; the manager may write it meanwhile, which at worst tells one packet
    // too many.
    let order = unsafe { &mut *order() };
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if now > order.until_ns {
        // Whoever asked is gone without a word: from here on it costs nothing again.
        order.until_ns = 0;
        return 0;
    }
    event.time_ns = now;
    event.code = 0;
    let length = frame.copy_head(head);
    event.read(head, length);
    event.service = service_of(event);
    if !order.wants(event) || !is_drawn(order.sample) {
        return 0;
    }
    // SAFETY: array slots live as long as the map.
    unsafe {
        if now - (*counts).window_ns >= TRACE_WINDOW_NS {
            (*counts).window_ns = now;
            (*counts).taken = 0;
        }
        add(&raw mut (*counts).taken, 1);
        // With others' packets that came since, so that it is never too few.
        if core::ptr::read_volatile(&raw const (*counts).taken) > order.rate.into() {
            add(&raw mut (*counts).over_rate, 1);
            return 0;
        }
        let event: &TraceEvent = event;
        if EVENTS.output(event, 0).is_err() {
            add(&raw mut (*counts).no_room, 1);
        }
    }
    0
}

#[inline(always)]
fn is_drawn(sample: u32) -> bool {
    // SAFETY: the helper takes no argument.
    sample <= 1 || unsafe { bpf_get_prandom_u32() }.checked_rem(sample) == Some(0)
}

/// The same number, of which the compiler knows nothing.
#[inline(always)]
pub fn untold(mut number: u64) -> u64 {
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack)) };
    number
}

/// Where the order is; the compiler shall not believe that it is what it was when this was built.
#[inline(always)]
fn order() -> *mut TraceOrder {
    let mut order = &raw mut TRACE;
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) order, options(nostack)) };
    order
}

#[inline(always)]
fn sheet() -> Option<&'static mut Sheet> {
    // SAFETY: the slot belongs to this CPU, where one packet is met at a time: bottom halves are off at
    // every hook.
    SHEET.get_ptr_mut(0).map(|sheet| unsafe { &mut *sheet })
}

#[inline(always)]
fn mapped<A: Address>(
    FlowKey {
        source,
        destination,
        source_port,
        destination_port,
        protocol,
    }: &FlowKey<A>,
) -> FlowKey<[u8; 16]> {
    FlowKey {
        source: source.mapped(),
        destination: destination.mapped(),
        source_port: *source_port,
        destination_port: *destination_port,
        protocol: *protocol,
    }
}
