//! A token bucket: limits a rate, and allows bursts.

use std::time::{Duration, Instant};

/// In a second.
const NANOSECONDS: u128 = 1_000_000_000;

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
        let waited = now.saturating_duration_since(self.filled).as_nanos();
        let per_second = u128::from(self.per_second);
        let gained = waited * per_second / NANOSECONDS;
        if gained > 0 {
            // The rest of the time counts towards the next token.
            let rest = waited * per_second % NANOSECONDS / per_second;
            let rest = Duration::from_nanos(u64::try_from(rest).unwrap_or(0));
            let gained = u32::try_from(gained).unwrap_or(self.burst);
            self.left = self.left.saturating_add(gained).min(self.burst);
            self.filled = now.checked_sub(rest).unwrap_or(now);
        }
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_at_its_rate_however_often_it_is_read() {
        let start = Instant::now();
        for interval_us in [900, 1_700, 9_900] {
            let mut bucket = TokenBucket::with_burst(200, 1_000, start);
            assert!(bucket.try_acquire(1_000, start));
            let mut left = 0;
            for at_us in (0..=1_000_000).step_by(interval_us) {
                left = bucket.left(start + Duration::from_micros(at_us as u64));
            }
            assert!(
                (198..=200).contains(&left),
                "every {interval_us} us: {left}"
            );
        }
    }
}
