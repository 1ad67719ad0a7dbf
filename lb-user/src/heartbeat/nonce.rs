//! Nonces prove that a heartbeat is fresh: the manager issues them, and heartbeats carry them back.
//!
//! A nonce is a keyed hash of the sender's address, so that the manager stores nothing for each sender. The
//! secret changes every ten seconds. A heartbeat recorded before the manager's start, more than twenty seconds
//! ago, or at another address has no valid nonce.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use zeroize::Zeroizing;

use crate::keys::{Key, KeyId, SECRET_BYTES};

/// How long a secret is the newest one.
const ROTATE_AFTER: Duration = Duration::from_secs(10);

/// A number that a manager issued to an address, written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub u64);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How fresh the nonce of a heartbeat is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Made from the newest secret.
    Fresh,
    /// Made from the former secret: valid, but the sender needs the newest nonce.
    Ageing,
    /// Not valid, or missing.
    Stale,
}

/// The two secrets of valid nonces.
#[derive(Debug)]
pub struct Nonces {
    newest: Key,
    before: Option<Key>,
    generated: Instant,
}

impl Nonces {
    /// Generates the first secret.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if there is no random number.
    pub fn new(now: Instant) -> Result<Self> {
        Ok(Self {
            newest: generate()?,
            before: None,
            generated: now,
        })
    }

    /// Generates the next secret if it is due. It generates one at most, so that after a pause of the manager the
    /// heartbeats in its queue are still fresh.
    pub fn rotate(&mut self, now: Instant) {
        if now.saturating_duration_since(self.generated) < ROTATE_AFTER {
            return;
        }
        // Without a random number, the old secret stays.
        if let Ok(next) = generate() {
            self.before = Some(std::mem::replace(&mut self.newest, next));
            self.generated = now;
        }
    }

    /// Returns the newest nonce of an address.
    pub fn of(&self, address: IpAddr) -> Nonce {
        nonce(&self.newest, address)
    }

    /// Checks a nonce that came from this address.
    pub fn check(&self, carried: Option<Nonce>, address: IpAddr) -> Freshness {
        let Some(carried) = carried else {
            return Freshness::Stale;
        };
        let made_from = |secret: &Key| carried == nonce(secret, address);
        if made_from(&self.newest) {
            Freshness::Fresh
        } else if self.before.as_ref().is_some_and(made_from) {
            Freshness::Ageing
        } else {
            Freshness::Stale
        }
    }
}

fn generate() -> Result<Key> {
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(secret.as_mut()).context("generate a secret for nonces")?;
    Ok(Key::new(String::new(), KeyId(0), &secret))
}

fn nonce(secret: &Key, address: IpAddr) -> Nonce {
    let hash = match address {
        IpAddr::V4(address) => secret.sign(&[&address.octets()]),
        IpAddr::V6(address) => secret.sign(&[&address.octets()]),
    };
    let [first, ..] = hash.as_chunks().0 else {
        return Nonce(0);
    };
    Nonce(u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 56, 103));
    const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 56, 104));

    #[test]
    fn nonce_is_valid_for_ten_to_twenty_seconds() {
        let start = Instant::now();
        let mut nonces = Nonces::new(start).unwrap();
        let first = Some(nonces.of(HERE));
        assert_eq!(nonces.check(None, HERE), Freshness::Stale);
        nonces.rotate(start + Duration::from_millis(9_999));
        assert_eq!(nonces.check(first, HERE), Freshness::Fresh);
        nonces.rotate(start + Duration::from_secs(10));
        assert_eq!(nonces.check(first, HERE), Freshness::Ageing);
        let second = Some(nonces.of(HERE));
        assert_ne!(first, second);
        nonces.rotate(start + Duration::from_secs(19));
        assert_eq!(nonces.check(first, HERE), Freshness::Ageing);
        nonces.rotate(start + Duration::from_secs(20));
        assert_eq!(nonces.check(first, HERE), Freshness::Stale);
        assert_eq!(nonces.check(second, HERE), Freshness::Ageing);
    }

    #[test]
    fn queued_heartbeats_stay_fresh_while_the_manager_is_suspended() {
        let start = Instant::now();
        let mut nonces = Nonces::new(start).unwrap();
        let first = Some(nonces.of(HERE));
        nonces.rotate(start + Duration::from_secs(3_600));
        nonces.rotate(start + Duration::from_secs(3_601));
        assert_eq!(nonces.check(first, HERE), Freshness::Ageing);
    }

    #[test]
    fn nonce_is_bound_to_the_address_and_the_manager() {
        let now = Instant::now();
        let nonces = Nonces::new(now).unwrap();
        assert_ne!(nonces.of(HERE), nonces.of(ELSEWHERE));
        assert_eq!(
            nonces.check(Some(nonces.of(HERE)), ELSEWHERE),
            Freshness::Stale
        );
        let other = Nonces::new(now).unwrap();
        assert_eq!(other.check(Some(nonces.of(HERE)), HERE), Freshness::Stale);
    }
}
