//! Limits how many refused datagrams of one source the manager processes.
//!
//! Each source (address and port) has a token bucket: a refused datagram takes a token. A source with a
//! recently accepted heartbeat is never limited, so that spoofed datagrams with its address do not suppress it.
//! Memory is fixed.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How many refused datagrams a source may send at once, and for each second.
const BURST: u32 = 1_000;
const REFILL_PER_SECOND: u32 = 200;

/// Sources share buckets by a hash with a random key. A shared bucket still allows more than an agent
/// needs.
const BUCKETS: usize = 4_096;

/// How long an accepted heartbeat exempts its source, and how many sources are exempt at most.
const PROVEN_FOR: Duration = Duration::from_secs(30);
const MAX_PROVEN: usize = 16_384;

/// The limits of all sources.
#[derive(Debug)]
pub struct SourceLimits {
    buckets: Vec<Bucket>,
    proven: HashMap<SocketAddr, Instant>,
    /// When expired entries of `proven` were last removed.
    swept: Instant,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u32,
    filled: Instant,
}

impl SourceLimits {
    pub fn new(now: Instant) -> Self {
        let full = Bucket {
            left: BURST,
            filled: now,
        };
        Self {
            buckets: vec![full; BUCKETS],
            proven: HashMap::new(),
            swept: now,
            hasher: RandomState::new(),
        }
    }

    /// Whether a datagram of this source is within the limit.
    pub fn allows(&mut self, from: SocketAddr, now: Instant) -> bool {
        self.bucket(from, now).left > 0
            || self
                .proven
                .get(&from)
                .is_some_and(|at| now.saturating_duration_since(*at) < PROVEN_FOR)
    }

    /// Records that a datagram was refused.
    pub fn refused(&mut self, from: SocketAddr, now: Instant) {
        let bucket = self.bucket(from, now);
        bucket.left = bucket.left.saturating_sub(1);
    }

    /// Records that a heartbeat was accepted.
    pub fn accepted(&mut self, from: SocketAddr, now: Instant) {
        if let Some(at) = self.proven.get_mut(&from) {
            *at = now;
            return;
        }
        // Once a second at most: it takes time with many sources.
        let full = self.proven.len() >= MAX_PROVEN;
        if full && now.saturating_duration_since(self.swept) >= Duration::from_secs(1) {
            self.swept = now;
            self.proven
                .retain(|_, at| now.saturating_duration_since(*at) < PROVEN_FOR);
        }
        if self.proven.len() < MAX_PROVEN {
            self.proven.insert(from, now);
        }
    }

    fn bucket(&mut self, from: SocketAddr, now: Instant) -> &mut Bucket {
        let index = self.hasher.hash_one(from) as usize % BUCKETS;
        let bucket = &mut self.buckets[index];
        let waited = now.saturating_duration_since(bucket.filled).as_millis();
        let drops = waited * u128::from(REFILL_PER_SECOND) / 1_000;
        if drops > 0 {
            let drops = u32::try_from(drops).unwrap_or(BURST).min(BURST);
            bucket.left = (bucket.left + drops).min(BURST);
            bucket.filled = now;
        }
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(port: u16) -> SocketAddr {
        ([192, 168, 56, 103], port).into()
    }

    /// Sends that many bad datagrams; returns how many were looked at.
    fn flood(limits: &mut SourceLimits, from: SocketAddr, count: u32, now: Instant) -> u32 {
        (0..count)
            .filter(|_| {
                let looked_at = limits.allows(from, now);
                if looked_at {
                    limits.refused(from, now);
                }
                looked_at
            })
            .count() as u32
    }

    #[test]
    fn a_flood_is_cut_off_and_let_in_again_slowly() {
        let start = Instant::now();
        let mut limits = SourceLimits::new(start);
        assert_eq!(flood(&mut limits, source(1), 100_000, start), BURST);
        let mut seen = 0;
        for millisecond in 1..=1_000 {
            let now = start + Duration::from_millis(millisecond);
            seen += flood(&mut limits, source(1), 100, now);
        }
        assert_eq!(seen, REFILL_PER_SECOND);
    }

    #[test]
    fn a_flood_from_its_own_host_or_with_its_very_address_silences_no_agent() {
        let start = Instant::now();
        let mut limits = SourceLimits::new(start);
        limits.accepted(source(1), start);
        flood(&mut limits, source(1), 100_000, start);
        flood(&mut limits, source(2), 100_000, start);
        assert!(limits.allows(source(1), start + Duration::from_secs(29)));
        let later = start + Duration::from_secs(30);
        flood(&mut limits, source(1), 100_000, later);
        assert!(!limits.allows(source(1), later));
    }

    #[test]
    fn spoofed_sources_limit_no_agent_and_take_no_memory() {
        let start = Instant::now();
        let mut limits = SourceLimits::new(start);
        let mut now = start;
        for second in 0..3u32 {
            // 100,000 a second, each from another address.
            for number in 0..100_000u32 {
                now = start + Duration::from_micros(u64::from(second * 100_000 + number) * 10);
                let address = (number * 7 + second).to_be_bytes();
                let from = (address, 9).into();
                if limits.allows(from, now) {
                    limits.refused(from, now);
                }
            }
        }
        let cut_off = (1..=1_000).filter(|&port| !limits.allows(source(port), now));
        assert_eq!(cut_off.count(), 0);
        assert_eq!(limits.buckets.len(), BUCKETS);
        for port in 0..u16::MAX {
            limits.accepted(source(port), now);
        }
        assert!(limits.proven.len() <= MAX_PROVEN);
        // Later sources find room again.
        let later = now + PROVEN_FOR;
        limits.accepted(([10, 0, 0, 1], 1).into(), later);
        assert_eq!(limits.proven.len(), 1);
    }
}
