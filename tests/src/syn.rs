//! SYNs from clients that do not exist, as fast as asked for.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::namespace::Namespace;

/// IPv4's header, TCP's, and the one option that every client sends.
const LENGTH: usize = 20 + 20 + 4;
const IPPROTO_RAW: i32 = 255;

/// After so many SYNs a flood looks whether it is too fast: fewer than the smallest queue on the way
/// takes, a virtual interface's with XDP.
const BURST: u32 = 50;

/// Sends the SYNs of those `numbers` from `namespace` to `server`, at most `rate` a second, each from
/// another address of 10.0.0.0/8, which must be nobody's.
///
/// # Errors
/// When the kernel refuses one.
pub fn flood(
    namespace: &Namespace,
    server: SocketAddrV4,
    numbers: Range<u32>,
    rate: u32,
) -> Result<()> {
    let socket = namespace
        .enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW))))?
        .context("open a raw socket")?;
    let destination = SockAddr::from(server);
    let mut due = Instant::now();
    for number in numbers {
        socket
            .send_to(&syn(number, server), &destination)
            .with_context(|| format!("send SYN {number}"))?;
        if number % BURST == 0 {
            // What it is late it does not make up for by going faster.
            due = Instant::now().max(due + Duration::from_secs(BURST.into()) / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}

/// The SYN of that `number`, to be completed by the kernel: identification and IPv4's checksum.
fn syn(number: u32, server: SocketAddrV4) -> [u8; LENGTH] {
    // Odd factors make a permutation of the numbers, so that no address comes twice.
    let mixed = number.wrapping_mul(0x009e_3779) & 0x00ff_ffff;
    let source = Ipv4Addr::from(0x0a00_0000 | mixed);
    let port = 1024 + (number % 64_000) as u16;
    let mut packet = [0; LENGTH];
    let (ip, tcp) = packet.split_at_mut(20);
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(LENGTH as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = 6;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&server.ip().octets());
    tcp[0..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&server.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&number.wrapping_mul(0x85eb_ca6b).to_be_bytes());
    tcp[12] = 6 << 4;
    tcp[13] = 0x02;
    tcp[14..16].copy_from_slice(&64_240u16.to_be_bytes());
    tcp[20..24].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    let pseudo = [&ip[12..20], &[0, 6, 0, (LENGTH - 20) as u8]].concat();
    let checksum = checksum(pseudo.iter().chain(tcp.iter()));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// RFC 1071, of an even number of bytes.
fn checksum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u16 {
    let mut sum = 0;
    for (position, byte) in bytes.enumerate() {
        sum += u32::from(*byte) << (8 * ((position + 1) % 2));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
