//! What is known and decided of the packet at hand.
//!
//! A program reads a packet, decides and acts in functions of their own, which find here what the
//! others found: on the stack, which all of them share, there is no room for it, and the verifier would
//! follow every way through one of them on every way through the others.

use lb_common::{
    address::Address,
    maps::FlowKey,
    packet::Located,
    steer::{Arrival, Decision},
};

#[repr(C)]
pub struct Desk<A> {
    pub key: FlowKey<A>,
    pub arrival: Arrival,
    pub decision: Decision<A>,
    protocol: u32,
    offset: u32,
}

impl<A: Address> Desk<A> {
    /// The highest offset that the verifier is told of.
    const OFFSETS: u32 = 0x1ff;

    #[inline(always)]
    pub fn place(&mut self, located: Located) {
        self.protocol = located.protocol.into();
        self.offset = located.offset as u32;
    }

    /// Where the packet's transport header is.
    #[inline(always)]
    pub fn located(&self) -> Located {
        Located {
            protocol: self.protocol as u8,
            offset: (self.offset & Self::OFFSETS) as usize,
        }
    }
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
