//! The line with the signature before the JSON: `memlb1 KEY-ID TAG`. The receiver verifies it before it parses the
//! JSON.
//!
//! The tag is the HMAC-SHA256 over the first word, the space, the key's id, a line feed and the JSON: everything but
//! the tag itself and the space before it.

use serde::Serialize;

use super::Refusal;
use crate::keys::{Key, KeyId, TAG_BYTES, parse_hex, write_hex};

/// The kind of a signed datagram. The signature covers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramKind {
    Heartbeat,
    Acknowledgement,
    Ping,
    Pong,
    ConnectionQuery,
    ConnectionReply,
}

impl DatagramKind {
    /// Returns the first word with the space after it.
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Self::Heartbeat => b"memlb1 ",
            Self::Acknowledgement => b"memlb1-ack ",
            Self::Ping => b"memlb1-ping ",
            Self::Pong => b"memlb1-pong ",
            Self::ConnectionQuery => b"memlb1-connection-query ",
            Self::ConnectionReply => b"memlb1-connection-reply ",
        }
    }

    /// Returns the JSON of an unsigned datagram other than a heartbeat. It has a line feed after the first word.
    pub fn unsigned_body(self, datagram: &[u8]) -> Option<&[u8]> {
        let rest = datagram.strip_prefix(self.prefix().trim_ascii_end())?;
        rest.strip_prefix(b"\n")
    }

    /// Whether a datagram is of this kind, signed or not, valid or not.
    pub fn is_of(self, datagram: &[u8]) -> bool {
        self.unsigned_body(datagram).is_some() || datagram.starts_with(self.prefix())
    }
}

/// The parts of a signed datagram. The signature is not verified yet.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    pub key: KeyId,
    pub body: &'a [u8],
    kind: DatagramKind,
    id: &'a [u8],
    tag: [u8; TAG_BYTES],
}

impl<'a> Envelope<'a> {
    /// Splits a datagram without parsing the body and without allocation.
    ///
    /// # Errors
    ///
    /// Refuses everything that does not have exactly this form.
    pub fn parse(kind: DatagramKind, datagram: &'a [u8]) -> Result<Self, Refusal> {
        Self::split(kind, datagram).ok_or(Refusal::BadEnvelope)
    }

    fn split(kind: DatagramKind, datagram: &'a [u8]) -> Option<Self> {
        let rest = datagram.strip_prefix(kind.prefix())?;
        let (id, rest) = rest.split_at_checked(KeyId::DIGITS)?;
        let rest = rest.strip_prefix(b" ")?;
        let (digits, rest) = rest.split_at_checked(2 * TAG_BYTES)?;
        let body = rest.strip_prefix(b"\n")?;
        let mut tag = [0; TAG_BYTES];
        parse_hex(digits, &mut tag).then_some(())?;
        Some(Self {
            key: KeyId::parse(id)?,
            body,
            kind,
            id,
            tag,
        })
    }

    /// Whether `key` signed this datagram.
    pub fn is_signed_by(&self, key: &Key) -> bool {
        key.id() == self.key
            && key.verify(&[self.kind.prefix(), self.id, b"\n", self.body], &self.tag)
    }
}

/// Signs a body.
pub fn sign(kind: DatagramKind, key: &Key, body: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(96 + body.len());
    let id = key.id().to_string();
    let tag = key.sign(&[kind.prefix(), id.as_bytes(), b"\n", body]);
    datagram.extend_from_slice(kind.prefix());
    datagram.extend_from_slice(id.as_bytes());
    datagram.push(b' ');
    write_hex(&tag, &mut datagram);
    datagram.push(b'\n');
    datagram.extend_from_slice(body);
    datagram
}

/// Encodes a body of JSON, and signs it if there is a key.
pub fn encode(
    kind: DatagramKind,
    key: Option<&Key>,
    body: &impl Serialize,
) -> Result<Vec<u8>, Refusal> {
    let body = serde_json::to_vec(body)?;
    Ok(match key {
        Some(key) => sign(kind, key, &body),
        None => [kind.prefix().trim_ascii_end(), b"\n", &body].concat(),
    })
}

/// Returns the body of a datagram that this key signed.
pub fn signed_body<'a>(
    kind: DatagramKind,
    datagram: &'a [u8],
    key: Option<&Key>,
) -> Result<&'a [u8], Refusal> {
    let envelope = Envelope::parse(kind, datagram)?;
    let id = envelope.key;
    match key {
        Some(key) if envelope.is_signed_by(key) => Ok(envelope.body),
        Some(key) if key.id() == id => Err(Refusal::BadSignature { key: id }),
        _ => Err(Refusal::UnknownKey { key: id }),
    }
}
