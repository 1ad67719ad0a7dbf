//! Keys that sign heartbeats and their acknowledgements, one or two for each worker; and those of peers.
//!
//! A key belongs to one worker's name and authenticates no other. Two of them may hold at a time,
//! so that a new key can be brought out before the old one is withdrawn. docs/heartbeat.md says how.

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

/// Where an agent's key usually is; the package's service hands this one to its agent.
pub const AGENT_KEY: &str = "/etc/memlb/agent.key";

/// What lets a running manager on any machine take up a changed key.
///
/// systemd hands the package's service its keys when it starts.
pub const APPLY_KEYS: &str =
    "memlb reload    (with the package's service: systemctl restart memlb-manager)";

/// The same for the manager of this machine.
pub fn apply_keys_here() -> String {
    Unit::Manager.restart("memlb reload")
}

/// Whether a key cannot be read because this user lacks the permission.
pub fn is_forbidden(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|it| it.downcast_ref::<std::io::Error>());
    causes.any(|it| it.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Bytes of a key's secret: as many as SHA-256 gives.
pub const SECRET_BYTES: usize = 32;

/// Bytes of a signature: the whole HMAC-SHA256.
pub const TAG_BYTES: usize = 32;

/// Names a key in the open, written as 8 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

impl KeyId {
    /// Its length in text.
    pub const DIGITS: usize = 8;

    /// Reads exactly 8 lower-case hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: &[u8; Self::DIGITS] = text.try_into().ok()?;
        let mut bytes = [0; Self::DIGITS / 2];
        hex(digits, &mut bytes).then(|| Self(u32::from_be_bytes(bytes)))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A secret with its id, ready to sign: the schedule of its HMAC is computed once.
///
/// Its memory is overwritten when it is dropped, and it shows its id only.
#[derive(Clone)]
pub struct SigningKey {
    id: KeyId,
    schedule: Hmac<Sha256>,
}

/// One worker's key.
#[derive(Clone)]
pub struct Key {
    worker: String,
    key: SigningKey,
}

impl SigningKey {
    pub fn new(id: KeyId, secret: &Zeroizing<[u8; SECRET_BYTES]>) -> Self {
        // HMAC fills a key up with zeros to SHA-256's block.
        let mut block = Zeroizing::new([0; 2 * SECRET_BYTES]);
        block[..SECRET_BYTES].copy_from_slice(secret.as_ref());
        let block: &[u8; 2 * SECRET_BYTES] = &block;
        Self {
            id,
            schedule: <Hmac<Sha256> as KeyInit>::new(block.into()),
        }
    }

    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether that is this key, its secret included.
    pub fn is(&self, other: &Self) -> bool {
        self.id == other.id && self.verify(&[], &other.sign(&[]))
    }

    /// Returns the HMAC-SHA256 over the parts, one after another.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        self.over(parts).finalize().into_bytes().into()
    }

    /// Compares in a time that does not depend on where a wrong tag differs.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8; TAG_BYTES]) -> bool {
        self.over(parts).verify_slice(tag).is_ok()
    }

    /// The same for the first bytes of a tag, at least one.
    pub fn verify_left(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        self.over(parts).verify_truncated_left(tag).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.schedule.clone();
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

    /// Compares in a time that does not depend on where a wrong tag differs.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8; TAG_BYTES]) -> bool {
        self.key.verify(parts, tag)
    }

    /// Whether that is this key, its secret included.
    fn is(&self, other: &Self) -> bool {
        self.worker == other.worker && self.key.is(&other.key)
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

/// Reads lower-case hexadecimal digits, two for each byte; says whether all were.
pub(crate) fn hex(digits: &[u8], bytes: &mut [u8]) -> bool {
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
