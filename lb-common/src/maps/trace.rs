//! The trace: which packets an operator wants told, and what is told of one.

use super::FlowKey;
use crate::address::V6;

/// The section of the programs' object that is map `trace`.
pub const TRACE_SECTION: &str = ".bss.trace";

/// Size of map `trace_events`, in bytes: room for two thousand packets.
pub const TRACE_BYTES: u32 = 256 * 1024;

/// A service's or a backend's number that stands for none, or for any.
pub const NO_ID: u32 = u32::MAX;

/// How many backends may be named.
pub const TRACED_BACKENDS: usize = 16;

/// Over which time the rate counts, in nanoseconds.
pub const TRACE_WINDOW_NS: u64 = 1_000_000_000;

/// The single value of `trace`: which packets are told. All zeros tell nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    /// CLOCK_MONOTONIC, in nanoseconds, after which nothing is told any more; 0 for never.
    pub expires_ns: u64,
    pub client: V6,
    /// Which bits of the client's address count.
    pub client_mask: V6,
    /// 0 for any.
    pub client_port: [u8; 2],
    pub reserved: [u8; 2],
    /// A bit for each [`crate::verdict::Verdict`].
    pub verdicts: u32,
    /// [`NO_ID`] for any.
    pub service: u32,
    /// How many of `backends` are named; 0 for any.
    pub backend_count: u32,
    pub backends: [u32; TRACED_BACKENDS],
    /// How many packets are told in a second at most.
    pub rate: u32,
    /// One packet in so many is told, by lot; 0 and 1 for all.
    pub sample: u32,
}

/// The single value of `trace_counts`, which the programs write.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceCounts {
    /// When the present second began, and how many packets it had.
    pub window_ns: u64,
    pub taken: u64,
    /// Packets that were wanted, but beyond the rate.
    pub over_rate: u64,
    /// Those for which `trace_events` had no room.
    pub no_room: u64,
}

/// What is told of a packet: an entry of `trace_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub time_ns: u64,
    /// IPv4 as IPv4-mapped addresses; of an ICMP error that was steered, the tuple it was steered by.
    /// Ports are 0 where there are none; all is 0 where the packet is not IP.
    pub original: FlowKey<V6>,
    /// All 0 where the packet did not leave by memlb.
    pub translated: FlowKey<V6>,
    pub interface: u32,
    /// 0 for none.
    pub backend: u32,
    /// [`NO_ID`] for none.
    pub service: u32,
    /// On the wire, as everywhere.
    pub packets: u32,
    pub bytes: u32,
    pub ether_type: u16,
    pub verdict: u8,
    /// One of [`place`].
    pub hook: u8,
    /// IANA number of the packet's own protocol.
    pub protocol: u8,
    /// The flags of a TCP segment, the type of an ICMP message.
    pub kind: u8,
    /// Of an ICMP message.
    pub code: u8,
    pub reserved: u8,
}

/// Where a program met a packet.
pub mod trace_hook {
    pub const XDP: u8 = 0;
    pub const INGRESS: u8 = 1;
    pub const EGRESS: u8 = 2;
    pub const LOOPBACK: u8 = 3;
}

impl TraceConfig {
    /// Nothing is told.
    pub const OFF: Self = Self {
        expires_ns: 0,
        client: [0; 16],
        client_mask: [0; 16],
        client_port: [0; 2],
        reserved: [0; 2],
        verdicts: 0,
        service: 0,
        backend_count: 0,
        backends: [0; TRACED_BACKENDS],
        rate: 0,
        sample: 0,
    };

    /// Every packet is told, as long as the time allows.
    pub const ALL: Self = Self {
        verdicts: u32::MAX,
        service: NO_ID,
        rate: u32::MAX,
        ..Self::OFF
    };
}

impl TraceEvent {
    /// Nothing is known of the packet yet.
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
