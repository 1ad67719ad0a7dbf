//! A TCP/IPv4 frame as one view: is it ours to steer, under which tuple, and how it is rewritten.

use crate::{
    checksum::Difference,
    headers::{ETHERNET_LEN, ETHERTYPE_IPV4, EthernetHeader, Ipv4Header, PROTOCOL_TCP, TcpHeader},
    maps::FlowKey,
    verdict::Verdict,
};

/// Ethernet, IPv4 without options, and TCP: the first 54 bytes of every frame that is steered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFrame {
    pub ethernet: EthernetHeader,
    pub ip: Ipv4Header,
    pub tcp: TcpHeader,
}

/// Length of [`TcpFrame`], in bytes.
pub const TCP_FRAME_LEN: usize = size_of::<TcpFrame>();

/// How much of a frame there is.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Length of the whole frame, link header included, in bytes.
    pub bytes: u32,
    /// Whether it stands for several packets (GSO), so that IPv4's total length may not describe it.
    pub coalesced: bool,
}

impl TcpFrame {
    /// The tuple to steer the frame by, or why it is none of ours.
    #[inline(always)]
    pub fn tuple(&self, extent: Extent) -> Result<FlowKey, Verdict> {
        let Self { ethernet, ip, tcp } = self;
        if ethernet.ether_type() != ETHERTYPE_IPV4 {
            return Err(Verdict::NotIpv4);
        }
        if ip.version() != 4 || ip.header_words() < 5 {
            return Err(Verdict::Malformed);
        }
        if ip.protocol != PROTOCOL_TCP {
            return Err(Verdict::NotTcp);
        }
        if ip.header_words() != 5 {
            return Err(Verdict::IpOptions);
        }
        if ip.is_fragment() {
            return Err(Verdict::Fragment);
        }
        let present = extent.bytes - (ETHERNET_LEN as u32);
        let claimed = u32::from(ip.total_length());
        if !extent.coalesced && claimed > present {
            return Err(Verdict::Truncated);
        }
        let headers = 20 + 4 * u32::from(tcp.header_words());
        if tcp.header_words() < 5 || (!extent.coalesced && claimed < headers) {
            return Err(Verdict::Malformed);
        }
        if ethernet.to_group() {
            return Err(Verdict::NotForUs);
        }
        Ok(FlowKey {
            source: ip.source,
            destination: ip.destination,
            source_port: tcp.source_port,
            destination_port: tcp.destination_port,
            protocol: PROTOCOL_TCP.into(),
        })
    }

    /// Replaces the tuple and, when the frame is forwarded, takes one hop off its time to live. The
    /// IPv4 checksum is brought up to date; the TCP checksum is the caller's, by the returned
    /// differences, because only the kernel knows whether it is complete or half computed.
    #[inline(always)]
    pub fn rewrite(&mut self, leaves: &FlowKey, forwarded: bool) -> Rewritten {
        let Self { ip, tcp, .. } = self;
        let addresses = Difference::of_u32(ip.source, leaves.source)
            .plus(Difference::of_u32(ip.destination, leaves.destination));
        let ports = Difference::of_u16(tcp.source_port, leaves.source_port).plus(
            Difference::of_u16(tcp.destination_port, leaves.destination_port),
        );
        let mut header = addresses;
        if forwarded {
            let before = ip.time_to_live_word();
            ip.time_to_live -= 1;
            header = header.plus(Difference::of_u16(before, ip.time_to_live_word()));
        }
        ip.checksum = header.apply(ip.checksum);
        ip.source = leaves.source;
        ip.destination = leaves.destination;
        tcp.source_port = leaves.source_port;
        tcp.destination_port = leaves.destination_port;
        Rewritten { addresses, ports }
    }
}

/// What a rewrite changed, as far as the TCP checksum covers it.
#[derive(Clone, Copy, Debug)]
pub struct Rewritten {
    /// In the pseudo header.
    pub addresses: Difference,
    /// In the TCP header itself.
    pub ports: Difference,
}

impl Rewritten {
    /// Brings a complete TCP checksum up to date.
    #[inline(always)]
    pub fn apply(self, tcp: &mut TcpHeader) {
        tcp.checksum = self.addresses.plus(self.ports).apply(tcp.checksum);
    }
}

/// The verdict on a frame too short to be a [`TcpFrame`], from what headers it has.
#[inline(always)]
pub fn short_frame(ethernet: Option<&EthernetHeader>, ip: Option<&Ipv4Header>) -> Verdict {
    match (ethernet, ip) {
        (None, _) => Verdict::Truncated,
        (Some(ethernet), _) if ethernet.ether_type() != ETHERTYPE_IPV4 => Verdict::NotIpv4,
        (Some(_), Some(ip)) if ip.version() == 4 && ip.protocol != PROTOCOL_TCP => Verdict::NotTcp,
        _ => Verdict::Truncated,
    }
}

const _: () = assert!(TCP_FRAME_LEN == 54 && align_of::<TcpFrame>() == 1);
