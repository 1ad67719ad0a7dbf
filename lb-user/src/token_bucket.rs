//! A limit of a rate: a bucket that holds what one second allows, and fills steadily.

use std::time::Instant;

/// What may be taken, at most so much a second.
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

    /// Takes `wanted` if there is so much, and returns whether there was.
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
