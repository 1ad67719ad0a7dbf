//! Hellos: the first message of each side, signed with the peers' key. Both hellos determine the session's keys.

use std::net::IpAddr;

use zeroize::Zeroizing;

use super::{
    ByteReader, FrameSigner, FrameVerifier, MAX_HELLO, PROTOCOLS, PeerRefusal,
    bytes::{put_ip, put_short},
};
use crate::{
    keys::{KeyId, PeerKeys, SigningKey, TAG_BYTES},
    worker_name::check_name,
};

/// The most interfaces and the most NAT addresses in a hello.
pub const MAX_INTERFACES: usize = 32;

/// Begins every hello and no other message of memlb. The signature covers it.
const MAGIC: &[u8; 8] = b"memlbp1\n";
const LENGTH: usize = size_of::<u16>();
const PREFIX: usize = MAGIC.len() + LENGTH;

/// Begins the signed input from which a session's keys are derived.
const SESSION: &[u8] = b"memlb1-peer-session";

/// The longest version, in bytes.
const MAX_VERSION: usize = 32;

/// The side that sends a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opened the connection, and sends records.
    Connector,
    /// Acknowledges the records.
    Listener,
}

impl Role {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Connector => b"connector",
            Self::Listener => b"listener",
        }
    }
}

/// What a manager advertises about itself, in its hello and whenever it changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advertisement {
    /// Digest of the settings that are equal on all managers.
    pub digest: [u8; 32],
    /// The addresses from which it connects to workers.
    pub nat_sources: Vec<IpAddr>,
    /// The link addresses of its interfaces, in the order of its configuration; zeros where there is none now.
    pub interfaces: Vec<[u8; 6]>,
    /// How many of its backends can take connections.
    pub serving: u16,
}

/// The first message of each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// First and last version of the protocol that the sender speaks.
    pub protocols: (u16, u16),
    /// Random, for this connection only.
    pub nonce: [u8; 16],
    /// The connector's nonce, in the listener's hello; otherwise zeros.
    pub echoed_nonce: [u8; 16],
    /// When the sender started, in milliseconds since 1970 by its clock.
    pub epoch: u64,
    pub name: String,
    /// The sender's version of memlb.
    pub version: String,
    pub advertisement: Advertisement,
}

impl Advertisement {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.digest);
        let sources = &self.nat_sources[..self.nat_sources.len().min(MAX_INTERFACES)];
        out.push(sources.len() as u8);
        sources.iter().for_each(|source| put_ip(*source, out));
        let interfaces = &self.interfaces[..self.interfaces.len().min(MAX_INTERFACES)];
        out.push(interfaces.len() as u8);
        interfaces.iter().for_each(|mac| out.extend_from_slice(mac));
        out.extend_from_slice(&self.serving.to_be_bytes());
    }

    pub fn decode(input: &mut ByteReader<'_>) -> Option<Self> {
        let digest = input.array()?;
        let sources = input.u8()?;
        let nat_sources: Vec<_> = (0..sources).map(|_| input.ip()).collect::<Option<_>>()?;
        let interfaces = input.u8()?;
        let interfaces: Vec<_> = (0..interfaces)
            .map(|_| input.array())
            .collect::<Option<_>>()?;
        let serving = input.u16()?;
        let fits = nat_sources.len() <= MAX_INTERFACES && interfaces.len() <= MAX_INTERFACES;
        fits.then_some(Self {
            digest,
            nat_sources,
            interfaces,
            serving,
        })
    }
}

