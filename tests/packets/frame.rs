//! Frames as bytes, and the checksum oracle.
//!
//! Checksums are computed in full (RFC 1071), independently of the programs under test. So a
//! frame built for comparison proves the checksums of the frame that it is compared with.

use std::net::{IpAddr, Ipv4Addr};

pub type Mac = [u8; 6];

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// EtherTypes.
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const CUSTOMER_TAG: u16 = 0x8100;
pub const SERVICE_TAG: u16 = 0x88a8;

/// Protocol numbers, IPv6's extension headers among them.
pub const HOP_BY_HOP: u8 = 0;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const ICMPV6: u8 = 58;
pub const DESTINATION_OPTIONS: u8 = 60;

/// Where the fields of a frame lie.
pub mod at {
    pub const DESTINATION_MAC: usize = 0;
    pub const ETHER_TYPE: usize = 12;
    pub const IP: usize = 14;

    /// Of IPv4, without options.
    pub const VERSION_AND_LENGTH: usize = 14;
    pub const TOTAL_LENGTH: usize = 16;
    pub const FRAGMENT: usize = 20;
    pub const PROTOCOL: usize = 23;

    /// Of IPv6.
    pub const VERSION: usize = 14;
    pub const PAYLOAD_LENGTH: usize = 18;
    pub const NEXT_HEADER: usize = 20;
    pub const EXTENSIONS: usize = 54;
}

/// Which family of addresses, and with it which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    pub fn ether_type(self) -> u16 {
        match self {
            Self::V4 => IPV4,
            Self::V6 => IPV6,
        }
    }

    /// The protocol number of its ICMP.
    pub fn icmp(self) -> u8 {
        match self {
            Self::V4 => ICMP,
            Self::V6 => ICMPV6,
        }
    }

    /// Length of its plain header, in bytes.
    pub fn header_bytes(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Where the transport header of a plain packet is in its frame.
    pub fn transport(self) -> usize {
        at::IP + self.header_bytes()
    }
}

/// What an IP header says beside the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpFields {
    pub time_to_live: u8,
    /// Type of service, or traffic class.
    pub traffic_class: u8,
    /// Of IPv4.
    pub options: Vec<u8>,
    /// Of IPv6: kinds and lengths in bytes.
    pub extensions: Vec<(u8, usize)>,
}

impl Default for IpFields {
    fn default() -> Self {
        Self {
            time_to_live: 64,
            traffic_class: 0,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }
}

/// An IP packet around `body`.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, fields: &IpFields, body: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = length(20 + fields.options.len() + body.len());
            let mut ip = vec![0x45 + words(&fields.options), fields.traffic_class];
            ip.extend(total);
            ip.extend([0x1d, 0x0f, 0x40, 0, fields.time_to_live, protocol, 0, 0]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            ip.extend(&fields.options);
            let checksum = checksum(&ip);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            ip.extend(body);
            ip
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (first, extensions) = extensions(&fields.extensions, protocol);
            let class = fields.traffic_class;
            let mut ip = vec![0x60 | class >> 4, class << 4 | 0x05, 0xca, 0xfe];
            ip.extend(length(extensions.len() + body.len()));
            ip.extend([first, fields.time_to_live]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            ip.extend(extensions);
            ip.extend(body);
            ip
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// A chain of extension headers before `protocol`, and the number of its first one.
fn extensions(kinds: &[(u8, usize)], protocol: u8) -> (u8, Vec<u8>) {
    let mut first = protocol;
    let mut chain = Vec::new();
    for (kind, bytes) in kinds.iter().rev() {
        let mut header = vec![0; *bytes];
        header[0] = first;
        if *kind != FRAGMENT {
            header[1] = u8::try_from(bytes / 8 - 1).expect("fits an extension header");
        }
        chain = [header, chain].concat();
        first = *kind;
    }
    (first, chain)
}

/// The checksum of a transport header and its data, over the pseudo header too.
pub fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> u16 {
    let mut covered = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => covered.extend(address.octets()),
            IpAddr::V6(address) => covered.extend(address.octets()),
        }
    }
    covered.extend([0, protocol]);
    covered.extend(length(body.len()));
    covered.extend(body);
    checksum(&covered)
}

/// Who has `target`? asked by `sender`.
pub fn arp_request(from_mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(from_mac);
    arp.extend(sender.octets());
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

/// `frame` with an outermost tag of this kind and VLAN.
pub fn tagged(mut frame: Vec<u8>, kind: u16, id: u16) -> Vec<u8> {
    let tag = [kind.to_be_bytes(), id.to_be_bytes()].concat();
    frame.splice(at::ETHER_TYPE..at::ETHER_TYPE, tag);
    frame
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

pub fn length(bytes: usize) -> [u8; 2] {
    let bytes = u16::try_from(bytes).expect("fits one packet");
    bytes.to_be_bytes()
}

pub fn words(options: &[u8]) -> u8 {
    assert!(
        options.len().is_multiple_of(4),
        "options are padded by the caller"
    );
    u8::try_from(options.len() / 4).expect("options fit the header")
}
