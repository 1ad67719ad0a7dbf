//! An ICMP error message, with the beginning of the packet that it quotes.

use super::{FrameBytes, Header, IpAddress, IpHeader, Located, Rewritten, bytes::sealed::Sealed};
use crate::{
    checksum::{Difference, udp_checksum},
    headers::{ETHERNET_LEN, EthernetHeader, IcmpHeader, PROTOCOL_UDP, QuotedPorts},
    maps::FlowKey,
    verdict::Verdict,
};

/// The headers of an error message and of the packet that it quotes.
#[derive(Debug)]
pub struct IcmpError<'a, A: IpAddress> {
    pub ethernet: &'a mut EthernetHeader,
    pub ip: &'a mut A::Header,
    pub message: &'a mut ErrorMessage<A::Header>,
    protocol: u8,
}

/// The ICMP header and the quoted packet as one view, because the verifier tracks the bounds of one pointer.
#[repr(C)]
#[derive(Debug)]
pub struct ErrorMessage<H> {
    pub icmp: IcmpHeader,
    inner: H,
    ports: QuotedPorts,
}

impl<H: IpHeader> Sealed for ErrorMessage<H> {}
impl<H: IpHeader> Header for ErrorMessage<H> {}

impl<'a, A: IpAddress> IcmpError<'a, A> {
    /// Offset of the checksum in the ICMP header, in bytes.
    pub const CHECKSUM: usize = 2;

    /// Views the message at `located`, or returns the verdict of a message that is not steered.
    #[inline(always)]
    pub fn view(bytes: impl FrameBytes<'a>, located: Located) -> Result<Self, Verdict> {
        let Located { offset, .. } = located;
        let ethernet = bytes.at::<EthernetHeader>(0).ok_or(Verdict::Truncated)?;
        let ip = bytes
            .at::<A::Header>(ETHERNET_LEN)
            .ok_or(Verdict::Truncated)?;
        let icmp = bytes.at::<IcmpHeader>(offset).ok_or(Verdict::Truncated)?;
        if !A::Header::is_error(icmp) {
            return Err(Verdict::OtherProtocol);
        }
        let message = bytes
            .at::<ErrorMessage<A::Header>>(offset)
            .ok_or(Verdict::Truncated)?;
        let protocol = message
            .inner
            .plain_protocol()
            .ok_or(Verdict::OtherProtocol)?;
        let needed = offset - ETHERNET_LEN + size_of::<ErrorMessage<A::Header>>();
        if ip.claimed_length() < needed as u32 {
            return Err(Verdict::Malformed);
        }
        if ethernet.to_group() {
            return Err(Verdict::NotForUs);
        }
        Ok(Self {
            ethernet,
            ip,
            message,
            protocol,
        })
    }

    /// The tuple of replies to the quoted packet, which go the same way as the message.
    #[inline(always)]
    pub fn tuple(&self) -> FlowKey<A> {
        let ErrorMessage { inner, ports, .. } = &*self.message;
        FlowKey {
            source: inner.destination(),
            destination: inner.source(),
            source_port: ports.destination_port,
            destination_port: ports.source_port,
            protocol: self.protocol.into(),
        }
    }

    /// Whether it is "fragmentation needed" (IPv4) or "packet too big" (IPv6).
    #[inline(always)]
    pub fn fragmentation_needed(&self) -> bool {
        A::Header::fragmentation_needed(&self.message.icmp)
    }

    /// Whether it says that no socket has the quoted packet's destination port.
    #[inline(always)]
    pub fn port_unreachable(&self) -> bool {
        A::Header::port_unreachable(&self.message.icmp)
    }

    /// The sequence number of the quoted segment. Meaningless for other protocols.
    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        self.message.ports.sequence()
    }

    /// Translates the message like a reply with the tuple `key`, to `translated`; the quoted packet becomes the reverse
    /// of `translated`. Where the translation changes the source, the message gets this source, too, because its
    /// receiver has no route to the routers on the other side. The caller updates the checksum of the ICMP header.
    #[inline(always)]
    pub fn rewrite(
        &mut self,
        key: &FlowKey<A>,
        translated: &FlowKey<A>,
        forwarded: bool,
    ) -> Rewritten {
        let source = if translated.source == key.source {
            self.ip.source()
        } else {
            translated.source
        };
        let outer = self.ip.replace(source, translated.destination, forwarded);
        let quoted = translated.reversed();
        let ErrorMessage { inner, ports, .. } = &mut *self.message;
        let addresses = inner.replace(quoted.source, quoted.destination, false);
        let mut changed = Difference::of_u16(ports.source_port, quoted.source_port).plus(
            Difference::of_u16(ports.destination_port, quoted.destination_port),
        );
        ports.source_port = quoted.source_port;
        ports.destination_port = quoted.destination_port;
        // The checksum of TCP lies beyond the bytes that every message quotes, and no receiver checks it.
        if self.protocol == PROTOCOL_UDP && ports.checksum != [0, 0] {
            let checksum = udp_checksum(addresses.plus(changed).apply(ports.checksum));
            changed = changed.plus(Difference::of_u16(ports.checksum, checksum));
            ports.checksum = checksum;
        }
        if A::Header::HAS_CHECKSUM {
            // The checksum of the quoted IP header compensates its addresses, and ICMP has no pseudo header.
            return Rewritten {
                addresses: Difference::default(),
                ports: changed,
            };
        }
        Rewritten {
            addresses: outer,
            ports: addresses.plus(changed),
        }
    }
}
