//! Hellos: the first message of either side, signed with the peers' key. Both together give the keys of the session.

use std::{net::IpAddr, ops::RangeInclusive};

use zeroize::Zeroizing;

use super::{
    ByteReader, FrameSigner, FrameVerifier, Refusal,
    bytes::{put_ip, put_short},
};
use crate::{
    keys::{KeyId, PeerKeys, SigningKey, TAG_BYTES},
    worker_name::check_name,
};

/// The versions of the protocol that this memlb speaks.
pub const PROTOCOLS: RangeInclusive<u16> = 1..=1;

/// The longest hello.
pub const MAX_HELLO: usize = 2_048;

/// The most interfaces and the most NAT addresses in a hello.
pub const MAX_INTERFACES: usize = 32;

/// A kind of its own: no other message of memlb begins so, and the signature covers it.
const MARK: &[u8; 8] = b"memlbp1\n";
const LENGTH: usize = size_of::<u16>();
const PREFIX: usize = MARK.len() + LENGTH;

/// What the signatures of a session's key begin with.
const SESSION: &[u8] = b"memlb1-peer-session";

/// The longest name of a version.
const MAX_VERSION: usize = 32;

/// Who sends a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Has opened the connection: it sends records.
    Connector,
    /// Acknowledges them.
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

/// What a manager says of itself, in its hello and whenever that changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// Digest of the settings that are equal on all managers.
    pub digest: [u8; 32],
    /// The addresses from which it connects to workers.
    pub nat_sources: Vec<IpAddr>,
    /// The link addresses of its interfaces, in the order of its configuration; zeros where there is none now.
    pub interfaces: Vec<[u8; 6]>,
    /// How many of its backends can take connections.
    pub serving: u16,
}

/// The first message of either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// First and last version of the protocol that the sender speaks.
    pub protocols: (u16, u16),
    /// Drawn at random for this connection.
    pub nonce: [u8; 16],
    /// The connector's nonce, in the listener's hello; otherwise zeros.
    pub echoed_nonce: [u8; 16],
    /// When the sender started, in milliseconds since 1970 by its clock.
    pub epoch: u64,
    pub name: String,
    /// The sender's version of memlb.
    pub version: String,
    pub about: About,
}

impl About {
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
        let nat_sources = (0..sources)
            .map(|_| input.ip())
            .collect::<Option<Vec<_>>>()?;
        let interfaces = input.u8()?;
        let interfaces = (0..interfaces)
            .map(|_| input.array())
            .collect::<Option<Vec<_>>>()?;
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
    /// Returns the hello as it is sent, signed.
    pub fn sign(&self, role: Role, key: &SigningKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(MARK);
        out.extend_from_slice(&[0; LENGTH]);
        out.extend_from_slice(&key.id().0.to_be_bytes());
        out.extend_from_slice(&self.protocols.0.to_be_bytes());
        out.extend_from_slice(&self.protocols.1.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.echoed_nonce);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        put_short(self.name.as_bytes(), &mut out);
        put_short(self.version.as_bytes(), &mut out);
        self.about.encode(&mut out);
        let length = (out.len() - PREFIX + TAG_BYTES) as u16;
        out[MARK.len()..PREFIX].copy_from_slice(&length.to_be_bytes());
        let tag = key.sign(&[role.label(), &out]);
        out.extend_from_slice(&tag);
        out
    }

    /// Returns the length of the hello that begins with these bytes; nothing while that is not known.
    ///
    /// # Errors
    ///
    /// Says that this is no hello.
    pub fn length(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let seen = bytes.len().min(MARK.len());
        if bytes[..seen] != MARK[..seen] {
            return Err(Refusal::NotHello);
        }
        let mut input = ByteReader(&bytes[seen..]);
        let Some(length) = input.u16() else {
            return Ok(None);
        };
        let bytes = PREFIX + usize::from(length);
        match bytes {
            _ if bytes > MAX_HELLO => Err(Refusal::OversizedHello { bytes }),
            _ if usize::from(length) < TAG_BYTES => Err(Refusal::MalformedHello),
            _ => Ok(Some(bytes)),
        }
    }

    /// Reads a whole hello, and checks its signature with one of the keys that `keys_of` gives for the sender's
    /// name; returns it with the key.
    ///
    /// # Errors
    ///
    /// Says why it is refused.
    pub fn verify<'k>(
        bytes: &[u8],
        role: Role,
        keys_of: impl FnOnce(&str) -> Result<&'k PeerKeys, Refusal>,
    ) -> Result<(Self, &'k SigningKey), Refusal> {
        if Self::length(bytes)? != Some(bytes.len()) {
            return Err(Refusal::MalformedHello);
        }
        let (signed, tag) = bytes.split_at(bytes.len() - TAG_BYTES);
        let (id, hello) = Self::decode(&signed[PREFIX..]).ok_or(Refusal::MalformedHello)?;
        let key = keys_of(&hello.name)?.find(id).ok_or(Refusal::OtherKey)?;
        match key.verify_left(&[role.label(), signed], tag) {
            true => Ok((hello, key)),
            false => Err(Refusal::BadSignature),
        }
    }

    /// What later versions add at the end is ignored.
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
            about: About::decode(&mut input)?,
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
/// Says that there is none.
pub fn common_protocol(theirs: (u16, u16)) -> Result<u16, Refusal> {
    let (first, last) = theirs;
    let newest = last.min(*PROTOCOLS.end());
    let oldest = first.max(*PROTOCOLS.start());
    (oldest <= newest)
        .then_some(newest)
        .ok_or(Refusal::Protocol { first, last })
}

/// The keys of one session, one for each direction.
#[derive(Debug)]
pub struct SessionKeys {
    connector: SigningKey,
    listener: SigningKey,
}

impl SessionKeys {
    /// Derives them from the peers' key and both hellos, and so from both nonces.
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

    /// Returns what makes this side's frames, and what checks the other side's.
    pub fn of(self, role: Role) -> (FrameSigner, FrameVerifier) {
        let (own, other) = match role {
            Role::Connector => (self.connector, self.listener),
            Role::Listener => (self.listener, self.connector),
        };
        (FrameSigner::new(own), FrameVerifier::new(other))
    }
}
