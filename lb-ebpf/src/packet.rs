//! Checked views of the packet's bytes.

use lb_common::{
    address::Address,
    headers::{ETHERNET_LEN, EthernetHeader, PROTOCOL_TCP, PROTOCOL_UDP, TcpFlags},
    maps::{FlowKey, Mac},
    packet::{Bytes, Extent, Header, IpHeader, Located, PortsFrame, Quoted, Segment, Transport},
    steer::{Arrival, Hook, steer_error, steer_established, steer_others},
    verdict::Verdict,
};

use crate::{
    desk::{Desk, Read},
    maps::{Family, Maps, may_be_ours},
};

/// The linear part of a packet: `start..end`, as the context says.
#[derive(Clone, Copy)]
pub struct Linear {
    pub start: usize,
    pub end: usize,
}

impl<'a> Bytes<'a> for Linear {
    #[inline(always)]
    fn at<T: Header>(self, offset: usize) -> Option<&'a mut T> {
        let header = self.start + offset;
        if header + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet, as the verifier checks again; of alignment 1, and any bytes are
        // a header; no two views of the same bytes are used at a time.
        Some(unsafe { &mut *(header as *mut T) })
    }
}

/// The circumstances in which a frame met the program.
#[derive(Clone, Copy)]
pub struct Meeting {
    pub hook: Hook,
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
        self.place(located);
        if located.protocol == A::Header::ICMP {
            let message = Quoted::<A>::view(bytes, located)?;
            self.key = message.tuple();
            self.may_be_ours(meeting.hook)?;
            self.arrival = meeting.with_no_segment(message.ethernet, message.ip);
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

/// Views the headers of the segment or datagram at `located`, if all of them are there.
#[inline(always)]
pub fn segment<'a, A: Address>(bytes: Linear, located: Located) -> Option<Segment<'a, A>> {
    let transport = match located.protocol {
        PROTOCOL_TCP => Transport::Tcp(bytes.at(located.offset)?),
        PROTOCOL_UDP => Transport::Udp(bytes.at(located.offset)?),
        _ => return None,
    };
    Some(Segment {
        ethernet: bytes.at(0)?,
        ip: bytes.at(ETHERNET_LEN)?,
        transport,
    })
}
