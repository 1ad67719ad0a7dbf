//! ICMP error messages of both families, about segments and datagrams.

use std::net::{IpAddr, SocketAddr};

use crate::{
    frame::{Family, IpFields, Mac, checksum, ethernet, ip, transport_checksum},
    segment::{Protocol, Segment},
};

/// What went wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Fragmentation needed, or packet too big: the next link carries so many bytes.
    TooBig(u16),
    PortUnreachable,
    HostUnreachable,
    TimeExceeded,
    BadParameter,
}

impl Problem {
    pub const ALL: [Self; 5] = [
        Self::TooBig(1_280),
        Self::PortUnreachable,
        Self::HostUnreachable,
        Self::TimeExceeded,
        Self::BadParameter,
    ];

    /// Type, code and what follows the checksum.
    fn header(self, family: Family) -> (u8, u8, [u8; 4]) {
        match (family, self) {
            (Family::V4, Self::TooBig(mtu)) => {
                let [high, low] = mtu.to_be_bytes();
                (3, 4, [0, 0, high, low])
            }
            (Family::V4, Self::PortUnreachable) => (3, 3, [0; 4]),
            (Family::V4, Self::HostUnreachable) => (3, 1, [0; 4]),
            (Family::V4, Self::TimeExceeded) => (11, 0, [0; 4]),
            (Family::V4, Self::BadParameter) => (12, 0, [8, 0, 0, 0]),
            (Family::V6, Self::TooBig(mtu)) => (2, 0, u32::from(mtu).to_be_bytes()),
            (Family::V6, Self::PortUnreachable) => (1, 4, [0; 4]),
            (Family::V6, Self::HostUnreachable) => (1, 3, [0; 4]),
            (Family::V6, Self::TimeExceeded) => (3, 0, [0; 4]),
            (Family::V6, Self::BadParameter) => (4, 0, [0, 0, 0, 6]),
        }
    }
}

/// A message to the sender of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub from_mac: Mac,
    pub to_mac: Mac,
    /// The host that reports the problem.
    pub source: IpAddr,
    pub problem: Problem,
    /// The packet, as it was met.
    pub about: Segment,
    /// How much of it is quoted, in bytes.
    pub quoted: usize,
    pub ip: IpFields,
}

impl Message {
    /// The message of the machine at `source`, which quotes all of `about`.
    pub fn new(source: IpAddr, problem: Problem, about: Segment) -> Self {
        Self {
            from_mac: [0; 6],
            to_mac: [0; 6],
            source,
            problem,
            about,
            quoted: usize::MAX,
            ip: IpFields::default(),
        }
    }

    pub fn macs(mut self, from: Mac, to: Mac) -> Self {
        (self.from_mac, self.to_mac) = (from, to);
        self
    }

    /// The same about a packet with other ends. The checksum of a TCP header stays: a quote may be too short
    /// for it.
    pub fn about(mut self, source: SocketAddr, destination: SocketAddr) -> Self {
        let about = &mut self.about;
        if about.protocol == Protocol::Tcp {
            about.checksum = Some(about.written_checksum());
        }
        (about.source, about.destination) = (source, destination);
        self
    }

    pub fn quotes(mut self, bytes: usize) -> Self {
        self.quoted = bytes;
        self
    }

    /// What every router quotes at least: the IP header and 8 bytes.
    pub fn quotes_the_least(self) -> Self {
        let least = self.about.family().header_bytes() + 8;
        self.quotes(least)
    }

    pub fn time_to_live(mut self, hops: u8) -> Self {
        self.ip.time_to_live = hops;
        self
    }

    pub fn frame(&self) -> Vec<u8> {
        let family = self.about.family();
        let destination = self.about.source.ip();
        let (kind, code, rest) = self.problem.header(family);
        let mut icmp = vec![kind, code, 0, 0];
        icmp.extend(rest);
        let packet = self.about.packet();
        icmp.extend(&packet[..packet.len().min(self.quoted)]);
        let checksum = match family {
            Family::V4 => checksum(&icmp),
            Family::V6 => transport_checksum(self.source, destination, family.icmp(), &icmp),
        };
        icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
        let packet = ip(self.source, destination, family.icmp(), &self.ip, &icmp);
        ethernet(self.to_mac, self.from_mac, family.ether_type(), &packet)
    }
}

impl From<&Message> for Vec<u8> {
    fn from(message: &Message) -> Self {
        message.frame()
    }
}
