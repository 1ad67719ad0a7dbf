//! What is known and decided of the packet at hand.
//!
//! A program reads a packet, decides and acts in functions of their own, which find here what the
//! others found: on the stack, which all of them share, there is no room for it, and the verifier would
//! follow every way through one of them on every way through the others.

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

/// What reading a packet has led to.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// None of ours, and counted.
    Passed,
    /// Not to be looked at, nor to be counted.
    Skipped,
    /// A segment or datagram is in the scratch map.
    Segment,
    /// An ICMP error message is.
    Message,
}
