//! Socket buffers: location of headers, and checksums, which only the kernel's helpers know to be partial or
//! complete.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_csum_update, bpf_l4_csum_replace},
    programs::TcContext,
};
use lb_common::{
    checksum::Difference,
    headers::{ETHERNET_LEN, IcmpHeader, Ipv6Header, TcpHeader},
    packet::{
        Extent, FrameBytes, IcmpError, IpAddress, IpHeader, Located, MAX_EXTENSION_BYTES,
        Rewritten, Transport,
    },
    verdict::Verdict,
};

use crate::packet_bytes::PacketBytes;

/// `pkt_type` of a frame that is addressed to this host.
pub const PACKET_HOST: u32 = 0;

/// Most bytes of headers of a steered packet: extension headers, an ICMP header and the quoted packet.
const MAX_HEADERS: usize = ETHERNET_LEN
    + size_of::<Ipv6Header>()
    + MAX_EXTENSION_BYTES
    + size_of::<IcmpHeader>()
    + size_of::<Ipv6Header>()
    + size_of::<TcpHeader>();

#[inline(always)]
pub fn packet_bytes(skb: *mut __sk_buff) -> PacketBytes {
    let ctx = TcContext::new(skb);
    // SAFETY: the context names the packet's bounds. The programs use no view after a helper has changed the
    // packet, which the verifier checks, and view each header once at a time.
    unsafe { PacketBytes::new(ctx.data(), ctx.data_end()) }
}

/// Finds the transport header, and pulls all headers into the linear part on the way.
#[inline(always)]
pub fn locate<A: IpAddress>(skb: *mut __sk_buff, extent: Extent) -> Result<Located, Verdict> {
    let ctx = &TcContext::new(skb);
    let usual = ETHERNET_LEN + size_of::<A::Header>() + size_of::<TcpHeader>();
    pull(ctx, extent, usual);
    let first = ETHERNET_LEN + size_of::<A::Header>();
    match located::<A>(skb, extent) {
        Ok(located) if located.protocol != A::Header::ICMP && located.offset <= first => {
            Ok(located)
        }
        Ok(_) | Err(Verdict::Truncated) => {
            pull(ctx, extent, MAX_HEADERS);
            located::<A>(skb, extent)
        }
        Err(verdict) => Err(verdict),
    }
}

#[inline(always)]
fn located<A: IpAddress>(skb: *mut __sk_buff, extent: Extent) -> Result<Located, Verdict> {
    let bytes = packet_bytes(skb);
    let ip = bytes
        .at::<A::Header>(ETHERNET_LEN)
        .ok_or(Verdict::Truncated)?;
    ip.locate(bytes, extent)
}

/// Pulls headers into the linear part if they are outside it.
#[inline(always)]
fn pull(ctx: &TcContext, extent: Extent, headers: usize) {
    let wanted = headers.min(extent.bytes as usize);
    let present = ctx.data_end() - ctx.data();
    if wanted > present {
        // A header that could not be pulled is found missing later.
        _ = ctx.pull_data(wanted as u32);
    }
}

/// Updates the checksum of a rewritten segment or datagram whose header is at `offset`.
#[inline(always)]
pub fn update_transport(
    skb: *mut __sk_buff,
    offset: usize,
    transport: &Transport<'_>,
    rewritten: Rewritten,
) {
    let flags = match transport {
        Transport::Tcp(_) => 0,
        Transport::Udp(_) => BPF_F_MARK_MANGLED_0.into(),
    };
    let checksum = offset + transport.checksum_offset();
    update_checksum(skb, checksum, rewritten, flags);
}

/// Updates the checksum of a rewritten ICMP error at `offset`.
#[inline(always)]
pub fn update_message<A: IpAddress>(skb: *mut __sk_buff, offset: usize, rewritten: Rewritten) {
    update_checksum(skb, offset + IcmpError::<A>::CHECKSUM, rewritten, 0);
}

/// Updates the checksum at `offset`, complete or partial.
#[inline(always)]
fn update_checksum(skb: *mut __sk_buff, offset: usize, rewritten: Rewritten, flags: u64) {
    let Rewritten { addresses, ports } = rewritten;
    let pseudo = u64::from(BPF_F_PSEUDO_HDR) | flags;
    // SAFETY: a valid context. Neither call fails, because the rewrite has written to the linear part at this offset.
    unsafe {
        bpf_l4_csum_replace(skb, offset as u32, 0, addresses.raw(), pseudo);
        bpf_l4_csum_replace(skb, offset as u32, 0, ports.raw(), flags);
    }
}

/// Updates the card's checksum over the whole packet (CHECKSUM_COMPLETE) by a change of IPv6 addresses and hop limit.
/// The helper for transport checksums does not include it.
#[inline(always)]
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "the kernel's helpers take contexts and validate them"
)]
pub fn update_packet_sum<A: IpAddress>(skb: *mut __sk_buff, changed: Difference) {
    if !A::Header::HAS_CHECKSUM {
        // SAFETY: a valid context. Fails without effect if there is no such checksum.
        unsafe { bpf_csum_update(skb, changed.raw() as u32) };
    }
}
