//! IP headers of both families: location of the transport header, replacement of addresses.

use super::{Extent, FrameBytes, Header};
use crate::{
    address::{Address, V4, V6},
    checksum::Difference,
    headers::{
        ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ExtensionHeader, IcmpHeader, Ipv4Header,
        Ipv6Header, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    },
    verdict::Verdict,
};

/// Most IPv6 extension headers that are skipped, and their bytes.
const MAX_EXTENSION_HEADERS: usize = 4;
pub const MAX_EXTENSION_BYTES: usize = 256;

/// IPv6 extension headers (IANA).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The transport header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// TCP, UDP, or ICMP of the packet's family.
    pub protocol: u8,
    /// From the beginning of the frame, in bytes.
    pub offset: usize,
}

impl Located {
    #[inline(always)]
    pub fn as_tcp(self) -> Self {
        Self {
            protocol: PROTOCOL_TCP,
            ..self
        }
    }

    #[inline(always)]
    pub fn as_udp(self) -> Self {
        Self {
            protocol: PROTOCOL_UDP,
            ..self
        }
    }
}

/// An address with the header that carries it.
pub trait IpAddress: Address {
    type Header: IpHeader<Address = Self>;
}

impl IpAddress for V4 {
    type Header = Ipv4Header;
}

impl IpAddress for V6 {
    type Header = Ipv6Header;
}

/// An IP header of one family.
pub trait IpHeader: core::fmt::Debug + Header + Sized + 'static {
    type Address: IpAddress<Header = Self>;

    const ETHERTYPE: u16;
    /// The protocol number of the family's ICMP.
    const ICMP: u8;
    /// Whether the header has a checksum. If not, the checksums of the protocols above, including ICMP, cover its
    /// addresses.
    const HAS_CHECKSUM: bool;

    fn source(&self) -> Self::Address;
    fn destination(&self) -> Self::Address;
    fn time_to_live(&self) -> u8;

    /// Length of the packet according to its header, this header included, in bytes.
    fn claimed_length(&self) -> u32;

    /// Finds the transport header, or returns the verdict of a packet that is not steered.
    fn locate<'a>(&self, bytes: impl FrameBytes<'a>, extent: Extent) -> Result<Located, Verdict>;

    /// TCP or UDP, if the ports follow this header directly.
    fn plain_protocol(&self) -> Option<u8>;

    /// Whether an ICMP message is an error that quotes a packet.
    fn is_error(icmp: &IcmpHeader) -> bool;

    /// Whether such an error is IPv4's "fragmentation needed" or IPv6's "packet too big".
    fn fragmentation_needed(icmp: &IcmpHeader) -> bool;

    /// Whether an ICMP error says that no socket has the quoted packet's destination port.
    fn port_unreachable(icmp: &IcmpHeader) -> bool;

    /// Clears the DF bit and updates the header's checksum. `number` becomes the identification if the sender set
    /// none.
    fn allow_fragments(&mut self, number: u16);

    /// Replaces the addresses, reduces the time to live of a forwarded packet as [`after_hop`] does, and updates the
    /// header's checksum. Returns the difference of the addresses.
    fn replace(
        &mut self,
        source: Self::Address,
        destination: Self::Address,
        forwarded: bool,
    ) -> Difference;

    /// Rejects a header that claims more bytes than there are.
    #[inline(always)]
    fn fits(&self, extent: Extent) -> Result<(), Verdict> {
        let present = extent.bytes - (ETHERNET_LEN as u32);
        if !extent.coalesced && self.claimed_length() > present {
            return Err(Verdict::Truncated);
        }
        Ok(())
    }
}

impl IpHeader for Ipv4Header {
    type Address = V4;

    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    const ICMP: u8 = PROTOCOL_ICMP;
    const HAS_CHECKSUM: bool = true;

    #[inline(always)]
    fn source(&self) -> V4 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> V4 {
        self.destination
    }

    #[inline(always)]
    fn time_to_live(&self) -> u8 {
        self.time_to_live
    }

    #[inline(always)]
    fn claimed_length(&self) -> u32 {
        self.total_length().into()
    }

