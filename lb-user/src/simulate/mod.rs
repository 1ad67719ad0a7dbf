//! Policies tried in virtual time: the core decides as it does in the manager, over workers, clients
//! and a network that exist in memory only.
//!
//! Connections come at random (a Poisson process), stay for a time that is distributed exponentially,
//! and take memory while they stay. Workers report their memory now and then, late, or not at all when
//! a datagram is lost. One seed gives one history of connections, the same for every policy.

mod kernel;
mod random;
mod recording;
mod result;
mod scenario;
mod svg;
mod world;

pub use recording::Recording;
pub use result::{Outcome, Results};
pub use scenario::{Background, Contender, Scenario, WorkerModel};
pub use svg::plot;

use std::time::Duration;

/// Tries each contender at each interval between reports.
pub fn compare(scenario: &Scenario, contenders: &[Contender], intervals: &[Duration]) -> Results {
    let mut outcomes = Vec::new();
    for &interval in intervals {
        for &contender in contenders {
            outcomes.push(world::live(scenario, contender, interval));
        }
    }
    Results {
        scenario: scenario.to_string(),
        outcomes,
    }
}

#[cfg(test)]
mod tests;
