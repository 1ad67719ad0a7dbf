//! Limits how many refused datagrams of one source the manager processes.
//!
//! Each source (address and port) has a token bucket: a refused datagram takes a token. A source with a
//! recently accepted heartbeat is never limited, so that spoofed datagrams with its address do not suppress it.
//! Memory is fixed.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::token_bucket::TokenBucket;

/// How many refused datagrams a source may send at once, and for each second.
const BURST: u32 = 1_000;
const REFILL_PER_SECOND: u32 = 200;

/// Sources share buckets by a hash with a random key. A shared bucket still allows more than an agent
/// needs.
const BUCKETS: usize = 4_096;

/// How long an accepted heartbeat exempts its source, and how many sources are exempt at most.
const EXEMPT_FOR: Duration = Duration::from_secs(30);
const MAX_EXEMPT: usize = 16_384;

/// The limits of all sources.
#[derive(Debug)]
pub struct SourceLimits {
    buckets: Vec<TokenBucket>,
    /// The sources of accepted heartbeats, with the time of the last one.
    exempt: HashMap<SocketAddr, Instant>,
    /// When expired entries of `exempt` were last removed.
    swept: Instant,
    hasher: RandomState,
}

impl SourceLimits {
    pub fn new(now: Instant) -> Self {
        Self {
            buckets: vec![TokenBucket::with_burst(REFILL_PER_SECOND, BURST, now); BUCKETS],
            exempt: HashMap::new(),
            swept: now,
            hasher: RandomState::new(),
        }
    }

    /// Whether a datagram of this source is within the limit.
    pub fn allows(&mut self, from: SocketAddr, now: Instant) -> bool {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < EXEMPT_FOR;
        self.bucket(from).left(now) > 0 || self.exempt.get(&from).is_some_and(is_recent)
    }

    /// Records that a datagram was refused.
    pub fn record_refused(&mut self, from: SocketAddr, now: Instant) {
        self.bucket(from).try_acquire(1, now);
    }

    /// Records that a heartbeat was accepted.
    pub fn record_accepted(&mut self, from: SocketAddr, now: Instant) {
        if let Some(at) = self.exempt.get_mut(&from) {
            *at = now;
            return;
        }
        // Once a second at most, because it takes time with many sources.
        let full = self.exempt.len() >= MAX_EXEMPT;
        if full && now.saturating_duration_since(self.swept) >= Duration::from_secs(1) {
            self.swept = now;
            self.exempt
                .retain(|_, at| now.saturating_duration_since(*at) < EXEMPT_FOR);
        }
        if self.exempt.len() < MAX_EXEMPT {
            self.exempt.insert(from, now);
        }
    }

    fn bucket(&mut self, from: SocketAddr) -> &mut TokenBucket {
        let index = self.hasher.hash_one(from) as usize % BUCKETS;
        &mut self.buckets[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(port: u16) -> SocketAddr {
        ([192, 168, 56, 103], port).into()
    }

    /// Sends that many bad datagrams; returns how many were processed.
    fn flood(limits: &mut SourceLimits, from: SocketAddr, count: u32, now: Instant) -> u32 {
        (0..count)
            .filter(|_| {
                let is_allowed = limits.allows(from, now);
                if is_allowed {
                    limits.record_refused(from, now);
                }
                is_allowed
            })
            .count() as u32
    }

    #[test]
    fn flood_is_limited_and_admitted_again_slowly() {
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
    fn flood_from_an_agents_host_or_address_does_not_limit_the_agent() {
        let start = Instant::now();
        let mut limits = SourceLimits::new(start);
        limits.record_accepted(source(1), start);
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
                    limits.record_refused(from, now);
                }
            }
        }
        let cut_off = (1..=1_000).filter(|&port| !limits.allows(source(port), now));
        assert_eq!(cut_off.count(), 0);
        assert_eq!(limits.buckets.len(), BUCKETS);
        for port in 0..u16::MAX {
            limits.record_accepted(source(port), now);
        }
        assert!(limits.exempt.len() <= MAX_EXEMPT);
        // Later sources find room again.
        let later = now + EXEMPT_FOR;
        limits.record_accepted(([10, 0, 0, 1], 1).into(), later);
        assert_eq!(limits.exempt.len(), 1);
    }
}
