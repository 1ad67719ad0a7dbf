//! Ethernet, IP, TCP, UDP and ICMP headers as byte arrays: alignment 1, network byte order inside, host
//! order through the accessors.

use crate::checksum::Difference;

/// Length of an Ethernet II header without a VLAN tag, in bytes.
pub const ETHERNET_LEN: usize = size_of::<EthernetHeader>();

/// EtherTypes (IANA).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// Protocol numbers (IANA).
pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMPV6: u8 = 58;

/// An Ethernet II header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetHeader {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    ether_type: [u8; 2],
}

impl EthernetHeader {
    #[inline(always)]
    pub fn ether_type(&self) -> u16 {
        u16::from_be_bytes(self.ether_type)
    }

    /// Whether the destination is a multicast or broadcast address.
    #[inline(always)]
    pub fn to_group(&self) -> bool {
        self.destination[0] & 1 == 1
    }
}

/// An IPv4 header without options (RFC 791, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Header {
    version_and_length: u8,
    type_of_service: u8,
    total_length: [u8; 2],
    identification: [u8; 2],
    fragment: [u8; 2],
    pub time_to_live: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub source: [u8; 4],
    pub destination: [u8; 4],
}

impl Ipv4Header {
    /// In the first byte of the fragment field.
    pub const DONT_FRAGMENT: u8 = 0x40;

    #[inline(always)]
    pub fn version(&self) -> u8 {
        self.version_and_length >> 4
    }

    /// Length of the header with its options, in 32-bit words.
    #[inline(always)]
    pub fn header_words(&self) -> u8 {
        self.version_and_length & 0x0f
    }

    /// Length of the datagram, header included, in bytes.
    #[inline(always)]
    pub fn total_length(&self) -> u16 {
        u16::from_be_bytes(self.total_length)
    }

    /// Whether this is a fragment: the MF bit or a fragment offset is set.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff != 0
    }

    /// Whether the payload begins with a transport header: a whole packet or a first fragment.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x1fff == 0
    }

    /// The half-word that holds flags and fragment offset.
    #[inline(always)]
    pub fn fragment_word(&mut self) -> &mut [u8; 2] {
        &mut self.fragment
    }

    #[inline(always)]
    pub fn identification(&mut self) -> &mut [u8; 2] {
        &mut self.identification
    }
}

/// An IPv6 header without extension headers (RFC 8200, section 3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Header {
    version_class_and_label: [u8; 4],
    payload_length: [u8; 2],
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u8; 16],
    pub destination: [u8; 16],
}

impl Ipv6Header {
    #[inline(always)]
    pub fn version(&self) -> u8 {
        self.version_class_and_label[0] >> 4
    }

    /// Length of what follows this header, extension headers included, in bytes.
    #[inline(always)]
    pub fn payload_length(&self) -> u16 {
        u16::from_be_bytes(self.payload_length)
    }
}

/// The beginning of every extension header that can be skipped (RFC 8200, section 4).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionHeader {
    pub next_header: u8,
    length: u8,
    routing_type: u8,
    /// In a routing header: the number of nodes still to be visited.
    pub segments_left: u8,
}

impl ExtensionHeader {
    /// Length of the whole extension header, in bytes.
    #[inline(always)]
    pub fn length(&self) -> usize {
        (self.length as usize + 1) * 8
    }
}

/// A UDP header (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpHeader {
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    length: [u8; 2],
    /// 0: the sender computed none.
    pub checksum: [u8; 2],
}

impl UdpHeader {
    /// Length of header and data, in bytes.
    #[inline(always)]
    pub fn length(&self) -> u16 {
        u16::from_be_bytes(self.length)
    }
}

/// The beginning of every ICMP and ICMPv6 error message (RFC 792, RFC 4443).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpHeader {
    pub kind: u8,
    pub code: u8,
    pub checksum: [u8; 2],
    rest: [u8; 4],
}