    #[inline(always)]
    fn locate<'a>(&self, _bytes: impl FrameBytes<'a>, extent: Extent) -> Result<Located, Verdict> {
        if self.version() != 4 || self.header_words() < 5 {
            return Err(Verdict::Malformed);
        }
        if !is_steered(self.protocol, PROTOCOL_ICMP) {
            return Err(Verdict::OtherProtocol);
        }
        if self.header_words() != 5 {
            return Err(Verdict::IpOptions);
        }
        if self.is_fragment() {
            return Err(Verdict::Fragment);
        }
        self.fits(extent)?;
        Ok(Located {
            protocol: self.protocol,
            offset: ETHERNET_LEN + size_of::<Self>(),
        })
    }

    #[inline(always)]
    fn plain_protocol(&self) -> Option<u8> {
        let plain = self.version() == 4 && self.header_words() == 5 && self.has_ports();
        (plain && has_ports(self.protocol)).then_some(self.protocol)
    }

    /// Destination unreachable, source quench, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_error(icmp: &IcmpHeader) -> bool {
        matches!(icmp.kind, 3 | 4 | 11 | 12)
    }

    #[inline(always)]
    fn fragmentation_needed(icmp: &IcmpHeader) -> bool {
        icmp.kind == 3 && icmp.code == 4
    }

    #[inline(always)]
    fn port_unreachable(icmp: &IcmpHeader) -> bool {
        icmp.kind == 3 && icmp.code == 3
    }

    #[inline(always)]
    fn allow_fragments(&mut self, number: u16) {
        let flags = *self.fragment_word();
        let allowed = [flags[0] & !Self::DONT_FRAGMENT, flags[1]];
        let mut changed = Difference::of_u16(flags, allowed);
        *self.fragment_word() = allowed;
        let before = *self.identification();
        if before == [0, 0] {
            *self.identification() = number.to_be_bytes();
            changed = changed.plus(Difference::of_u16(before, number.to_be_bytes()));
        }
        self.checksum = changed.apply(self.checksum);
    }

    #[inline(always)]
    fn replace(&mut self, source: V4, destination: V4, forwarded: bool) -> Difference {
        let addresses = Difference::of_u32(self.source, source)
            .plus(Difference::of_u32(self.destination, destination));
        let mut header = addresses;
        if forwarded {
            let before = self.time_to_live;
            self.time_to_live = after_hop(before);
            header = header.plus(Difference::of_u16([before, 0], [self.time_to_live, 0]));
        }
        self.checksum = header.apply(self.checksum);
        self.source = source;
        self.destination = destination;
        addresses
    }
}

impl IpHeader for Ipv6Header {
    type Address = V6;

    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    const ICMP: u8 = PROTOCOL_ICMPV6;
    const HAS_CHECKSUM: bool = false;

    #[inline(always)]
    fn source(&self) -> V6 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> V6 {
        self.destination
    }

    #[inline(always)]
    fn time_to_live(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn claimed_length(&self) -> u32 {
        u32::from(self.payload_length()) + size_of::<Self>() as u32
    }

    #[inline(always)]
    fn locate<'a>(&self, bytes: impl FrameBytes<'a>, extent: Extent) -> Result<Located, Verdict> {
        if self.version() != 6 {
            return Err(Verdict::Malformed);
        }
        let mut located = Located {
            protocol: self.next_header,
            offset: ETHERNET_LEN + size_of::<Self>(),
        };
        for _ in 0..=MAX_EXTENSION_HEADERS {
            if is_steered(located.protocol, PROTOCOL_ICMPV6) {
                self.fits(extent)?;
                return Ok(located);
            }
            if located.protocol == FRAGMENT {
                return Err(Verdict::Fragment);
            }
            let is_known = matches!(located.protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS);
            if !is_known {
                return Err(Verdict::OtherProtocol);
            }
            let Some(extension) = bytes.at::<ExtensionHeader>(located.offset) else {
                return Err(Verdict::Truncated);
            };
            let is_on_the_way = located.protocol == ROUTING && extension.segments_left != 0;
            let offset = located.offset + extension.length();
            if is_on_the_way || offset > ETHERNET_LEN + size_of::<Self>() + MAX_EXTENSION_BYTES {
                return Err(Verdict::ExtensionHeaders);
            }
            located = Located {
                protocol: extension.next_header,
                offset,
            };
        }
        Err(Verdict::ExtensionHeaders)
    }

    #[inline(always)]
    fn plain_protocol(&self) -> Option<u8> {
        let plain = self.version() == 6 && has_ports(self.next_header);
        plain.then_some(self.next_header)
    }

    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(icmp: &IcmpHeader) -> bool {
        matches!(icmp.kind, 1..=4)
    }

    #[inline(always)]
    fn fragmentation_needed(icmp: &IcmpHeader) -> bool {
        icmp.kind == 2
    }

    #[inline(always)]
    fn port_unreachable(icmp: &IcmpHeader) -> bool {
        icmp.kind == 1 && icmp.code == 4
    }

    #[inline(always)]
    fn allow_fragments(&mut self, _number: u16) {}

    #[inline(always)]
    fn replace(&mut self, source: V6, destination: V6, forwarded: bool) -> Difference {
        let addresses = Difference::of_u128(self.source, source)
            .plus(Difference::of_u128(self.destination, destination));
        if forwarded {
            self.hop_limit = after_hop(self.hop_limit);
        }
        self.source = source;
        self.destination = destination;
        addresses
    }
}

/// The time to live of a forwarded packet that arrived with `before`. A packet to the service has reached its
/// destination (RFC 1122, section 3.2.1.7), so its time to live does not expire here.
#[inline(always)]
pub fn after_hop(before: u8) -> u8 {
    before.max(2) - 1
}

#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP
}

#[inline(always)]
fn is_steered(protocol: u8, icmp: u8) -> bool {
    has_ports(protocol) || protocol == icmp
}
