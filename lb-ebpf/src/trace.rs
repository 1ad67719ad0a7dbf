//! The trace: tells of single packets, when somebody asks for it, what became of them.
//!
//! While nobody does, a packet costs one load and one branch for it. So that it stays so, whatever
//! telling takes is done behind the branch, and stored in a scratch map instead of the stack.

use core::{arch::asm, hint::cold_path};

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::btf_map,
};
use lb_common::{
    address::Address,
    headers::TcpFlags,
    maps::{
        FlowKey, TRACE_BYTES, TRACE_WINDOW_NS, TraceConfig, TraceCounts, TraceEvent, trace_hook,
    },
    steer::{Decision, Exit, Hook, PacketMeta},
    trace::HEAD,
    verdict::Verdict,
};

use crate::{
    maps::{atomic_add, service_of},
    packet::HookContext,
};

/// Map `trace`. A variable is read without a look-up.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.trace")]
static mut TRACE: TraceConfig = TraceConfig::OFF;

#[btf_map(name = "trace_counts")]
static COUNTS: Array<TraceCounts, 1> = Array::new();

#[btf_map(name = "trace_events")]
static EVENTS: RingBuf<TraceEvent, { TRACE_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "trace_scratch")]
static TRACE_SCRATCH: PerCpuArray<TraceScratch, 1> = PerCpuArray::new();

/// What is told of the packet at hand.
#[repr(C)]
struct TraceScratch {
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
    packet: &PacketMeta,
    decision: &Decision<A>,
    is_segment: bool,
) {
    if !is_enabled() {
        return;
    }
    cold_path();
    let Some(TraceScratch { event, .. }) = trace_scratch() else {
        return;
    };
    let hook_context = HookContext {
        hook: packet.hook,
        in_driver: packet.in_driver,
        interface: packet.interface,
        packets: packet.packets,
        bytes: packet.bytes,
        tag: 0,
    };
    event.original = mapped(key);
    event.translated = match decision.exit {
        Exit::Pass | Exit::Drop => FlowKey::NONE,
        _ => mapped(&decision.translated),
    };
    event.backend = decision.backend;
    event.protocol = if is_segment { key.protocol as u8 } else { 0 };
    let TcpFlags(flags) = packet.flags;
    event.kind = flags;
    record(frame, hook_context, decision.verdict);
}

/// Tells of a packet that was left alone.
#[inline(always)]
pub fn passed(frame: impl Frame, hook_context: HookContext, verdict: Verdict) {
    if !is_enabled() {
        return;
    }
    cold_path();
    let Some(TraceScratch { event, .. }) = trace_scratch() else {
        return;
    };
    event.original = FlowKey::NONE;
    event.translated = FlowKey::NONE;
    event.backend = 0;
    event.protocol = 0;
    event.kind = 0;
    record(frame, hook_context, verdict);
}

/// Whether somebody may want to be told of packets.
#[inline(always)]
pub fn is_enabled() -> bool {
    // SAFETY: an aligned word of a map, which others write whole.
    unsafe { core::ptr::read_volatile(&raw const TRACE.expires_ns) != 0 }
}

#[inline(always)]
fn record<F: Frame>(frame: F, hook_context: HookContext, verdict: Verdict) {
    let Some(TraceScratch { event, .. }) = trace_scratch() else {
        return;
    };
    event.interface = hook_context.interface;
    event.packets = hook_context.packets;
    event.bytes = hook_context.bytes;
    event.verdict = verdict as u8;
    event.hook = match hook_context.hook {
        Hook::Ingress if F::IS_XDP => trace_hook::XDP,
        Hook::Ingress => trace_hook::INGRESS,
        Hook::Egress => trace_hook::EGRESS,
        Hook::Loopback => trace_hook::LOOPBACK,
    };
    frame.emit();
}

/// Tells the event in the scratch map, if it is wanted. Returns what nobody needs.
#[inline(always)]
pub fn emit(frame: impl Frame) -> u32 {
    let (Some(TraceScratch { event, head }), Some(counts)) =
        (trace_scratch(), COUNTS.get_ptr_mut(0))
    else {
        return 0;
    };
    // SAFETY: a map's value; the manager may write it meanwhile, which at worst tells one packet
    // too many.
    let config = unsafe { &mut *config() };
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if now > config.expires_ns {
        // Whoever asked is gone without a word: from here on it costs nothing again.
        config.expires_ns = 0;
        return 0;
    }
    event.time_ns = now;
    event.code = 0;
    let length = frame.copy_head(head);
    event.parse_headers(head, length);
    event.service = service_of(event);
    if !config.matches(event) || !is_sampled(config.sample) {
        return 0;
    }
    // SAFETY: array slots live as long as the map.
    unsafe {
        if now - (*counts).window_ns >= TRACE_WINDOW_NS {
            (*counts).window_ns = now;
            (*counts).taken = 0;
        }
        atomic_add(&raw mut (*counts).taken, 1);
        // With others' packets that came since, so that it is never too few.
        if core::ptr::read_volatile(&raw const (*counts).taken) > config.rate.into() {
            atomic_add(&raw mut (*counts).over_rate, 1);
            return 0;
        }
        let event: &TraceEvent = event;
        if EVENTS.output(event, 0).is_err() {
            atomic_add(&raw mut (*counts).no_room, 1);
        }
    }
    0
}

#[inline(always)]
fn is_sampled(sample: u32) -> bool {
    // SAFETY: the helper takes no argument.
    sample <= 1 || unsafe { bpf_get_prandom_u32() }.checked_rem(sample) == Some(0)
}

/// The same number, of which the compiler knows nothing.
#[inline(always)]
pub fn barrier_var(mut number: u64) -> u64 {
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack)) };
    number
}

/// Where the order is; the compiler shall not believe that it is what it was when this was built.
#[inline(always)]
fn config() -> *mut TraceConfig {
    let mut config = &raw mut TRACE;
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) config, options(nostack)) };
    config
}

#[inline(always)]
fn trace_scratch() -> Option<&'static mut TraceScratch> {
    // SAFETY: the slot belongs to this CPU, where one packet is met at a time: bottom halves are off at
    // every hook.
    TRACE_SCRATCH
        .get_ptr_mut(0)
        .map(|trace_scratch| unsafe { &mut *trace_scratch })
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
