//! Segments and datagrams from forged clients, at a given rate.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::namespace::Namespace;

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

const IPPROTO_RAW: i32 = 255;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
/// A maximum segment size of 1460: the one option that every client sends.
const MSS: [u8; 4] = [2, 4, 0x05, 0xb4];

/// The SYNs of a flood between two checks of its rate: fewer than the smallest queue on the path, a virtual interface's
/// with XDP.
const BURST: u32 = 50;

/// Limits a flood to its rate by a pause after each burst.
struct Pace {
    burst: u32,
    rate: u32,
    due: Instant,
}

impl Pace {
    fn new(burst: u32, rate: u32) -> Self {
        let due = Instant::now();
        Self { burst, rate, due }
    }

    /// Waits if the packet with that number ends a burst. A late burst makes the next ones no faster.
    fn delay(&mut self, number: u32) {
        if number.is_multiple_of(self.burst) {
            let next = self.due + Duration::from_secs(self.burst.into()) / self.rate;
            self.due = Instant::now().max(next);
            thread::sleep(self.due.saturating_duration_since(Instant::now()));
        }
    }
}

/// So many sources later an exchange of [`forge_exchanges`] goes on.
pub const ANSWER_AFTER: u32 = 200;

/// Sends a SYN for each of `numbers` from `namespace` to `server`, at most `rate` a second, each from a different
/// address of
/// 10.0.0.0/8, which must be unused.
///
/// # Errors
/// When the kernel refuses one.
pub fn flood(
    namespace: &Namespace,
    server: SocketAddrV4,
    numbers: Range<u32>,
    rate: u32,
) -> Result<()> {
    flood_from(namespace, server, numbers, rate, anywhere)
}

/// The same, from the address and port that `source` names for each number.
///
/// # Errors
/// When the kernel refuses one.
pub fn flood_from(
    namespace: &Namespace,
    server: SocketAddrV4,
    numbers: Range<u32>,
    rate: u32,
    source: impl Fn(u32) -> SocketAddrV4,
) -> Result<()> {
    let socket = namespace.enter(raw_socket)??;
    let destination = SockAddr::from(server);
    let mut pace = Pace::new(BURST, rate);
    for number in numbers {
        let syn = Segment {
            source: source(number),
            destination: server,
            sequence: number.wrapping_mul(0x85eb_ca6b),
            acknowledged: 0,
            flags: SYN,
            data: &[],
        };
        socket
            .send_to(&syn.packet(), &destination)
            .with_context(|| format!("send SYN {number}"))?;
        pace.delay(number);
    }
    Ok(())
}

/// Sends the client's packets of forged connections to `server`, one for each of `numbers`, at most `rate` connections
/// a second: a SYN, an acknowledgement, and another one with a higher number.
///
/// # Errors
/// When the kernel refuses a packet.
pub fn forge_connections(
    namespace: &Namespace,
    server: SocketAddrV4,
    numbers: Range<u32>,
    rate: u32,
) -> Result<()> {
    let socket = namespace.enter(raw_socket)??;
    let destination = SockAddr::from(server);
    let mut pace = Pace::new(BURST / 3, rate);
    for number in numbers {
        let start = number.wrapping_mul(0x85eb_ca6b);
        for (flags, offset, acknowledged) in [(SYN, 0, 0), (ACK, 1, 1), (ACK, 1, 101)] {
            let segment = Segment {
                source: anywhere(number),
                destination: server,
                sequence: start.wrapping_add(offset),
                acknowledged,
                flags,
                data: &[],
            };
            socket
                .send_to(&segment.packet(), &destination)
                .with_context(|| format!("send packets of connection {number}"))?;
        }
        pace.delay(number);
    }
    Ok(())
}

/// Sends two datagrams to `server` from each of `numbers` sources, at most `rate` sources a second. The second one
/// follows [`ANSWER_AFTER`] sources later, when the first one has been answered.
///
/// # Errors
/// When the kernel refuses a packet.
pub fn forge_exchanges(
    namespace: &Namespace,
    server: SocketAddrV4,
    numbers: Range<u32>,
    rate: u32,
) -> Result<()> {
    let socket = namespace.enter(raw_socket)??;
    let destination = SockAddr::from(server);
    let mut pace = Pace::new(BURST, rate);
    for number in numbers.start..numbers.end + ANSWER_AFTER {
        let sources = [Some(number), number.checked_sub(ANSWER_AFTER)];
        for number in sources.into_iter().flatten() {
            if numbers.contains(&number) {
                socket
                    .send_to(&datagram(anywhere(number), server, b"?"), &destination)
                    .with_context(|| format!("send a datagram of source {number}"))?;
            }
        }
        pace.delay(number);
    }
    Ok(())
}

