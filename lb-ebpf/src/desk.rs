//! What is known and decided of the packet at hand.
//!
//! A program reads a packet, decides and acts in functions of their own, which find here what the
//! others found: on the stack, which all of them share, there is no room for it, and the verifier would
//! follow every way through one of them on every way through the others.

use lb_common::{
    maps::FlowKey,
    steer::{Arrival, Decision},
};
use lb_ebpf::linear::Spot;

#[repr(C)]
pub struct Desk<A> {
    pub key: FlowKey<A>,
    pub arrival: Arrival,
    pub decision: Decision<A>,
    pub spot: Spot,
}

/// What reading a packet has led to.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// None of ours, and counted.
    Passes,
    /// Not to be looked at, nor to be counted.
    Skipped,
    /// A segment or datagram lies on the desk.
    Segment,
    /// An ICMP error message does.
    Message,
}
