//! The layout of a pool of NAT ports.

use lb_common::maps::PORTS_PER_WORD;

use crate::config::Config;

/// How many words of `port_words` a pool and each of its addresses have.
#[derive(Debug, Clone, Copy)]
pub struct PoolLayout {
    /// Configured NAT addresses of IPv4 and of IPv6.
    pub sources: [u16; 2],
    pub source_words: u32,
    pub pool_words: u32,
}

impl PoolLayout {
    pub fn of(config: &Config) -> Self {
        let sources = &config.manager.nat_sources;
        let count = |is_v4| {
            let of_family = sources.iter().filter(|source| source.is_ipv4() == is_v4);
            u16::try_from(of_family.count()).unwrap_or(u16::MAX)
        };
        let sources = [count(true), count(false)];
        let source_words = config.limits.nat_ports.count().div_ceil(PORTS_PER_WORD);
        let [v4, v6] = sources;
        Self {
            sources,
            source_words,
            pool_words: source_words * u32::from(v4.max(v6).max(1)),
        }
    }
}
