//! Views of headers in the bytes of a frame.

use crate::{
    headers::{
        EthernetHeader, ExtensionHeader, IcmpHeader, Ipv4Header, Ipv6Header, QuotedPorts,
        TcpHeader, UdpHeader,
    },
    maps::IntakeHeader,
};

/// The accessible bytes of a frame, from its link header on.
///
/// The caller of an unsafe constructor guarantees that no two views of the same bytes are in use at a time.
pub trait FrameBytes<'a>: Copy {
    /// The header at `offset`; `None` if it is cut short.
    fn at<T: Header>(self, offset: usize) -> Option<&'a mut T>;
}

/// A header that can be viewed in place: of alignment 1, and every bit pattern is a value.
pub trait Header: sealed::Sealed {}

pub(super) mod sealed {
    pub trait Sealed {}
}

macro_rules! headers {
    ($($header:ty),+) => {
        $(
            impl sealed::Sealed for $header {}
            impl Header for $header {}
            const _: () = assert!(align_of::<$header>() == 1);
        )+
    };
}

headers!(
    EthernetHeader,
    ExtensionHeader,
    IcmpHeader,
    IntakeHeader,
    Ipv4Header,
    Ipv6Header,
    QuotedPorts,
    TcpHeader,
    UdpHeader
);
