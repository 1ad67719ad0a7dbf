//! The packet trace: configuration, counts and events.

use super::FlowKey;
use crate::address::V6;

/// Section of the object that becomes map `trace`.
pub const TRACE_SECTION: &str = ".bss.trace";

/// Size of map `trace_events` in bytes: about 2,000 packets.
pub const TRACE_BYTES: u32 = 256 * 1024;

/// Service or backend number: any in a [`TraceConfig`], none in a [`TraceEvent`].
pub const NO_ID: u32 = u32::MAX;

/// Most backends in a [`TraceConfig`].
pub const TRACED_BACKENDS: usize = 16;

/// Window of the rate limit, in nanoseconds.
pub const TRACE_WINDOW_NS: u64 = 1_000_000_000;

/// The single value of `trace`: filter and expiry. All zeros: off.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    /// Expiry, CLOCK_MONOTONIC in nanoseconds; 0: off.
    pub expires_ns: u64,
    pub client: V6,
    /// Bits of the client's address that are compared.
    pub client_mask: V6,
    /// A bit for each [`crate::verdict::Verdict`].
    pub verdicts: u64,
    /// 0: any.
    pub client_port: [u8; 2],
    pub reserved: [u8; 6],
    /// [`NO_ID`]: any.
    pub service: u32,
    /// Filled entries of `backends`; 0: any backend.
    pub backend_count: u32,
    pub backends: [u32; TRACED_BACKENDS],
    /// Most packets in a second.
    pub rate: u32,
    /// One packet in so many is recorded, at random; 0 and 1: all.
    pub sample: u32,
}

/// The single value of `trace_counts`, which the programs write.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceCounts {
    /// Begin of the current window, CLOCK_MONOTONIC in nanoseconds.
    pub window_ns: u64,
    /// Matching packets in this window.
    pub window_packets: u64,
    /// Matching packets beyond the rate limit.
    pub over_rate: u64,
    /// Matching packets for which `trace_events` was full.
    pub no_room: u64,
}

/// An entry of `trace_events`: one packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub time_ns: u64,
    /// Tuple on arrival, IPv4 as IPv4-mapped addresses. For ICMP errors that are steered, the tuple of replies to the
    /// quoted packet. Ports are 0 for other protocols, everything is 0 for packets that are not IP.
    pub original: FlowKey<V6>,
    /// Tuple after translation; 0: memlb did not forward the packet.
    pub translated: FlowKey<V6>,
    pub interface: u32,
    /// 0: none.
    pub backend: u32,
    /// [`NO_ID`]: none.
    pub service: u32,
    /// Packets and bytes on the wire.
    pub packets: u32,
    pub bytes: u32,
    pub ether_type: u16,
    pub verdict: u8,
    /// One of [`trace_hook`].
    pub hook: u8,
    /// IANA number of the packet's own protocol.
    pub protocol: u8,
    /// TCP flags or ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    pub reserved: u8,
}

/// The hook at which a program ran.
pub mod trace_hook {
    pub const XDP: u8 = 0;
    pub const INGRESS: u8 = 1;
    pub const EGRESS: u8 = 2;
    pub const LOOPBACK: u8 = 3;
}

impl TraceConfig {
    /// No packet is recorded.
    pub const OFF: Self = Self {
        expires_ns: 0,
        client: [0; 16],
        client_mask: [0; 16],
        verdicts: 0,
        client_port: [0; 2],
        reserved: [0; 6],
        service: 0,
        backend_count: 0,
        backends: [0; TRACED_BACKENDS],
        rate: 0,
        sample: 0,
    };

    /// Every packet matches; the caller sets the expiry.
    pub const ALL: Self = Self {
        verdicts: u64::MAX,
        service: NO_ID,
        rate: u32::MAX,
        ..Self::OFF
    };
}

impl TraceEvent {
    /// An empty event.
    pub const NONE: Self = Self {
        time_ns: 0,
        original: FlowKey::NONE,
        translated: FlowKey::NONE,
        interface: 0,
        backend: 0,
        service: NO_ID,
        packets: 0,
        bytes: 0,
        ether_type: 0,
        verdict: 0,
        hook: 0,
        protocol: 0,
        kind: 0,
        code: 0,
        reserved: 0,
    };
}
