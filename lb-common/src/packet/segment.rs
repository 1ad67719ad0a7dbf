//! A TCP segment or UDP datagram, from its link header on.

use super::{Extent, FrameBytes, Header, IpAddress, IpHeader, Rewritten, bytes::sealed::Sealed};
use crate::{
    address::V4,
    checksum::{Difference, udp_checksum},
    headers::{
        ETHERNET_LEN, EthernetHeader, Ipv4Header, PROTOCOL_TCP, PROTOCOL_UDP, QuotedPorts,
        TcpFlags, TcpHeader, UdpHeader,
    },
    maps::FlowKey,
    verdict::Verdict,
};

/// The part of a frame that decides whether it is related to memlb.
#[repr(C)]
#[derive(Debug)]
pub struct PortsFrame<H> {
    pub ethernet: EthernetHeader,
    pub ip: H,
    pub ports: QuotedPorts,
}

/// Ethernet, IPv4 without options, and TCP as one view: the usual packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFrame {
    pub ethernet: EthernetHeader,
    pub ip: Ipv4Header,
    pub tcp: TcpHeader,
}

impl<H: IpHeader> Sealed for PortsFrame<H> {}
impl<H: IpHeader> Header for PortsFrame<H> {}

impl Sealed for TcpFrame {}
impl Header for TcpFrame {}
const _: () = assert!(align_of::<TcpFrame>() == 1);

impl TcpFrame {
    /// Whether the bytes are IPv4 without options and TCP.
    #[inline(always)]
    pub fn is_tcp_ipv4(&self) -> bool {
        self.ethernet.ether_type() == Ipv4Header::ETHERTYPE
            && self.ip.version() == 4
            && self.ip.header_words() == 5
            && self.ip.protocol == PROTOCOL_TCP
    }

    #[inline(always)]
    pub fn segment(&mut self) -> Segment<'_, V4> {
        Segment {
            ethernet: &mut self.ethernet,
            ip: &mut self.ip,
            transport: Transport::Tcp(&mut self.tcp),
        }
    }
}

/// The headers of a segment or datagram.
#[derive(Debug)]
pub struct Segment<'a, A: IpAddress> {
    pub ethernet: &'a mut EthernetHeader,
    pub ip: &'a mut A::Header,
    pub transport: Transport<'a>,
}

#[derive(Debug)]
pub enum Transport<'a> {
    Tcp(&'a mut TcpHeader),
    Udp(&'a mut UdpHeader),
}

impl<A: IpAddress> Segment<'_, A> {
    /// Returns the verdict of a packet with invalid headers. The transport header begins `headers` bytes after the IP
    /// header.
    #[inline(always)]
    pub fn check(&self, headers: u32, extent: Extent) -> Result<(), Verdict> {
        let claimed = self.ip.claimed_length();
        let (whole, length) = match &self.transport {
            Transport::Tcp(tcp) => {
                let words = tcp.header_words();
                (words >= 5, 4 * u32::from(words))
            }
            Transport::Udp(udp) => {
                let length = udp.length();
                (extent.coalesced || length >= 8, length.into())
            }
        };
        if !whole || (!extent.coalesced && claimed < headers + length) {
            return Err(Verdict::Malformed);
        }
        if self.ethernet.to_group() {
            return Err(Verdict::NotForUs);
        }
        Ok(())
    }

    /// Offset of the transport header in the frame, if the headers are valid and the packet may be steered.
    #[inline(always)]
    pub fn checked_offset<'a>(&self, bytes: impl FrameBytes<'a>, extent: Extent) -> Option<usize> {
        let offset = self.ip.locate(bytes, extent).ok()?.offset;
        self.check((offset - ETHERNET_LEN) as u32, extent).ok()?;
        Some(offset)
    }

    /// The packet's tuple.
    #[inline(always)]
    pub fn tuple(&self) -> FlowKey<A> {
        let (source_port, destination_port, protocol) = match &self.transport {
            Transport::Tcp(tcp) => (tcp.source_port, tcp.destination_port, PROTOCOL_TCP),
            Transport::Udp(udp) => (udp.source_port, udp.destination_port, PROTOCOL_UDP),
        };
        FlowKey {
            source: self.ip.source(),
            destination: self.ip.destination(),
            source_port,
            destination_port,
            protocol: protocol.into(),
        }
    }

    /// Replaces the tuple, and reduces the time to live of a forwarded packet. The caller updates the transport
    /// checksum.
    #[inline(always)]
    pub fn rewrite(&mut self, translated: &FlowKey<A>, forwarded: bool) -> Rewritten {
        let addresses = self
            .ip
            .replace(translated.source, translated.destination, forwarded);
        let (source_port, destination_port) = match &mut self.transport {
            Transport::Tcp(tcp) => (&mut tcp.source_port, &mut tcp.destination_port),
            Transport::Udp(udp) => (&mut udp.source_port, &mut udp.destination_port),
        };
        let ports = Difference::of_u16(*source_port, translated.source_port).plus(
            Difference::of_u16(*destination_port, translated.destination_port),
        );
        *source_port = translated.source_port;
        *destination_port = translated.destination_port;
        Rewritten { addresses, ports }
    }
}

impl Transport<'_> {
    /// Offset of the checksum in the header, in bytes.
    #[inline(always)]
    pub fn checksum_offset(&self) -> usize {
        match self {
            Self::Tcp(_) => 16,
            Self::Udp(_) => 6,
        }
    }

    /// Updates a complete checksum. A datagram without one stays without (RFC 768); a result of 0 is written as all
    /// ones.
    #[inline(always)]
    pub fn apply(&mut self, rewritten: Rewritten) {
        match self {
            Self::Tcp(tcp) => tcp.checksum = rewritten.apply(tcp.checksum),
            Self::Udp(udp) if udp.checksum != [0, 0] => {
                udp.checksum = udp_checksum(rewritten.apply(udp.checksum));
            }
            Self::Udp(_) => {}
        }
    }

    #[inline(always)]
    pub fn flags(&self) -> TcpFlags {
        match self {
            Self::Tcp(tcp) => tcp.flags(),
            Self::Udp(_) => TcpFlags::NONE,
        }
    }

    /// Sequence and acknowledgement number.
    #[inline(always)]
    pub fn numbers(&self) -> (u32, u32) {
        match self {
            Self::Tcp(tcp) => (tcp.sequence(), tcp.acknowledgement()),
            Self::Udp(_) => (0, 0),
        }
    }
}
