//! Scratch space for the present packet.
//!
//! A program parses, decides and acts in functions that are not inlined and share this space. The stack is too small,
//! and with values in a map the verifier does not combine the paths of one function with those of the others.

use lb_common::{
    maps::FlowKey,
    steer::{Decision, PacketMeta},
};
use lb_ebpf::packet_bytes::HeaderOffset;

#[repr(C)]
pub struct PacketScratch<A> {
    pub key: FlowKey<A>,
    pub packet: PacketMeta,
    pub decision: Decision<A>,
    pub header_offset: HeaderOffset,
}

/// The result of parsing.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Not steered, and counted.
    Passed,
    /// Not steered, and not counted.
    Skipped,
    /// A segment or datagram is in the scratch map.
    Segment,
    /// An ICMP error is in the scratch map.
    IcmpError,
}
