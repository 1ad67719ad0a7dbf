//! The packet trace: filter, and parsing of a frame's first bytes.

use crate::{
    address::{Address, V6},
    headers::{
        ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP,
        PROTOCOL_UDP,
    },
    maps::{NO_ID, TraceConfig, TraceEvent},
    packet::SYN_LEN,
    verdict::Verdict,
};

/// Bytes of a frame that are copied: at least the longest IPv4 header, and a TCP header up to its flags.
pub const HEAD: usize = SYN_LEN;

impl TraceConfig {
    /// Whether the filter matches a packet.
    #[inline(always)]
    pub fn matches(&self, event: &TraceEvent) -> bool {
        self.verdicts & 1 << (event.verdict & 63) != 0
            && (self.service == NO_ID || self.service == event.service)
            && self.matches_backend(event.backend)
            && self.matches_client(event)
    }

    #[inline(always)]
    fn matches_backend(&self, backend: u32) -> bool {
        if self.backend_count == 0 {
            return true;
        }
        let mut named = false;
        for (index, id) in self.backends.iter().enumerate() {
            named |= (index as u32) < self.backend_count && *id == backend;
        }
        named
    }

    /// In a packet that memlb passed, either end may be the client.
    #[inline(always)]
    fn matches_client(&self, event: &TraceEvent) -> bool {
        let TraceEvent {
            original,
            translated,
            ..
        } = event;
        let inward =
            event.verdict == Verdict::ToBackend as u8 || event.verdict == Verdict::ToManager as u8;
        let outward =
            event.verdict == Verdict::ToClient as u8 || event.verdict == Verdict::FromManager as u8;
        if outward {
            return self.is_client(&translated.destination, translated.destination_port);
        }
        self.is_client(&original.source, original.source_port)
            || !inward && self.is_client(&original.destination, original.destination_port)
    }

    #[inline(always)]
    fn is_client(&self, address: &V6, port: [u8; 2]) -> bool {
        let bits = |address: &V6| u128::from_ne_bytes(*address);
        (bits(address) ^ bits(&self.client)) & bits(&self.client_mask) == 0
            && (self.client_port == [0; 2] || self.client_port == port)
    }
}

impl TraceEvent {
    /// Fills fields that are still empty from the first `length` bytes of the frame.
    #[inline(always)]
    pub fn parse_headers(&mut self, head: &[u8; HEAD], length: usize) {
        const IP: usize = ETHERNET_LEN;
        self.ether_type = u16::from_be_bytes([head[12], head[13]]);
        let (protocol, transport, begins) = match self.ether_type {
            ETHERTYPE_IPV4 if length >= IP + 20 => {
                let headers = (head[IP] & 0x0f) as usize * 4;
                let fragment = u16::from_be_bytes([head[IP + 6], head[IP + 7]]);
                (
                    head[IP + 9],
                    IP + headers,
                    headers >= 20 && fragment & 0x1fff == 0,
                )
            }
            ETHERTYPE_IPV6 if length >= IP + 40 => (head[IP + 6], IP + 40, true),
            _ => return,
        };
        if self.original.protocol == 0 {
            self.original.protocol = protocol.into();
            if self.ether_type == ETHERTYPE_IPV4 {
                self.original.source = mapped(head, IP + 12);
                self.original.destination = mapped(head, IP + 16);
            } else {
                self.original.source = whole(head, IP + 8);
                self.original.destination = whole(head, IP + 24);
            }
        }
        if self.protocol != 0 {
            return;
        }
        self.protocol = protocol;
        if !begins || length < transport + 4 {
            return;
        }
        match protocol {
            PROTOCOL_TCP | PROTOCOL_UDP => {
                self.original.source_port = [head[transport], head[transport + 1]];
                self.original.destination_port = [head[transport + 2], head[transport + 3]];
                if protocol == PROTOCOL_TCP && length >= transport + 14 {
                    self.kind = head[transport + 13];
                }
            }
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
                self.kind = head[transport];
                self.code = head[transport + 1];
            }
            _ => {}
        }
    }
}

/// The IPv4 address at `offset`, mapped.
#[inline(always)]
fn mapped(head: &[u8; HEAD], offset: usize) -> V6 {
    [
        head[offset],
        head[offset + 1],
        head[offset + 2],
        head[offset + 3],
    ]
    .mapped()
}

/// The IPv6 address at `offset`.
#[inline(always)]
fn whole(head: &[u8; HEAD], offset: usize) -> V6 {
    let mut address = [0; 16];
    let mut at = 0;
    while at < 16 {
        address[at] = head[offset + at];
        at += 1;
    }
    address
}
