//! A token bucket: limits a rate, and allows bursts.

use std::time::Instant;

/// Tokens that fill up steadily.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    per_second: u32,
    burst: u32,
    left: u32,
    filled: Instant,
}

impl TokenBucket {
    /// Returns a full bucket that holds the tokens of one second.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self::with_burst(per_second, per_second, now)
    }

    /// Returns a full bucket of `burst` tokens.
    pub fn with_burst(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            per_second,
            burst,
            left: burst,
            filled: now,
        }
    }

    /// Takes `wanted` tokens, if there are so many; returns whether there were.
    pub fn try_acquire(&mut self, wanted: u32, now: Instant) -> bool {
        let left = self.left(now).checked_sub(wanted);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// Returns the number of tokens.
    pub fn left(&mut self, now: Instant) -> u32 {
        let waited = now.saturating_duration_since(self.filled).as_millis();
        let gained = waited * u128::from(self.per_second) / 1_000;
        if gained > 0 {
            let gained = u32::try_from(gained).unwrap_or(self.burst);
            self.left = self.left.saturating_add(gained).min(self.burst);
            self.filled = now;
        }
        self.left
    }
}