impl IcmpHeader {
    /// In IPv4's fragmentation needed: the MTU of the next link in bytes; 0 from routers that do not report it (RFC
    /// 1191, section 4).
    #[inline(always)]
    pub fn next_hop_mtu(&self) -> u16 {
        let [_, _, high, low] = self.rest;
        u16::from_be_bytes([high, low])
    }
}

/// The part of a TCP or UDP header that every error message quotes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotedPorts {
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    /// In TCP: the first half of the sequence number.
    length: [u8; 2],
    /// In TCP: the second half of the sequence number.
    pub checksum: [u8; 2],
}

/// A TCP header without options (RFC 9293, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    sequence: [u8; 4],
    acknowledgement: [u8; 4],
    data_offset: u8,
    flags: u8,
    window: [u8; 2],
    pub checksum: [u8; 2],
    urgent: [u8; 2],
}

impl TcpHeader {
    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        u32::from_be_bytes(self.sequence)
    }

    #[inline(always)]
    pub fn acknowledgement(&self) -> u32 {
        u32::from_be_bytes(self.acknowledgement)
    }

    /// Length of the header with its options, in 32-bit words.
    #[inline(always)]
    pub fn header_words(&self) -> u8 {
        self.data_offset >> 4
    }

    #[inline(always)]
    pub fn flags(&self) -> TcpFlags {
        TcpFlags(self.flags)
    }

    /// Makes the segment a RST with this sequence number and returns the difference for its checksum. Options become
    /// data.
    #[inline(always)]
    pub fn make_reset(&mut self, sequence: u32) -> Difference {
        const HEADER_WORDS: u8 = 5;
        let sequence = sequence.to_be_bytes();
        let control = [HEADER_WORDS << 4, TcpFlags::RST];
        let difference = Difference::of_u32(self.sequence, sequence)
            .plus(Difference::of_u32(self.acknowledgement, [0; 4]))
            .plus(Difference::of_u16([self.data_offset, self.flags], control));
        self.sequence = sequence;
        self.acknowledgement = [0; 4];
        [self.data_offset, self.flags] = control;
        difference
    }
}

impl QuotedPorts {
    /// Of TCP.
    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        let ([a, b], [c, d]) = (self.length, self.checksum);
        u32::from_be_bytes([a, b, c, d])
    }
}

/// The control bits of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// The flags of a packet that is not a TCP segment.
    pub const NONE: Self = Self(0);

    pub const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    const ACK: u8 = 0x10;

    /// A request for a new connection: SYN without ACK, RST or FIN.
    #[inline(always)]
    pub fn is_syn(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// The answer to a SYN: SYN and ACK, without RST.
    #[inline(always)]
    pub fn is_syn_ack(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN | Self::ACK
    }

    /// A segment of an established connection: ACK without SYN or RST.
    #[inline(always)]
    pub fn is_ack(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::ACK
    }

    #[inline(always)]
    pub fn has_ack(self) -> bool {
        self.0 & Self::ACK != 0
    }

    #[inline(always)]
    pub fn has_fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    #[inline(always)]
    pub fn has_rst(self) -> bool {
        self.0 & Self::RST != 0
    }
}

const _: () = {
    assert!(size_of::<EthernetHeader>() == 14 && align_of::<EthernetHeader>() == 1);
    assert!(size_of::<Ipv4Header>() == 20 && align_of::<Ipv4Header>() == 1);
    assert!(size_of::<Ipv6Header>() == 40 && align_of::<Ipv6Header>() == 1);
    assert!(size_of::<ExtensionHeader>() == 4 && align_of::<ExtensionHeader>() == 1);
    assert!(size_of::<TcpHeader>() == 20 && align_of::<TcpHeader>() == 1);
    assert!(size_of::<UdpHeader>() == 8 && align_of::<UdpHeader>() == 1);
    assert!(size_of::<IcmpHeader>() == 8 && align_of::<IcmpHeader>() == 1);
    assert!(size_of::<QuotedPorts>() == 8 && align_of::<QuotedPorts>() == 1);
};
