//! A token bucket, which limits a rate.

use std::time::Instant;

/// A bucket that holds the tokens of one second and fills continuously.
#[derive(Debug)]
pub struct TokenBucket {
    per_second: u32,
    left: u32,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second,
            left: per_second,
            filled: now,
        }
    }

    /// Takes `wanted` tokens if there are as many, and returns whether there were.
    pub fn try_acquire(&mut self, wanted: u32, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.filled).as_millis();
        let gained = waited * u128::from(self.per_second) / 1_000;
        if gained > 0 {
            let gained = u32::try_from(gained).unwrap_or(self.per_second);
            self.left = self.left.saturating_add(gained).min(self.per_second);
            self.filled = now;
        }
        let left = self.left.checked_sub(wanted);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}
