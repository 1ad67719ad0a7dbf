//! The clock of the programs.

use anyhow::{Context, Result};

/// Returns CLOCK_MONOTONIC in nanoseconds, the clock of the programs.
pub fn monotonic_ns() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .context("read CLOCK_MONOTONIC")?;
    let (seconds, nanoseconds) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    Ok(seconds * 1_000_000_000 + nanoseconds)
}
