//! Proof of freshness: a number of the manager's that heartbeats must carry back.
//!
//! A manager draws it at random when it starts and anew every ten seconds. A heartbeat recorded
//! before the manager's start, or more than twenty seconds ago, carries none that counts.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long the newest nonce stays the newest.
const ROTATE_AFTER: Duration = Duration::from_secs(10);

/// A number drawn by a manager, written as 16 hexadecimal digits.
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

/// The two nonces that count.
#[derive(Debug)]
pub struct Nonces {
    newest: Nonce,
    before: Option<Nonce>,
    drawn: Instant,
}

impl Nonces {
    /// Draws the first.
    ///
    /// # Errors
    ///
    /// Says why the kernel gives no random number.
    pub fn new(now: Instant) -> Result<Self> {
        Ok(Self {
            newest: Nonce(getrandom::u64().context("draw a nonce")?),
            before: None,
            drawn: now,
        })
    }

    /// Draws the next if it is time: one at a time, so that after a pause of the manager's own
    /// what waits in its queue is still fresh.
    pub fn rotate(&mut self, now: Instant) {
        if now.saturating_duration_since(self.drawn) < ROTATE_AFTER {
            return;
        }
        // A kernel that gave one gives another; if not, the old one serves on.
        if let Ok(next) = getrandom::u64() {
            self.before = Some(std::mem::replace(&mut self.newest, Nonce(next)));
            self.drawn = now;
        }
    }

    pub fn newest(&self) -> Nonce {
        self.newest
    }

    pub fn judge(&self, nonce: Option<Nonce>) -> Freshness {
        match nonce {
            None => Freshness::Stale,
            Some(nonce) if nonce == self.newest => Freshness::Fresh,
            Some(nonce) if Some(nonce) == self.before => Freshness::Ageing,
            Some(_) => Freshness::Stale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_for_ten_to_twenty_seconds() {
        let start = Instant::now();
        let mut nonces = Nonces::new(start).unwrap();
        let first = Some(nonces.newest());
        assert_eq!(nonces.judge(None), Freshness::Stale);
        nonces.rotate(start + Duration::from_millis(9_999));
        assert_eq!(nonces.judge(first), Freshness::Fresh);
        nonces.rotate(start + Duration::from_secs(10));
        assert_eq!(nonces.judge(first), Freshness::Ageing);
        let second = Some(nonces.newest());
        assert_ne!(first, second);
        nonces.rotate(start + Duration::from_secs(19));
        assert_eq!(nonces.judge(first), Freshness::Ageing);
        nonces.rotate(start + Duration::from_secs(20));
        assert_eq!(nonces.judge(first), Freshness::Stale);
        assert_eq!(nonces.judge(second), Freshness::Ageing);
    }

    #[test]
    fn a_pause_makes_no_queued_heartbeat_stale() {
        let start = Instant::now();
        let mut nonces = Nonces::new(start).unwrap();
        let first = Some(nonces.newest());
        nonces.rotate(start + Duration::from_secs(3_600));
        nonces.rotate(start + Duration::from_secs(3_601));
        assert_eq!(nonces.judge(first), Freshness::Ageing);
    }
}
