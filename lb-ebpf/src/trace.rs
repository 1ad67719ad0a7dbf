//! The packet trace.
//!
//! While it is off, it costs a packet one load and one branch. Everything else happens behind the branch, with a
//! scratch map instead of the stack.

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

/// Map `trace`. Reading a variable needs no look-up.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.trace")]
static mut TRACE: TraceConfig = TraceConfig::OFF;

#[btf_map(name = "trace_counts")]
static COUNTS: Array<TraceCounts, 1> = Array::new();

#[btf_map(name = "trace_events")]
static EVENTS: RingBuf<TraceEvent, { TRACE_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "trace_scratch")]
static TRACE_SCRATCH: PerCpuArray<TraceScratch, 1> = PerCpuArray::new();

/// Scratch space for the event of the present packet.
#[repr(C)]
struct TraceScratch {
    event: TraceEvent,
    head: [u8; HEAD],
}

/// A frame with the context of its program.
pub trait Frame: Copy {
    /// Whether the program is XDP.
    const IS_XDP: bool;

    /// Copies the frame's first bytes, and returns their number.
    fn copy_head(self, head: &mut [u8; HEAD]) -> usize;

    /// [`emit`] as a global function of the context alone, which the verifier checks once instead of on each path to
    /// it.
    fn emit(self);
}

/// Records a packet after the decision and before it is rewritten.
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
        Exit::Pass | Exit::Drop | Exit::Peers => FlowKey::NONE,
        _ => mapped(&decision.translated),
    };
    event.backend = decision.backend;
    event.protocol = if is_segment { key.protocol as u8 } else { 0 };
    let TcpFlags(flags) = packet.flags;
    event.kind = flags;
    record(frame, hook_context, decision.verdict);
}

/// Records a packet that is passed.
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

/// Whether the trace may be on.
#[inline(always)]
pub fn is_enabled() -> bool {
    // SAFETY: an aligned word of a map, written at once.
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

/// Emits the event in the scratch map if the filter matches. The result is unused.
#[inline(always)]
pub fn emit(frame: impl Frame) -> u32 {
    let (Some(TraceScratch { event, head }), Some(counts)) =
        (trace_scratch(), COUNTS.get_ptr_mut(0))
    else {
        return 0;
    };
    // SAFETY: the value of a map. A concurrent write by the manager at worst records one packet too many.
    let config = unsafe { &mut *config() };
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if now > config.expires_ns {
        // The trace has expired without being renewed: switch it off.
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
            (*counts).window_packets = 0;
        }
        atomic_add(&raw mut (*counts).window_packets, 1);
        // Includes packets that other processors added meanwhile, so that the limit holds.
        if core::ptr::read_volatile(&raw const (*counts).window_packets) > config.rate.into() {
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

/// Hides a number from the compiler's optimizer (libbpf's `barrier_var`).
#[inline(always)]
pub fn barrier_var(mut number: u64) -> u64 {
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack)) };
    number
}

/// Pointer to the configuration, hidden from the optimizer, which would use the initial value.
#[inline(always)]
fn config() -> *mut TraceConfig {
    let mut config = &raw mut TRACE;
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) config, options(nostack)) };
    config
}

#[inline(always)]
fn trace_scratch() -> Option<&'static mut TraceScratch> {
    // SAFETY: a per-CPU slot. Each CPU handles one packet at a time, because every hook runs with bottom halves off.
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
