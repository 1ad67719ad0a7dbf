//! TCP segments and UDP datagrams of both families, field by field.

use std::net::{IpAddr, SocketAddr};

use crate::frame::{
    CUSTOMER_TAG, FRAGMENT, Family, IpFields, Mac, TCP, UDP, at, ethernet, ip, length, tagged,
    transport_checksum, with, with_ip_field, words,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }

    /// Where in its header the checksum is, in bytes.
    fn checksum(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// A TCP segment or UDP datagram in an IP packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from_mac: Mac,
    pub to_mac: Mac,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: Protocol,
    pub ip: IpFields,
    /// Of TCP, as are the numbers and options.
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
    /// What stands in place of the right checksum.
    pub checksum: Option<u16>,
}

impl Segment {
    pub fn new(protocol: Protocol, source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        Self {
            from_mac: [0; 6],
            to_mac: [0; 6],
            source,
            destination,
            protocol,
            ip: IpFields::default(),
            flags,
            sequence: 0,
            acknowledgement: 0,
            tcp_options: Vec::new(),
            payload: Vec::new(),
            checksum: None,
        }
    }

    pub fn macs(mut self, from: Mac, to: Mac) -> Self {
        (self.from_mac, self.to_mac) = (from, to);
        self
    }

    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        (self.sequence, self.acknowledgement) = (sequence, acknowledgement);
        self
    }

    pub fn time_to_live(mut self, hops: u8) -> Self {
        self.ip.time_to_live = hops;
        self
    }

    pub fn traffic_class(mut self, class: u8) -> Self {
        self.ip.traffic_class = class;
        self
    }

    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self
    }

    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip.options = options.to_vec();
        self
    }

    pub fn extensions(mut self, extensions: &[(u8, usize)]) -> Self {
        self.ip.extensions = extensions.to_vec();
        self
    }

    pub fn checksum(mut self, checksum: u16) -> Self {
        self.checksum = Some(checksum);
        self
    }

    pub fn to(mut self, destination: SocketAddr) -> Self {
        self.destination = destination;
        self
    }

    /// The same addresses and ports, but in a UDP datagram.
    pub fn in_udp(mut self) -> Self {
        self.protocol = Protocol::Udp;
        self
    }

    pub fn family(&self) -> Family {
        Family::of(self.source.ip())
    }

    /// The segment as bytes, every checksum complete.
    pub fn frame(&self) -> Vec<u8> {
        self.in_frame(&self.packet())
    }

    /// The same from the IP header on.
    pub fn packet(&self) -> Vec<u8> {
        self.around(self.protocol.number(), &self.transport())
    }

    /// Where the transport header is in the frame.
    pub fn transport_offset(&self) -> usize {
        self.frame().len() - self.transport().len()
    }

    /// What stands in the checksum's place.
    pub fn written_checksum(&self) -> u16 {
        let transport = self.transport();
        let at = self.protocol.checksum();
        u16::from_be_bytes([transport[at], transport[at + 1]])
    }

    fn transport(&self) -> Vec<u8> {
        let mut transport = match self.protocol {
            Protocol::Tcp => self.tcp(),
            Protocol::Udp => self.udp(),
        };
        let checksum = self.checksum.unwrap_or_else(|| {
            let [from, to] = self.addresses();
            let right = transport_checksum(from, to, self.protocol.number(), &transport);
            // 0 says that there is none (RFC 768).
            if self.protocol == Protocol::Udp && right == 0 {
                0xffff
            } else {
                right
            }
        });
        let at = self.protocol.checksum();
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        transport
    }

    fn tcp(&self) -> Vec<u8> {
        let mut tcp = self.ports();
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        let words = 5 + words(&self.tcp_options);
        tcp.extend([words << 4, self.flags, 0x72, 0x10, 0, 0, 0, 0]);
        tcp.extend(&self.tcp_options);
        tcp.extend(&self.payload);
        tcp
    }

    fn udp(&self) -> Vec<u8> {
        let mut udp = self.ports();
        udp.extend(length(8 + self.payload.len()));
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        udp
    }

    fn ports(&self) -> Vec<u8> {
        let ports = [self.source.port(), self.destination.port()];
        ports.map(u16::to_be_bytes).concat()
    }

    fn addresses(&self) -> [IpAddr; 2] {
        [self.source.ip(), self.destination.ip()]
    }

    fn around(&self, protocol: u8, body: &[u8]) -> Vec<u8> {
        let [from, to] = self.addresses();
        ip(from, to, protocol, &self.ip, body)
    }

    fn in_frame(&self, packet: &[u8]) -> Vec<u8> {
        let ether_type = self.family().ether_type();
        ethernet(self.to_mac, self.from_mac, ether_type, packet)
    }

    /// A packet of another protocol between the same addresses.
    pub fn as_protocol(&self, protocol: u8) -> Vec<u8> {
        self.in_frame(&self.around(protocol, &self.transport()))
    }

    /// An ICMP message of this type between the same addresses, a ping for example.
    pub fn as_icmp(&self, kind: u8) -> Vec<u8> {
        let protocol = self.family().icmp();
        let mut icmp = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
        icmp.extend(&self.payload);
        let [from, to] = self.addresses();
        let checksum = match self.family() {
            Family::V4 => crate::frame::checksum(&icmp),
            Family::V6 => transport_checksum(from, to, protocol, &icmp),
        };
        icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
        self.in_frame(&self.around(protocol, &icmp))
    }

    /// A ping between the same addresses.
    pub fn as_ping(&self) -> Vec<u8> {
        self.as_icmp(match self.family() {
            Family::V4 => 8,
            Family::V6 => 128,
        })
    }

    /// The same in IPv6, its IPv4 addresses as IPv4-mapped ones.
    pub fn as_mapped(&self) -> Vec<u8> {
        let mapped = |end: SocketAddr| match end.ip() {
            IpAddr::V4(address) => SocketAddr::new(address.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        let mut segment = self.clone();
        segment.source = mapped(self.source);
        segment.destination = mapped(self.destination);
        segment.frame()
    }

    /// The same frame with an IEEE 802.1Q tag.
    pub fn as_vlan(&self, id: u16) -> Vec<u8> {
        tagged(self.frame(), CUSTOMER_TAG, id)
    }

    /// One fragment of the packet that carries this segment, from `offset` bytes on.
    pub fn as_fragment(&self, offset: u16, more: bool) -> Vec<u8> {
        match self.family() {
            Family::V4 => {
                let field = (offset / 8) | (u16::from(more) << 13);
                with_ip_field(self.frame(), at::FRAGMENT, &field.to_be_bytes())
            }
            Family::V6 => {
                let frame = self.clone().extensions(&[(FRAGMENT, 8)]).frame();
                let field = offset | u16::from(more);
                with(frame, at::EXTENSIONS + 2, &field.to_be_bytes())
            }
        }
    }
}

impl From<&Segment> for Vec<u8> {
    fn from(segment: &Segment) -> Self {
        segment.frame()
    }
}
