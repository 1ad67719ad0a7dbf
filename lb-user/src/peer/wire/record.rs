//! Records: a connection was established, has ended, or is present.
//!
//! A record has references and ages instead of ids, interface indices and times, which differ between managers.

use std::net::IpAddr;

use super::{ByteReader, bytes::put_ip};

/// The reference to a source address that stands for the client's own address.
pub const CLIENT_ADDRESS: u16 = 0;

/// Bit of a record's first byte: the client has an IPv6 address.
const IS_V6: u8 = 0x80;

/// Mask of one direction's end in the second byte.
const ENDED_BITS: u8 = 0x07;

/// Bit of the second byte: the sender has forwarded packets of the connection.
const CARRIED: u8 = 0x08;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    Opened = 1,
    Ended = 2,
    Present = 3,
}

/// An event of a connection, or its presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub kind: RecordKind,
    /// How the request direction and the reply direction have ended, see [`lb_common::maps::ended`].
    pub ended: [u8; 2],
    /// Whether packets of the connection have passed the sender.
    pub carried: bool,
    /// References that the sender has defined, see [`super::Message`].
    pub backend: u16,
    pub service: u16,
    pub source: u16,
    pub client: IpAddr,
    pub client_port: u16,
    pub source_port: u16,
    /// Age in ticks of the connection, see [`lb_common::maps::TICK_NS`].
    pub created_age: u32,
    /// Only for connections that continue; the default in [`RecordKind::Ended`].
    pub live: LiveFields,
}

/// The fields that the receiver needs to continue a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveFields {
    /// Position of the client's interface in the sender's `manager.interfaces`.
    pub interface: u8,
    /// The client's or its router's link address.
    pub mac: [u8; 6],
    /// The VLAN tag of its frames; 0: none.
    pub tag: u16,
    /// Age in ticks of the connection's last packet.
    pub seen_age: u32,
    /// Sequence numbers of request and reply.
    pub sequences: [u32; 2],
}

impl Record {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let family = if self.client.is_ipv6() { IS_V6 } else { 0 };
        let [request, reply] = self.ended;
        out.push(self.kind as u8 | family);
        let carried = if self.carried { CARRIED } else { 0 };
        out.push(request & ENDED_BITS | carried | (reply & ENDED_BITS) << 4);
        out.extend_from_slice(&self.backend.to_be_bytes());
        out.extend_from_slice(&self.service.to_be_bytes());
        out.extend_from_slice(&self.source.to_be_bytes());
        match self.client {
            IpAddr::V4(client) => out.extend_from_slice(&client.octets()),
            IpAddr::V6(_) => put_ip(self.client, out),
        }
        out.extend_from_slice(&self.client_port.to_be_bytes());
        out.extend_from_slice(&self.source_port.to_be_bytes());
        out.extend_from_slice(&self.created_age.to_be_bytes());
        if self.kind != RecordKind::Ended {
            self.live.encode(out);
        }
    }

    pub fn decode(input: &mut ByteReader<'_>) -> Option<Self> {
        let first = input.u8()?;
        let kind = match first & !IS_V6 {
            1 => RecordKind::Opened,
            2 => RecordKind::Ended,
            3 => RecordKind::Present,
            _ => return None,
        };
        let ended = input.u8()?;
        Some(Self {
            kind,
            ended: [ended & ENDED_BITS, ended >> 4 & ENDED_BITS],
            carried: ended & CARRIED != 0,
            backend: input.u16()?,
            service: input.u16()?,
            source: input.u16()?,
            client: match first & IS_V6 {
                0 => input.array::<4>()?.into(),
                _ => input.array::<16>()?.into(),
            },
            client_port: input.u16()?,
            source_port: input.u16()?,
            created_age: input.u32()?,
            live: match kind {
                RecordKind::Ended => LiveFields::default(),
                RecordKind::Opened | RecordKind::Present => LiveFields::decode(input)?,
            },
        })
    }
}

impl LiveFields {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.interface);
        out.extend_from_slice(&self.mac);
        out.extend_from_slice(&self.tag.to_be_bytes());
        out.extend_from_slice(&self.seen_age.to_be_bytes());
        for sequence in self.sequences {
            out.extend_from_slice(&sequence.to_be_bytes());
        }
    }

    fn decode(input: &mut ByteReader<'_>) -> Option<Self> {
        Some(Self {
            interface: input.u8()?,
            mac: input.array()?,
            tag: input.u16()?,
            seen_age: input.u32()?,
            sequences: [input.u32()?, input.u32()?],
        })
    }
}
