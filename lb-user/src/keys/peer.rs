//! The key file of peers: one line `memlb-peer-key-1 ID SECRET`, or two while a key is replaced.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{
    KeyId, SigningKey,
    file::{PEER_MARK, WORKER_MARK, credential, parse_secret, read_lines},
};

/// The usual file of the key.
pub const PEER_KEY: &str = "/etc/memlb/peer.key";

/// The name of the credential in the package's service: systemd passes root's file to the manager's user.
const CREDENTIAL: &str = "memlb-peer.key";

/// The most keys: the one in use and the one that replaces it.
const MAX_KEYS: usize = 2;

/// The keys that two managers share. The first one signs, and both verify.
#[derive(Debug, Clone)]
pub struct PeerKeys {
    signing: SigningKey,
    other: Option<SigningKey>,
}

impl PeerKeys {
    /// Returns the key that this manager signs with.
    pub fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// Returns a ring of one key.
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
        self.iter().count() == other.iter().count()
            && (self.iter().zip(other.iter())).all(|(own, other)| own.is_same_as(other))
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
    let credential = credential(CREDENTIAL).filter(|_| path == Path::new(PEER_KEY));
    let path = credential.as_deref().unwrap_or(path);
    let mut keys: Vec<SigningKey> = Vec::new();
    read_lines(path, "memlb keygen --peer", |line, location| {
        let key = parse(line).with_context(|| location.to_owned())?;
        ensure!(
            keys.iter().all(|it| it.id() != key.id()),
            "{location}: key {} exists twice: remove one of the two",
            key.id()
        );
        ensure!(
            keys.len() < MAX_KEYS,
            "{location}: the file has {MAX_KEYS} keys already: remove the one that is used no longer"
        );
        keys.push(key);
        Ok(())
    })?;
    let mut keys = keys.into_iter();
    let Some(signing) = keys.next() else {
        bail!("{} has no key", path.display());
    };
    let other = keys.next();
    Ok(PeerKeys { signing, other })
}

/// Parses one line. It is a secret, so that errors do not quote it.
fn parse(line: &str) -> Result<SigningKey> {
    let mut words = line.split_whitespace();
    let parts = (words.next(), words.next(), words.next(), words.next());
    let (Some(PEER_MARK), Some(id), Some(digits), None) = parts else {
        ensure!(
            parts.0 != Some(WORKER_MARK),
            "this is a key of a worker, not of managers: `memlb keygen --peer` creates one of managers"
        );
        bail!(
            "not a key: expected \"{PEER_MARK} ID SECRET\" as `memlb keygen --peer` writes it, with the secret in \
             64 hexadecimal digits"
        );
    };
    let (id, secret) = parse_secret(id, digits)?;
    Ok(SigningKey::new(id, &secret))
}