impl Hello {
    /// Encodes and signs the hello.
    pub fn sign(&self, role: Role, key: &SigningKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; LENGTH]);
        out.extend_from_slice(&key.id().0.to_be_bytes());
        out.extend_from_slice(&self.protocols.0.to_be_bytes());
        out.extend_from_slice(&self.protocols.1.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.echoed_nonce);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        put_short(self.name.as_bytes(), &mut out);
        put_short(self.version.as_bytes(), &mut out);
        self.advertisement.encode(&mut out);
        let length = (out.len() - PREFIX + TAG_BYTES) as u16;
        out[MAGIC.len()..PREFIX].copy_from_slice(&length.to_be_bytes());
        let tag = key.sign(&[role.label(), &out]);
        out.extend_from_slice(&tag);
        out
    }

    /// Returns the length of the hello that begins with these bytes; `None` if they do not contain it yet.
    ///
    /// # Errors
    ///
    /// The bytes are not those of a hello.
    pub fn length(bytes: &[u8]) -> Result<Option<usize>, PeerRefusal> {
        let seen = bytes.len().min(MAGIC.len());
        if bytes[..seen] != MAGIC[..seen] {
            return Err(PeerRefusal::NotHello);
        }
        let mut input = ByteReader(&bytes[seen..]);
        let Some(length) = input.u16() else {
            return Ok(None);
        };
        let bytes = PREFIX + usize::from(length);
        match bytes {
            _ if bytes > MAX_HELLO => Err(PeerRefusal::OversizedHello { bytes }),
            _ if usize::from(length) < TAG_BYTES => Err(PeerRefusal::MalformedHello),
            _ => Ok(Some(bytes)),
        }
    }

    /// Decodes a complete hello, and verifies its signature with one of the keys that `keys_of` returns for the
    /// sender's name. Returns the hello and that key.
    ///
    /// # Errors
    ///
    /// Says why the hello is refused.
    pub fn verify<'k>(
        bytes: &[u8],
        role: Role,
        keys_of: impl FnOnce(&str) -> Result<&'k PeerKeys, PeerRefusal>,
    ) -> Result<(Self, &'k SigningKey), PeerRefusal> {
        if Self::length(bytes)? != Some(bytes.len()) {
            return Err(PeerRefusal::MalformedHello);
        }
        let (signed, tag) = bytes.split_at(bytes.len() - TAG_BYTES);
        let (id, hello) = Self::decode(&signed[PREFIX..]).ok_or(PeerRefusal::MalformedHello)?;
        let key = keys_of(&hello.name)?
            .find(id)
            .ok_or(PeerRefusal::OtherKey)?;
        match key.verify_left(&[role.label(), signed], tag) {
            true => Ok((hello, key)),
            false => Err(PeerRefusal::BadSignature),
        }
    }

    /// Ignores what later versions add at the end.
    fn decode(bytes: &[u8]) -> Option<(KeyId, Self)> {
        let mut input = ByteReader(bytes);
        let id = KeyId(input.u32()?);
        let hello = Self {
            protocols: (input.u16()?, input.u16()?),
            nonce: input.array()?,
            echoed_nonce: input.array()?,
            epoch: input.u64()?,
            name: text(input.short()?)?,
            version: text(input.short()?)?,
            advertisement: Advertisement::decode(&mut input)?,
        };
        let is_version = (1..=MAX_VERSION).contains(&hello.version.len())
            && hello.version.bytes().all(|byte| byte.is_ascii_graphic());
        (check_name(&hello.name).is_ok() && is_version).then_some((id, hello))
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

/// Returns the newest version of the protocol that both speak.
///
/// # Errors
///
/// There is none.
pub fn common_protocol(theirs: (u16, u16)) -> Result<u16, PeerRefusal> {
    let (first, last) = theirs;
    let newest = last.min(*PROTOCOLS.end());
    let oldest = first.max(*PROTOCOLS.start());
    (oldest <= newest)
        .then_some(newest)
        .ok_or(PeerRefusal::Protocol { first, last })
}

/// The keys of one session, one for each direction.
#[derive(Debug)]
pub struct SessionKeys {
    connector: SigningKey,
    listener: SigningKey,
}

impl SessionKeys {
    /// Derives the keys from the peers' key and both hellos, which contain the nonces.
    pub fn derive(key: &SigningKey, connector: &[u8], listener: &[u8]) -> Self {
        let derive = |role: Role| {
            let secret = Zeroizing::new(key.sign(&[SESSION, role.label(), connector, listener]));
            SigningKey::new(key.id(), &secret)
        };
        Self {
            connector: derive(Role::Connector),
            listener: derive(Role::Listener),
        }
    }

    /// Returns the signer of this side's frames and the verifier of the other side's.
    pub fn of(self, role: Role) -> (FrameSigner, FrameVerifier) {
        let (own, other) = match role {
            Role::Connector => (self.connector, self.listener),
            Role::Listener => (self.listener, self.connector),
        };
        (FrameSigner::new(own), FrameVerifier::new(other))
    }
}
