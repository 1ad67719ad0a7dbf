//! The key file of managers that are peers: one line `memlb-peer-key-1 ID SECRET`, or two while a key is replaced.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{
    KeyId, SigningKey,
    file::{MARK, PEER_MARK, credential, parse_secret, read_lines},
};

/// Where the key usually is.
pub const PEER_KEY: &str = "/etc/memlb/peer.key";

/// What the package's service calls it: systemd hands over root's file to the manager's user.
const CREDENTIAL: &str = "memlb-peer.key";

/// The key in use and the one that replaces it.
const MOST_KEYS: usize = 2;

/// The keys that two managers share: the first signs, and each of them verifies.
#[derive(Debug, Clone)]
pub struct PeerKeys {
    signing: SigningKey,
    other: Option<SigningKey>,
}

impl PeerKeys {
    /// The key that this manager signs with.
    pub fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// Only this key, of which no second one takes the place.
    pub fn single(signing: SigningKey) -> Self {
        let other = None;
        Self { signing, other }
    }

    /// Returns the key with this id, which verifies what a peer signed.
    pub fn find(&self, id: KeyId) -> Option<&SigningKey> {
        self.iter().find(|key| key.id() == id)
    }

    /// Whether these are the same keys, with the same secrets, in the same order.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let pairs = self.iter().zip(other.iter());
        self.iter().count() == other.iter().count() && { pairs }.all(|(own, other)| own.is(other))
    }

    pub fn iter(&self) -> impl Iterator<Item = &SigningKey> {
        [Some(&self.signing), self.other.as_ref()]
            .into_iter()
            .flatten()
    }
}

/// Reads a key file of peers.
///
/// # Errors
///
/// Says why the file cannot be trusted or read, or that its key is a worker's.
pub fn read_peer_keys(path: &Path) -> Result<PeerKeys> {
    let handed_over = credential(CREDENTIAL).filter(|_| path == Path::new(PEER_KEY));
    let path = handed_over.as_deref().unwrap_or(path);
    let mut keys: Vec<SigningKey> = Vec::new();
    read_lines(path, "memlb keygen --peer", |line, place| {
        let key = parse(line).with_context(|| place.to_owned())?;
        ensure!(
            keys.iter().all(|it| it.id() != key.id()),
            "{place}: the key {} is there twice: remove one of the two",
            key.id()
        );
        ensure!(
            keys.len() < MOST_KEYS,
            "{place}: the file has {MOST_KEYS} keys already: remove the one that is used no longer"
        );
        keys.push(key);
        Ok(())
    })?;
    let mut keys = keys.into_iter();
    let Some(signing) = keys.next() else {
        bail!("{} holds no key", path.display());
    };
    let other = keys.next();
    Ok(PeerKeys { signing, other })
}

/// Parses one line. Errors do not quote it: it is a secret.
fn parse(line: &str) -> Result<SigningKey> {
    let mut words = line.split_whitespace();
    let parts = (words.next(), words.next(), words.next(), words.next());
    let (Some(PEER_MARK), Some(id), Some(digits), None) = parts else {
        ensure!(
            parts.0 != Some(MARK),
            "a worker's key, which never speaks for a manager: `memlb keygen --peer` makes one of managers"
        );
        bail!(
            "not a key: expected \"{PEER_MARK} ID SECRET\" as `memlb keygen --peer` writes it, with the secret in \
             64 hexadecimal digits"
        );
    };
    let (id, secret) = parse_secret(id, digits)?;
    Ok(SigningKey::new(id, &secret))
}
