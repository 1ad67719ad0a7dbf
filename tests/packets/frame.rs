//! Frames as bytes: a builder that knows every field, and the checksum oracle.
//!
//! Checksums are computed in full (RFC 1071), by nothing that the programs under test use. So a
//! frame built for comparison proves the checksums of the frame that it is compared with.

use std::net::{Ipv4Addr, SocketAddrV4};

pub type Mac = [u8; 6];

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// Where the fields of a frame without IPv4 options lie.
pub mod at {
    pub const DESTINATION_MAC: usize = 0;
    pub const ETHER_TYPE: usize = 12;
    pub const VERSION_AND_LENGTH: usize = 14;
    pub const TOTAL_LENGTH: usize = 16;
    pub const FRAGMENT: usize = 20;
    pub const PROTOCOL: usize = 23;
    pub const DATA_OFFSET: usize = 46;
    pub const PAYLOAD: usize = 54;
}

const TCP: u8 = 6;

/// A TCP segment in an IPv4 packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from_mac: Mac,
    pub to_mac: Mac,
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub time_to_live: u8,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub ip_options: Vec<u8>,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Segment {
    pub fn new(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Self {
        Self {
            from_mac: [0; 6],
            to_mac: [0; 6],
            source,
            destination,
            time_to_live: 64,
            flags,
            sequence: 0,
            acknowledgement: 0,
            ip_options: Vec::new(),
            tcp_options: Vec::new(),
            payload: Vec::new(),
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
        self.time_to_live = hops;
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
        self.ip_options = options.to_vec();
        self
    }

    pub fn to(mut self, destination: SocketAddrV4) -> Self {
        self.destination = destination;
        self
    }

    /// The segment as bytes, every checksum complete.
    pub fn frame(&self) -> Vec<u8> {
        let tcp = self.tcp();
        ethernet(self.to_mac, self.from_mac, 0x0800, &self.ip(TCP, &tcp))
    }

    fn tcp(&self) -> Vec<u8> {
        let words = 5 + words(&self.tcp_options);
        let mut tcp = Vec::new();
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([words << 4, self.flags, 0x72, 0x10, 0, 0, 0, 0]);
        tcp.extend(&self.tcp_options);
        tcp.extend(&self.payload);
        let checksum = self.transport_checksum(TCP, &tcp);
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        tcp
    }

    fn ip(&self, protocol: u8, body: &[u8]) -> Vec<u8> {
        let header_bytes = 20 + self.ip_options.len();
        let total = u16::try_from(header_bytes + body.len()).expect("fits IPv4");
        let mut ip = vec![0x45 + words(&self.ip_options), 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0x1d, 0x0f, 0x40, 0, self.time_to_live, protocol, 0, 0]);
        ip.extend(self.source.ip().octets());
        ip.extend(self.destination.ip().octets());
        ip.extend(&self.ip_options);
        let checksum = checksum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip.extend(body);
        ip
    }

    fn transport_checksum(&self, protocol: u8, body: &[u8]) -> u16 {
        let length = u16::try_from(body.len()).expect("fits IPv4");
        let mut covered = Vec::new();
        covered.extend(self.source.ip().octets());
        covered.extend(self.destination.ip().octets());
        covered.extend([0, protocol]);
        covered.extend(length.to_be_bytes());
        covered.extend(body);
        checksum(&covered)
    }

    /// The same addresses and ports, but in a UDP datagram.
    pub fn as_udp(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.payload.len()).expect("fits IPv4");
        let mut udp = Vec::new();
        udp.extend(self.source.port().to_be_bytes());
        udp.extend(self.destination.port().to_be_bytes());
        udp.extend(length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        let checksum = self.transport_checksum(17, &udp);
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        ethernet(self.to_mac, self.from_mac, 0x0800, &self.ip(17, &udp))
    }

    /// A ping between the same addresses.
    pub fn as_icmp_echo(&self) -> Vec<u8> {
        let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        icmp.extend(&self.payload);
        let checksum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
        ethernet(self.to_mac, self.from_mac, 0x0800, &self.ip(1, &icmp))
    }

    /// The same ports, but between IPv6 addresses.
    pub fn as_ipv6(&self) -> Vec<u8> {
        let tcp = self.tcp();
        let length = u16::try_from(tcp.len()).expect("fits IPv6");
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([TCP, 64]);
        ip.extend(self.source.ip().to_ipv6_mapped().octets());
        ip.extend(self.destination.ip().to_ipv6_mapped().octets());
        ip.extend(&tcp);
        ethernet(self.to_mac, self.from_mac, 0x86dd, &ip)
    }

    /// The same frame with an IEEE 802.1Q tag.
    pub fn as_vlan(&self, id: u16) -> Vec<u8> {
        let mut frame = self.frame();
        let tag = [[0x81, 0x00], id.to_be_bytes()].concat();
        frame.splice(at::ETHER_TYPE..at::ETHER_TYPE, tag);
        frame
    }

    /// One fragment of the packet that carries this segment, from `offset` bytes on.
    pub fn as_fragment(&self, offset: u16, more: bool) -> Vec<u8> {
        let field = (offset / 8) | (u16::from(more) << 13);
        with_ip_field(self.frame(), at::FRAGMENT, &field.to_be_bytes())
    }
}

/// Who has `target`? asked by `asker`.
pub fn arp_request(from_mac: Mac, asker: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(from_mac);
    arp.extend(asker.octets());
    arp.extend([0; 6]);
    arp.extend(target.octets());
    ethernet([0xff; 6], from_mac, 0x0806, &arp)
}

pub fn ethernet(to: Mac, from: Mac, ether_type: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(from);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(body);
    frame
}

/// `frame` with other bytes at `offset`.
pub fn with(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// `frame` with other bytes in its IPv4 header, whose checksum is made right again.
pub fn with_ip_field(frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let frame = with(with(frame, offset, bytes), 24, &[0, 0]);
    let length = 4 * usize::from(frame[14] & 0x0f);
    let checksum = checksum(&frame[14..14 + length]);
    with(frame, 24, &checksum.to_be_bytes())
}

/// The Internet checksum, in full: RFC 1071, section 1.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += (u32::from(pair[0]) << 8) | u32::from(low);
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn words(options: &[u8]) -> u8 {
    assert!(
        options.len().is_multiple_of(4),
        "options are padded by the caller"
    );
    u8::try_from(options.len() / 4).expect("options fit the header")
}
