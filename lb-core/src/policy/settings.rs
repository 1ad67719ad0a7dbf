//! Settings that several policies share.

use std::fmt;
use std::time::Duration;

use crate::memory::Pressure;

/// Settings of the policies that spread connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpreadSettings {
    /// The least time between two computations of the weights.
    pub rebalance_interval: Duration,
    /// The part of a worker's memory that new connections must leave free.
    pub reserve_percent: u32,
    /// From this memory pressure on, a worker gets no new connection.
    pub pressure_limit: Pressure,
    /// The time in which a worker that came back gets less than its share.
    pub ramp_up: Duration,
    pub max_share: MaxShare,
}

impl Default for SpreadSettings {
    fn default() -> Self {
        Self {
            rebalance_interval: Duration::from_millis(250),
            reserve_percent: 5,
            pressure_limit: Pressure(2_000),
            ramp_up: Duration::from_secs(10),
            max_share: MaxShare::Auto,
        }
    }
}

/// The largest share of a service's new connections for one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxShare {
    /// 6 / (n + 5) of the reported headroom, where n workers have some.
    Auto,
    /// In percent; an equal share is always allowed.
    Percent(u32),
}

impl fmt::Display for MaxShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}