/// A packet with a datagram without a UDP checksum.
fn datagram(source: SocketAddrV4, destination: SocketAddrV4, data: &[u8]) -> Vec<u8> {
    let length = (UDP_HEADER + data.len()) as u16;
    let mut packet = ip_header(source, destination, IPPROTO_UDP, length);
    packet.extend(source.port().to_be_bytes());
    packet.extend(destination.port().to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0; 2]);
    packet.extend(data);
    packet
}

/// An IPv4 header. The kernel adds identification and checksum.
fn ip_header(
    source: SocketAddrV4,
    destination: SocketAddrV4,
    protocol: u8,
    payload: u16,
) -> Vec<u8> {
    let mut header = vec![0; IP_HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(IP_HEADER as u16 + payload).to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.ip().octets());
    header[16..20].copy_from_slice(&destination.ip().octets());
    header
}

/// Another address of 10.0.0.0/8 for each number.
pub fn anywhere(number: u32) -> SocketAddrV4 {
    // An odd factor makes a permutation of the numbers, so that no address is used twice.
    let mixed = number.wrapping_mul(0x009e_3779) & 0x00ff_ffff;
    let port = 1024 + (number % 64_000) as u16;
    SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 | mixed), port)
}

/// Opens a socket for whole packets in the namespace of this thread.
///
/// # Errors
/// When this process lacks the privileges.
pub fn raw_socket() -> Result<Socket> {
    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW)))
        .context("open a raw socket")
}

/// A TCP segment over IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub data: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Returns its packet, to be completed by the kernel like `ip_header`.
    pub fn packet(&self) -> Vec<u8> {
        let options: &[u8] = if self.flags & SYN != 0 { &MSS } else { &[] };
        let (ip, tcp) = (self.source.ip().octets(), self.destination.ip().octets());
        let segment_length = (TCP_HEADER + options.len() + self.data.len()) as u16;
        let mut packet = ip_header(self.source, self.destination, IPPROTO_TCP, segment_length);
        packet.extend(self.source.port().to_be_bytes());
        packet.extend(self.destination.port().to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledged.to_be_bytes());
        packet.extend([(((TCP_HEADER + options.len()) / 4) << 4) as u8, self.flags]);
        packet.extend(64_240_u16.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(options);
        packet.extend(self.data);
        let pseudo = [
            &ip[..],
            &tcp,
            &[0, IPPROTO_TCP],
            &segment_length.to_be_bytes(),
        ]
        .concat();
        let checksum = checksum(pseudo.iter().chain(&packet[IP_HEADER..]));
        packet[IP_HEADER + 16..IP_HEADER + 18].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// Reads a packet from its IPv4 header on; `None` where it is no complete TCP segment.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes(array(packet, 2)?));
        if packet[0] >> 4 != 4 || *packet.get(9)? != IPPROTO_TCP {
            return None;
        }
        let tcp = packet.get(header..length)?;
        let address = |ip, port| {
            let port = u16::from_be_bytes(array(tcp, port)?);
            Some(SocketAddrV4::new(array::<4>(packet, ip)?.into(), port))
        };
        let data = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            source: address(12, 0)?,
            destination: address(16, 2)?,
            sequence: u32::from_be_bytes(array(tcp, 4)?),
            acknowledged: u32::from_be_bytes(array(tcp, 8)?),
            flags: *tcp.get(13)?,
            data: tcp.get(data..)?,
        })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// RFC 1071.
fn checksum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u16 {
    let mut sum = 0;
    for (position, byte) in bytes.enumerate() {
        sum += u32::from(*byte) << (8 * ((position + 1) % 2));
        if sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::{ACK, PSH, SYN, Segment, checksum};

    #[test]
    fn reads_the_packets_it_makes() {
        let address = |last, port| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), port);
        for (flags, data) in [(SYN, &b""[..]), (PSH | ACK, b"odd")] {
            let segment = Segment {
                source: address(1, 1025),
                destination: address(2, 80),
                sequence: 0x0102_0304,
                acknowledged: 0xa0b0_c0d0,
                flags,
                data,
            };
            let packet = segment.packet();
            assert_eq!(Segment::parse(&packet), Some(segment));
            let length = (packet.len() - 20) as u8;
            let pseudo = [&packet[12..20], &[0, 6, 0, length]].concat();
            assert_eq!(checksum(pseudo.iter().chain(&packet[20..])), 0);
        }
    }
}
