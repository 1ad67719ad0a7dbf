//! The ICMP error for a packet that is too large for the next link. It goes back to the packet's link address, with
//! the packet's destination as its source.

use crate::{
    checksum::{Difference, sum},
    headers::{ETHERNET_LEN, Ipv4Header, Ipv6Header, PROTOCOL_ICMP, PROTOCOL_ICMPV6},
};

/// Quoted bytes after the IP header: ports and, for TCP, the sequence number (RFC 792).
const QUOTED: usize = 8;
const ICMP_LEN: usize = 8;
const HOPS: u8 = 64;

/// Bytes of an IPv4 frame that an error quotes, and the length of the error's frame.
pub const HEAD_V4_LEN: usize = ETHERNET_LEN + size_of::<Ipv4Header>() + QUOTED;
pub const ERROR_V4_LEN: usize = HEAD_V4_LEN + size_of::<Ipv4Header>() + ICMP_LEN;
/// The same for IPv6.
pub const HEAD_V6_LEN: usize = ETHERNET_LEN + size_of::<Ipv6Header>() + QUOTED;
pub const ERROR_V6_LEN: usize = HEAD_V6_LEN + size_of::<Ipv6Header>() + ICMP_LEN;

const IP: usize = ETHERNET_LEN;

/// Whether an IPv4 packet may be fragmented. Its sender then expects no error.
#[inline(always)]
pub fn may_be_fragmented(head: &[u8; HEAD_V4_LEN]) -> bool {
    const DO_NOT_FRAGMENT: u8 = 0x40;
    head[IP + 6] & DO_NOT_FRAGMENT == 0
}

/// Writes the frame of "fragmentation needed" (RFC 1191).
#[inline(always)]
pub fn icmp_error_v4(frame: &mut [u8; ERROR_V4_LEN], head: &[u8; HEAD_V4_LEN], mtu: u16) {
    const ICMP: usize = IP + size_of::<Ipv4Header>();
    const QUOTE: usize = ICMP + ICMP_LEN;
    const LENGTH: [u8; 2] = ((ERROR_V4_LEN - IP) as u16).to_be_bytes();
    frame[..6].copy_from_slice(&head[6..12]);
    frame[6..12].copy_from_slice(&head[..6]);
    frame[12..IP].copy_from_slice(&head[12..IP]);
    frame[IP..ICMP].fill(0);
    frame[IP] = 0x45;
    frame[IP + 2..IP + 4].copy_from_slice(&LENGTH);
    frame[IP + 8] = HOPS;
    frame[IP + 9] = PROTOCOL_ICMP;
    frame[IP + 12..IP + 16].copy_from_slice(&head[IP + 16..IP + 20]);
    frame[IP + 16..IP + 20].copy_from_slice(&head[IP + 12..IP + 16]);
    let checksum = sum(&frame[IP..ICMP]).apply([0xff; 2]);
    frame[IP + 10..IP + 12].copy_from_slice(&checksum);
    // Destination unreachable, fragmentation needed.
    frame[ICMP..QUOTE].fill(0);
    frame[ICMP] = 3;
    frame[ICMP + 1] = 4;
    frame[ICMP + 6..QUOTE].copy_from_slice(&mtu.to_be_bytes());
    frame[QUOTE..].copy_from_slice(&head[IP..]);
    let checksum = sum(&frame[ICMP..]).apply([0xff; 2]);
    frame[ICMP + 2..ICMP + 4].copy_from_slice(&checksum);
}

/// Writes the frame of "packet too big" (RFC 4443, section 3.2).
#[inline(always)]
pub fn icmp_error_v6(frame: &mut [u8; ERROR_V6_LEN], head: &[u8; HEAD_V6_LEN], mtu: u32) {
    const ICMP: usize = IP + size_of::<Ipv6Header>();
    const QUOTE: usize = ICMP + ICMP_LEN;
    const LENGTH: [u8; 2] = ((ERROR_V6_LEN - ICMP) as u16).to_be_bytes();
    frame[..6].copy_from_slice(&head[6..12]);
    frame[6..12].copy_from_slice(&head[..6]);
    frame[12..IP].copy_from_slice(&head[12..IP]);
    frame[IP..IP + 4].copy_from_slice(&[0x60, 0, 0, 0]);
    frame[IP + 4..IP + 6].copy_from_slice(&LENGTH);
    frame[IP + 6] = PROTOCOL_ICMPV6;
    frame[IP + 7] = HOPS;
    frame[IP + 8..IP + 24].copy_from_slice(&head[IP + 24..IP + 40]);
    frame[IP + 24..IP + 40].copy_from_slice(&head[IP + 8..IP + 24]);
    frame[ICMP..ICMP + 4].copy_from_slice(&[2, 0, 0, 0]);
    frame[ICMP + 4..QUOTE].copy_from_slice(&mtu.to_be_bytes());
    frame[QUOTE..].copy_from_slice(&head[IP..]);
    // The pseudo header (RFC 8200, section 8.1): addresses, length, next header.
    let pseudo =
        Difference::of_u16([0; 2], LENGTH).plus(Difference::of_u16([0; 2], [0, PROTOCOL_ICMPV6]));
    let covered = sum(&frame[IP + 8..]).plus(pseudo);
    frame[ICMP + 2..ICMP + 4].copy_from_slice(&covered.apply([0xff; 2]));
}
