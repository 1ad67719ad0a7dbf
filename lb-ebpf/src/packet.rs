//! Parsing of packets, and the decision on them.

use lb_common::{
    headers::{ETHERNET_LEN, EthernetHeader, TcpFlags},
    maps::{FlowKey, Mac},
    packet::{Extent, FrameBytes, IcmpError, IpAddress, IpHeader, Located, PortsFrame, Segment},
    steer::{Decision, Hook, PacketMeta, steer_error, steer_established, steer_unestablished},
    verdict::Verdict,
};
use lb_ebpf::packet_bytes::{PacketBytes, segment};

use crate::{
    maps::{Family, Maps, is_tracked_port},
    packet_scratch::{PacketScratch, Parsed},
};

/// Metadata of a frame from the hook's context.
#[derive(Clone, Copy)]
pub struct HookContext {
    pub hook: Hook,
    /// Whether the program is XDP.
    pub in_driver: bool,
    pub interface: u32,
    /// Packets and bytes on the wire; more than one packet with GSO.
    pub packets: u32,
    pub bytes: u32,
    /// Control information of the VLAN tag, marked as present; 0: untagged.
    pub tag: u16,
}

impl HookContext {
    /// The metadata of a segment or datagram.
    #[inline(always)]
    pub fn packet_meta<A: IpAddress>(self, segment: &Segment<'_, A>) -> PacketMeta {
        let (sequence, acknowledgement) = segment.transport.numbers();
        PacketMeta {
            flags: segment.transport.flags(),
            sequence,
            acknowledgement,
            ..self.link_and_ip_meta(segment.ethernet, segment.ip)
        }
    }

    /// The metadata from link and IP headers.
    #[inline(always)]
    pub fn link_and_ip_meta(self, ethernet: &EthernetHeader, ip: &impl IpHeader) -> PacketMeta {
        let source_mac = Mac::read(&ethernet.source);
        PacketMeta {
            hook: self.hook,
            in_driver: self.in_driver,
            fragmentation_needed: false,
            port_unreachable: false,
            interface: self.interface,
            source_mac: match self.tag {
                0 => source_mac,
                tag => source_mac.tagged(tag),
            },
            destination_mac: Mac::read(&ethernet.destination),
            time_to_live: ip.time_to_live(),
            flags: TcpFlags::NONE,
            sequence: 0,
            acknowledgement: 0,
            packets: self.packets,
            bytes: self.bytes,
        }
    }
}

impl<A: Family> PacketScratch<A> {
    /// Parses a packet into the scratch map, or returns the verdict of a packet that is not steered.
    #[inline(always)]
    pub fn parse(
        &mut self,
        bytes: PacketBytes,
        located: Located,
        hook_context: HookContext,
        extent: Extent,
    ) -> Result<Parsed, Verdict> {
        self.header_offset = located.into();
        if located.protocol == A::Header::ICMP {
            let message = IcmpError::<A>::view(bytes, located)?;
            self.key = message.tuple();
            self.check_ports(hook_context.hook)?;
            self.packet = PacketMeta {
                fragmentation_needed: message.fragmentation_needed(),
                port_unreachable: message.port_unreachable(),
                sequence: message.sequence(),
                ..hook_context.link_and_ip_meta(message.ethernet, message.ip)
            };
            return Ok(Parsed::IcmpError);
        }
        let segment = segment::<A>(bytes, located).ok_or(Verdict::Truncated)?;
        segment.check((located.offset - ETHERNET_LEN) as u32, extent)?;
        self.key = segment.tuple();
        self.check_ports(hook_context.hook)?;
        self.packet = hook_context.packet_meta(&segment);
        Ok(Parsed::Segment)
    }

    #[inline(always)]
    fn check_ports(&self, hook: Hook) -> Result<(), Verdict> {
        let FlowKey {
            protocol,
            source_port,
            destination_port,
            ..
        } = self.key;
        if is_tracked_port(hook, protocol as u8, source_port, destination_port) {
            Ok(())
        } else {
            Err(Verdict::NotOurs)
        }
    }
}

/// Whether the packet's ports show that it is unrelated to memlb.
#[inline(always)]
pub fn is_unrelated<A: IpAddress>(bytes: PacketBytes, hook: Hook) -> bool {
    let Some(PortsFrame { ip, ports, .. }) = bytes.at::<PortsFrame<A::Header>>(0) else {
        return false;
    };
    let Some(protocol) = ip.plain_protocol() else {
        return false;
    };
    !is_tracked_port(hook, protocol, ports.source_port, ports.destination_port)
}

/// Decides on the packet in the scratch map. `is_unestablished`: the fast path has found no established flow.
#[inline(always)]
pub fn decide<A: Family>(scratch: &mut PacketScratch<A>, parsed: Parsed, is_unestablished: bool) {
    if parsed == Parsed::IcmpError {
        icmp_error(scratch);
    } else if is_unestablished || established(scratch) == 0 {
        unestablished(scratch);
    }
}

#[inline(never)]
fn established<A: Family>(scratch: &mut PacketScratch<A>) -> u32 {
    let (packet, key, decision) = (&scratch.packet, &scratch.key, &mut scratch.decision);
    steer_established(&Maps::NEW, packet, key, decision).into()
}

#[inline(never)]
fn unestablished<A: Family>(scratch: &mut PacketScratch<A>) -> u32 {
    let (packet, key, decision) = (&scratch.packet, &scratch.key, &mut scratch.decision);
    *decision = Decision::NONE;
    steer_unestablished(&Maps::NEW, packet, key, decision);
    0
}

#[inline(never)]
fn icmp_error<A: Family>(scratch: &mut PacketScratch<A>) -> u32 {
    let (packet, key, decision) = (&scratch.packet, &scratch.key, &mut scratch.decision);
    steer_error(&Maps::NEW, packet, key, decision);
    0
}
