//! Compares policies in virtual time, over simulated workers, clients and network. The manager's core
//! decides, and the packet programs' code chooses the worker of each connection from tables in memory.
//!
//! Connections arrive as a Poisson process, last for an exponentially distributed time, and use memory
//! meanwhile. Reports are sent at an interval; they can be late or lost. A seed gives one sequence of
//! connections, the same for every policy.

mod random;
mod recording;
mod result;
mod scenario;
mod simulation;
mod svg;
mod tables;

pub use recording::Recording;
pub use result::{Outcome, Results};
pub use scenario::{BackgroundLoad, Contender, Scenario, WorkerModel};
pub use svg::plot;

use std::time::Duration;

/// Simulates each contender at each report interval.
pub fn compare(scenario: &Scenario, contenders: &[Contender], intervals: &[Duration]) -> Results {
    compare_with(scenario, contenders, intervals, |_, _, _| {})
}

/// Like [`compare`], and calls `progress` before each simulation, with the number of finished ones.
pub fn compare_with(
    scenario: &Scenario,
    contenders: &[Contender],
    intervals: &[Duration],
    mut progress: impl FnMut(usize, Contender, Duration),
) -> Results {
    let mut outcomes = Vec::new();
    for &interval in intervals {
        for &contender in contenders {
            progress(outcomes.len(), contender, interval);
            outcomes.push(simulation::simulate(scenario, contender, interval));
        }
    }
    Results {
        scenario: scenario.to_string(),
        outcomes,
    }
}

#[cfg(test)]
mod tests;
