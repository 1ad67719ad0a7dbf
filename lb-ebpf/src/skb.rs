//! The socket buffer: where its headers are, and its checksums, which only helpers know to be partial
//! or complete.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_csum_update, bpf_l4_csum_replace},
    programs::TcContext,
};
use lb_common::{
    address::Address,
    checksum::Difference,
    headers::{ETHERNET_LEN, IcmpHeader, Ipv6Header, TcpHeader},
    packet::{
        Extent, FrameBytes, IcmpError, IpHeader, Located, MAX_EXTENSION_BYTES, Rewritten, Transport,
    },
    verdict::Verdict,
};

use crate::packet_bytes::PacketBytes;

/// `pkt_type` of a frame that is addressed to this machine.
pub const PACKET_HOST: u32 = 0;

/// All headers that a steered packet may have: extension headers, an ICMP header and the packet that it
/// quotes.
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
pub fn locate<A: Address>(skb: *mut __sk_buff, extent: Extent) -> Result<Located, Verdict> {
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
fn located<A: Address>(skb: *mut __sk_buff, extent: Extent) -> Result<Located, Verdict> {
    let bytes = packet_bytes(skb);
    let ip = bytes
        .at::<A::Header>(ETHERNET_LEN)
        .ok_or(Verdict::Truncated)?;
    ip.locate(bytes, extent)
}

/// Pulls headers into the linear part when the kernel keeps them elsewhere.
#[inline(always)]
fn pull(ctx: &TcContext, extent: Extent, headers: usize) {
    let wanted = headers.min(extent.bytes as usize);
    let present = ctx.data_end() - ctx.data();
    if wanted > present {
        // What could not be pulled is found missing where it is looked for.
        _ = ctx.pull_data(wanted as u32);
    }
}

/// Brings the checksum of a rewritten segment or datagram, whose header is at `offset`, up
/// to date.
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

/// Brings the checksum of a rewritten ICMP error message at `offset` up to date.
#[inline(always)]
pub fn update_message<A: Address>(skb: *mut __sk_buff, offset: usize, rewritten: Rewritten) {
    update_checksum(skb, offset + IcmpError::<A>::CHECKSUM, rewritten, 0);
}

/// Brings the checksum at `offset` up to date, complete or partial.
#[inline(always)]
fn update_checksum(skb: *mut __sk_buff, offset: usize, rewritten: Rewritten, flags: u64) {
    let Rewritten { addresses, ports } = rewritten;
    let pseudo = u64::from(BPF_F_PSEUDO_HDR) | flags;
    // SAFETY: a valid context. The offset lies within the linear part, so that neither call fails: the
    // rewrite just wrote there.
    unsafe {
        bpf_l4_csum_replace(skb, offset as u32, 0, addresses.raw(), pseudo);
        bpf_l4_csum_replace(skb, offset as u32, 0, ports.raw(), flags);
    }
}

/// Brings the sum over the whole packet that a network card has made up to date with what `changed` beside
/// a checksum: IPv6's addresses make up for the change of the checksum there, which the helper is not aware
/// of.
#[inline(always)]
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "the kernel's helpers take contexts, and look at them themselves"
)]
pub fn update_packet_sum<A: Address>(skb: *mut __sk_buff, changed: Difference) {
    if !A::Header::HAS_CHECKSUM {
        // SAFETY: a valid context. It fails where there is no such sum.
        unsafe { bpf_csum_update(skb, changed.raw() as u32) };
    }
}
