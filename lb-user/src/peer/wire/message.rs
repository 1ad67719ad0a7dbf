//! The contents of frames.

use std::net::SocketAddr;

use lb_core::{Endpoint, Mode};

use super::{
    Advertisement, ByteReader, FRAME_OVERHEAD, Frame, FrameSigner, MAX_FRAME, PeerRefusal, Record,
    VERSION, bytes::put_endpoint,
};
use crate::{
    config::Identity,
    datapath::{protocol_number, protocol_of},
};

/// The longest content of a frame of orders.
pub const MAX_ORDERS_BYTES: usize = MAX_FRAME - FRAME_OVERHEAD;

/// Types of frames.
mod kind {
    pub const RECORDS: u8 = 1;
    pub const BACKENDS: u8 = 2;
    pub const ENDPOINTS: u8 = 3;
    pub const ACKNOWLEDGE: u8 = 4;
    pub const RESYNC: u8 = 5;
    pub const PING: u8 = 6;
    pub const ADVERTISEMENT: u8 = 7;
    pub const ORDERS: u8 = 8;
}

/// Defines the number by which the following records refer to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendDefinition {
    pub reference: u16,
    /// Always has the service's endpoint.
    pub identity: Identity,
}

/// The connections of a transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All connections that the sender knows.
    Full,
    /// All connections of which the sender has forwarded packets.
    Carried,
}

/// The steps of a transmission of all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resync {
    /// The listener requests a transmission.
    Requested,
    Begun(Scope),
    /// The receiver now has all connections.
    Finished(Scope),
    /// The transmission ended, and connections may be missing.
    Partial(Scope),
}

/// The content of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Records(Vec<Record>),
    Backends(Vec<BackendDefinition>),
    /// Endpoints of services, and NAT addresses with port 0, each with its number.
    Endpoints(Vec<(u16, SocketAddr)>),
    /// Everything up to the frame with this sequence is applied.
    Acknowledge(u64),
    Resync(Resync),
    /// Shows that the sender is alive.
    Ping,
    /// Replaces the advertisement of the hello.
    Advertisement(Advertisement),
    /// Operators' orders, as JSON.
    Orders(Vec<u8>),
}

impl Message {
    /// Decodes a frame; `None` if this memlb does not know its type or version.
    ///
    /// # Errors
    ///
    /// The content does not match the header.
    pub fn decode(frame: &Frame<'_>) -> Result<Option<Self>, PeerRefusal> {
        let known = kind::RECORDS..=kind::ORDERS;
        if frame.version != VERSION || !known.contains(&frame.kind) {
            return Ok(None);
        }
        let mut input = ByteReader(frame.content);
        let message = Self::read(frame, &mut input).filter(|_| input.is_empty());
        let malformed = PeerRefusal::Malformed { kind: frame.kind };
        message.ok_or(malformed).map(Some)
    }

    fn read(frame: &Frame<'_>, input: &mut ByteReader<'_>) -> Option<Self> {
        Some(match frame.kind {
            kind::RECORDS => Self::Records(many(frame, || Record::decode(input))?),
            kind::BACKENDS => Self::Backends(many(frame, || BackendDefinition::decode(input))?),
            kind::ENDPOINTS => {
                Self::Endpoints(many(frame, || Some((input.u16()?, input.endpoint()?)))?)
            }
            kind::ACKNOWLEDGE => Self::Acknowledge(input.u64()?),
            kind::RESYNC => Self::Resync(Resync::decode(input)?),
            kind::PING => Self::Ping,
            kind::ADVERTISEMENT => Self::Advertisement(Advertisement::decode(input)?),
            kind::ORDERS => Self::Orders(input.bytes(input.0.len())?.to_vec()),
            _ => return None,
        })
    }

    /// Appends the message as a signed frame; returns the frame's sequence. The caller bounds its size.
    pub fn sign(&self, signer: &mut FrameSigner, out: &mut Vec<u8>) -> u64 {
        let (kind, count) = match self {
            Self::Records(records) => (kind::RECORDS, records.len()),
            Self::Backends(backends) => (kind::BACKENDS, backends.len()),
            Self::Endpoints(endpoints) => (kind::ENDPOINTS, endpoints.len()),
            Self::Acknowledge(_) => (kind::ACKNOWLEDGE, 1),
            Self::Resync(_) => (kind::RESYNC, 1),
            Self::Ping => (kind::PING, 0),
            Self::Advertisement(_) => (kind::ADVERTISEMENT, 1),
            Self::Orders(_) => (kind::ORDERS, 1),
        };
        signer.sign(kind, count as u16, out, |out| self.encode(out))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Records(records) => records.iter().for_each(|it| it.encode(out)),
            Self::Backends(backends) => backends.iter().for_each(|it| it.encode(out)),
            Self::Endpoints(endpoints) => {
                for (reference, endpoint) in endpoints {
                    out.extend_from_slice(&reference.to_be_bytes());
                    put_endpoint(*endpoint, out);
                }
            }
            Self::Acknowledge(sequence) => out.extend_from_slice(&sequence.to_be_bytes()),
            Self::Resync(step) => out.extend_from_slice(&step.encode()),
            Self::Ping => {}
            Self::Advertisement(advertisement) => advertisement.encode(out),
            Self::Orders(json) => out.extend_from_slice(json),
        }
    }
}

fn many<T>(frame: &Frame<'_>, mut one: impl FnMut() -> Option<T>) -> Option<Vec<T>> {
    (0..frame.count).map(|_| one()).collect()
}

impl BackendDefinition {
    fn encode(&self, out: &mut Vec<u8>) {
        let Identity {
            endpoint,
            mode,
            service,
        } = self.identity;
        let protocol = protocol_number(endpoint.protocol);
        let mode = match mode {
            Mode::Nat => 0,
            Mode::Dsr => 1,
            Mode::Routed => 2,
        };
        out.extend_from_slice(&self.reference.to_be_bytes());
        out.extend_from_slice(&[protocol, mode]);
        put_endpoint(endpoint.address, out);
        put_endpoint(service.unwrap_or(endpoint).address, out);
    }

    fn decode(input: &mut ByteReader<'_>) -> Option<Self> {
        let reference = input.u16()?;
        let protocol = protocol_of(input.u8()?)?;
        let mode = match input.u8()? {
            0 => Mode::Nat,
            1 => Mode::Dsr,
            2 => Mode::Routed,
            _ => return None,
        };
        let endpoint = |address| Endpoint { address, protocol };
        Some(Self {
            reference,
            identity: Identity {
                endpoint: endpoint(input.endpoint()?),
                mode,
                service: Some(endpoint(input.endpoint()?)),
            },
        })
    }
}

impl Scope {
    fn number(self) -> u8 {
        match self {
            Self::Full => 0,
            Self::Carried => 1,
        }
    }
}

impl Resync {
    fn encode(self) -> [u8; 2] {
        match self {
            Self::Requested => [0, 0],
            Self::Begun(scope) => [1, scope.number()],
            Self::Finished(scope) => [2, scope.number()],
            Self::Partial(scope) => [3, scope.number()],
        }
    }

    fn decode(input: &mut ByteReader<'_>) -> Option<Self> {
        let [step, scope] = input.array()?;
        let scope = match scope {
            0 => Scope::Full,
            1 => Scope::Carried,
            _ => return None,
        };
        Some(match step {
            0 if scope == Scope::Full => Self::Requested,
            1 => Self::Begun(scope),
            2 => Self::Finished(scope),
            3 => Self::Partial(scope),
            _ => return None,
        })
    }
}
