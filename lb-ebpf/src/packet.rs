//! What is read of a packet, and the decision on it.

use lb_common::{
    address::Address,
    headers::{ETHERNET_LEN, EthernetHeader, TcpFlags},
    maps::{FlowKey, Mac},
    packet::{Bytes, Extent, IpHeader, Located, PortsFrame, Quoted, Segment},
    steer::{Arrival, Hook, steer_error, steer_established, steer_others},
    verdict::Verdict,
};
use lb_ebpf::linear::{Linear, segment};

use crate::{
    desk::{Desk, Read},
    maps::{Family, Maps, may_be_ours},
};

/// The circumstances in which a frame met the program.
#[derive(Clone, Copy)]
pub struct Meeting {
    pub hook: Hook,
    /// Whether that is XDP.
    pub in_driver: bool,
    pub interface: u32,
    /// Packets and bytes on the wire that the frame stands for.
    pub packets: u32,
    pub bytes: u32,
    /// Control information of the VLAN tag, marked as present; 0 for none.
    pub tag: u16,
}

impl Meeting {
    /// What the steering decision needs to know of a segment.
    #[inline(always)]
    pub fn with<A: Address>(self, segment: &Segment<'_, A>) -> Arrival {
        let (sequence, acknowledgement) = segment.transport.numbers();
        Arrival {
            flags: segment.transport.flags(),
            sequence,
            acknowledgement,
            ..self.with_no_segment(segment.ethernet, segment.ip)
        }
    }

    /// The same where the packet is no segment.
    #[inline(always)]
    pub fn with_no_segment(self, ethernet: &EthernetHeader, ip: &impl IpHeader) -> Arrival {
        let source_mac = Mac::from(ethernet.source);
        Arrival {
            hook: self.hook,
            in_driver: self.in_driver,
            asks_for_fragments: false,
            interface: self.interface,
            source_mac: match self.tag {
                0 => source_mac,
                tag => source_mac.tagged(tag),
            },
            destination_mac: ethernet.destination.into(),
            time_to_live: ip.time_to_live(),
            flags: TcpFlags::NONE,
            sequence: 0,
            acknowledgement: 0,
            packets: self.packets,
            bytes: self.bytes,
        }
    }
}

impl<A: Family> Desk<A> {
    /// Lays a packet on the desk, or says why it is none of ours.
    #[inline(always)]
    pub fn take(
        &mut self,
        bytes: Linear,
        located: Located,
        meeting: Meeting,
        extent: Extent,
    ) -> Result<Read, Verdict> {
        self.spot = located.into();
        if located.protocol == A::Header::ICMP {
            let message = Quoted::<A>::view(bytes, located)?;
            self.key = message.tuple();
            self.may_be_ours(meeting.hook)?;
            self.arrival = Arrival {
                asks_for_fragments: message.asks_for_fragments(),
                ..meeting.with_no_segment(message.ethernet, message.ip)
            };
            return Ok(Read::Message);
        }
        let segment = segment::<A>(bytes, located).ok_or(Verdict::Truncated)?;
        segment.check((located.offset - ETHERNET_LEN) as u32, extent)?;
        self.key = segment.tuple();
        self.may_be_ours(meeting.hook)?;
        self.arrival = meeting.with(&segment);
        Ok(Read::Segment)
    }

    #[inline(always)]
    fn may_be_ours(&self, hook: Hook) -> Result<(), Verdict> {
        let FlowKey {
            protocol,
            source_port,
            destination_port,
            ..
        } = self.key;
        if may_be_ours(hook, protocol as u8, source_port, destination_port) {
            Ok(())
        } else {
            Err(Verdict::NotOurs)
        }
    }
}

/// Whether a packet is nobody's business here, as its ports tell at first sight.
#[inline(always)]
pub fn is_nobodys<A: Address>(bytes: Linear, hook: Hook) -> bool {
    let Some(PortsFrame { ip, ports, .. }) = bytes.at::<PortsFrame<A::Header>>(0) else {
        return false;
    };
    let Some(protocol) = ip.plain_protocol() else {
        return false;
    };
    !may_be_ours(hook, protocol, ports.source_port, ports.destination_port)
}

/// Decides what becomes of the packet on the desk.
#[inline(always)]
pub fn decide<A: Family>(desk: &mut Desk<A>, read: Read) {
    if read == Read::Message {
        relate(desk);
    } else if established(desk) == 0 {
        others(desk);
    }
}

#[inline(never)]
fn established<A: Family>(desk: &mut Desk<A>) -> u32 {
    let (arrival, key, decision) = (&desk.arrival, &desk.key, &mut desk.decision);
    steer_established(&Maps::NEW, arrival, key, decision).into()
}

#[inline(never)]
fn others<A: Family>(desk: &mut Desk<A>) -> u32 {
    let (arrival, key, decision) = (&desk.arrival, &desk.key, &mut desk.decision);
    steer_others(&Maps::NEW, arrival, key, decision);
    0
}

#[inline(never)]
fn relate<A: Family>(desk: &mut Desk<A>) -> u32 {
    let (arrival, key, decision) = (&desk.arrival, &desk.key, &mut desk.decision);
    steer_error(&Maps::NEW, arrival, key, decision);
    0
}
