//! Checked views of the packet's bytes.

use lb_common::{
    frame::{TcpFrame, short_frame},
    headers::{ETHERNET_LEN, EthernetHeader, Ipv4Header},
    steer::{Arrival, Hook},
    verdict::Verdict,
};

/// The linear part of a packet: `start..end`, as the context says.
#[derive(Clone, Copy)]
pub struct Bytes {
    pub start: usize,
    pub end: usize,
}

impl Bytes {
    /// A pointer to a `T` at `offset`, if all of it is there.
    #[inline(always)]
    fn at<T>(self, offset: usize) -> Option<*mut T> {
        const { assert!(align_of::<T>() == 1) };
        (self.start + offset + size_of::<T>() <= self.end)
            .then_some((self.start + offset) as *mut T)
    }

    /// The headers of a TCP frame, if the linear part holds them.
    #[inline(always)]
    pub fn tcp_frame<'a>(self) -> Option<&'a mut TcpFrame> {
        let frame = self.at::<TcpFrame>(0)?;
        // SAFETY: within the packet, as the verifier checks again; align 1; every bit pattern is
        // valid; the only view of these bytes.
        Some(unsafe { &mut *frame })
    }

    /// The verdict on a packet without room for a [`TcpFrame`].
    #[inline(always)]
    pub fn verdict_on_short(self) -> Verdict {
        // SAFETY: as in `tcp_frame`, and shared.
        let ethernet = self
            .at::<EthernetHeader>(0)
            .map(|header| unsafe { &*header });
        // SAFETY: as above.
        let ip = self
            .at::<Ipv4Header>(ETHERNET_LEN)
            .map(|header| unsafe { &*header });
        short_frame(ethernet, ip)
    }
}

/// What the steering decision needs to know of a frame.
#[inline(always)]
pub fn arrival(frame: &TcpFrame, hook: Hook, interface: u32, packets: u32, bytes: u32) -> Arrival {
    Arrival {
        hook,
        interface,
        source_mac: frame.ethernet.source.into(),
        destination_mac: frame.ethernet.destination.into(),
        time_to_live: frame.ip.time_to_live,
        flags: frame.tcp.flags(),
        sequence: frame.tcp.sequence(),
        acknowledgement: frame.tcp.acknowledgement(),
        packets,
        bytes,
    }
}
