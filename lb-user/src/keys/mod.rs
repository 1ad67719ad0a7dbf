//! Keys of workers, which sign heartbeats and their acknowledgements, and keys of peers.
//!
//! A key authenticates one worker by its name. A worker may have two keys at a time, so that a new key can be
//! distributed before the old one is removed. docs/heartbeat.md describes how.

mod file;
mod generate;
mod peer;
mod ring;

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::processes::Unit;

pub use file::{credential, read_key, read_keys};
pub use generate::{write_new, write_new_peer};
pub use peer::{PEER_KEY, PeerKeys, read_peer_keys};
pub use ring::{DuplicateKey, KEYS_PER_WORKER, KeyRing};

/// The usual file of an agent's key. The package's service passes it to its agent.
pub const AGENT_KEY: &str = "/etc/memlb/agent.key";

/// The command that makes a running manager read its keys again.
///
/// systemd passes the keys to the package's service only at its start.
pub const APPLY_KEYS: &str =
    "memlb reload    (with the package's service: systemctl restart memlb-manager)";

/// Returns the same command for the manager of this machine.
pub fn apply_keys_here() -> String {
    Unit::Manager.restart("memlb reload")
}

/// Whether a key cannot be read because this user has no permission.
pub fn is_forbidden(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|it| it.downcast_ref::<std::io::Error>());
    causes.any(|it| it.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The bytes of a key's secret, as many as of a SHA-256 hash.
pub const SECRET_BYTES: usize = 32;

/// The bytes of a signature, a whole HMAC-SHA256.
pub const TAG_BYTES: usize = 32;

/// The public id of a key, written as 8 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

impl KeyId {
    /// The length of its text.
    pub const DIGITS: usize = 8;

    /// Parses exactly 8 lower-case hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: &[u8; Self::DIGITS] = text.try_into().ok()?;
        let mut bytes = [0; Self::DIGITS / 2];
        parse_hex(digits, &mut bytes).then(|| Self(u32::from_be_bytes(bytes)))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A secret with its id. The state of its HMAC is computed once.
///
/// Its memory is overwritten when it is dropped, and `Debug` shows its id only.
#[derive(Clone)]
pub struct SigningKey {
    id: KeyId,
    /// After the secret, before any data.
    hmac: Hmac<Sha256>,
}

/// One worker's key.
#[derive(Clone)]
pub struct Key {
    worker: String,
    key: SigningKey,
}

impl SigningKey {
    pub fn new(id: KeyId, secret: &Zeroizing<[u8; SECRET_BYTES]>) -> Self {
        // HMAC pads a key with zeros to the block size of SHA-256.
        let mut block = Zeroizing::new([0; 2 * SECRET_BYTES]);
        block[..SECRET_BYTES].copy_from_slice(secret.as_ref());
        let block: &[u8; 2 * SECRET_BYTES] = &block;
        Self {
            id,
            hmac: <Hmac<Sha256> as KeyInit>::new(block.into()),
        }
    }

    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether the other key has the same id and secret.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.id == other.id && self.verify(&[], &other.sign(&[]))
    }

    /// Returns the HMAC-SHA256 over the parts, one after another.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        self.over(parts).finalize().into_bytes().into()
    }

    /// Whether the tag is right. The comparison takes constant time.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8; TAG_BYTES]) -> bool {
        self.over(parts).verify_slice(tag).is_ok()
    }

    /// Whether the first bytes of a tag, at least one, are right.
    pub fn verify_left(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        self.over(parts).verify_truncated_left(tag).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.hmac.clone();
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

impl Key {
    pub fn new(worker: String, id: KeyId, secret: &Zeroizing<[u8; SECRET_BYTES]>) -> Self {
        let key = SigningKey::new(id, secret);
        Self { worker, key }
    }

    /// Returns the only worker that this key authenticates.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    pub fn id(&self) -> KeyId {
        self.key.id
    }

    /// Returns the HMAC-SHA256 over the parts, one after another.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        self.key.sign(parts)
    }

    /// Whether the tag is right. The comparison takes constant time.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8; TAG_BYTES]) -> bool {
        self.key.verify(parts, tag)
    }

    /// Whether the other key has the same worker, id and secret.
    fn is_same_as(&self, other: &Self) -> bool {
        self.worker == other.worker && self.key.is_same_as(&other.key)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} of {})", self.id(), self.worker)
    }
}

/// Parses lower-case hexadecimal digits, two for each byte; returns whether they are valid.
pub(crate) fn parse_hex(digits: &[u8], bytes: &mut [u8]) -> bool {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return false;
    }
    pairs.iter().zip(bytes).all(|([high, low], byte)| {
        let (Some(high), Some(low)) = (value(*high), value(*low)) else {
            return false;
        };
        *byte = high << 4 | low;
        true
    })
}

/// Writes two lower-case hexadecimal digits for each byte.
pub(crate) fn write_hex(bytes: &[u8], digits: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        digits.push(DIGITS[usize::from(byte >> 4)]);
        digits.push(DIGITS[usize::from(byte & 15)]);
    }
}

#[cfg(test)]
mod tests;
