//! Proof of freshness: a number of the manager's that heartbeats must carry back.
//!
//! It is different for each address, and changes every ten seconds. A heartbeat recorded before the
//! manager's start, or more than twenty seconds ago, or at another address, carries none that counts.
//! Nothing is remembered of any sender: a nonce is a keyed hash of its address.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use zeroize::Zeroizing;

use crate::keys::{Key, KeyId, SECRET_BYTES};

/// How long the newest secret stays the newest.
const ROTATE_AFTER: Duration = Duration::from_secs(10);

/// A number that a manager gave to an address, written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub u64);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a heartbeat's nonce proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The newest.
    Fresh,
    /// The one before: fresh, but its sender should learn the newest.
    Ageing,
    Stale,
}

/// The two secrets from which nonces are made that count.
#[derive(Debug)]
pub struct Nonces {
    newest: Key,
    before: Option<Key>,
    drawn: Instant,
}

impl Nonces {
    /// Draws the first secret.
    ///
    /// # Errors
    ///
    /// Says why the kernel gives no random number.
    pub fn new(now: Instant) -> Result<Self> {
        Ok(Self {
            newest: draw()?,
            before: None,
            drawn: now,
        })
    }

    /// Draws the next secret if it is time: one at a time, so that after a pause of the manager's own
    /// what waits in its queue is still fresh.
    pub fn rotate(&mut self, now: Instant) {
        if now.saturating_duration_since(self.drawn) < ROTATE_AFTER {
            return;
        }
        // A kernel that gave one gives another; if not, the old one serves on.
        if let Ok(next) = draw() {
            self.before = Some(std::mem::replace(&mut self.newest, next));
            self.drawn = now;
        }
    }

    /// Returns the nonce that this address should use.
    pub fn of(&self, address: IpAddr) -> Nonce {
        nonce(&self.newest, address)
    }

    /// Judges a nonce that came from this address.
    pub fn judge(&self, carried: Option<Nonce>, address: IpAddr) -> Freshness {
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

fn draw() -> Result<Key> {
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(secret.as_mut()).context("draw a secret for nonces")?;
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
    fn counts_for_ten_to_twenty_seconds() {
        let start = Instant::now();
        let mut nonces = Nonces::new(start).unwrap();
        let first = Some(nonces.of(HERE));
        assert_eq!(nonces.judge(None, HERE), Freshness::Stale);
        nonces.rotate(start + Duration::from_millis(9_999));
        assert_eq!(nonces.judge(first, HERE), Freshness::Fresh);
        nonces.rotate(start + Duration::from_secs(10));
        assert_eq!(nonces.judge(first, HERE), Freshness::Ageing);
        let second = Some(nonces.of(HERE));
        assert_ne!(first, second);
        nonces.rotate(start + Duration::from_secs(19));
        assert_eq!(nonces.judge(first, HERE), Freshness::Ageing);
        nonces.rotate(start + Duration::from_secs(20));
        assert_eq!(nonces.judge(first, HERE), Freshness::Stale);
        assert_eq!(nonces.judge(second, HERE), Freshness::Ageing);
    }

    #[test]
    fn a_pause_makes_no_queued_heartbeat_stale() {
        let start = Instant::now();
        let mut nonces = Nonces::new(start).unwrap();
        let first = Some(nonces.of(HERE));
        nonces.rotate(start + Duration::from_secs(3_600));
        nonces.rotate(start + Duration::from_secs(3_601));
        assert_eq!(nonces.judge(first, HERE), Freshness::Ageing);
    }

    #[test]
    fn each_address_and_each_manager_has_its_own() {
        let now = Instant::now();
        let nonces = Nonces::new(now).unwrap();
        assert_ne!(nonces.of(HERE), nonces.of(ELSEWHERE));
        assert_eq!(
            nonces.judge(Some(nonces.of(HERE)), ELSEWHERE),
            Freshness::Stale
        );
        let other = Nonces::new(now).unwrap();
        assert_eq!(other.judge(Some(nonces.of(HERE)), HERE), Freshness::Stale);
    }
}
