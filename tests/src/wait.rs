//! Waits for a condition with a deadline instead of sleeping.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Checks `condition` every 5 ms until it returns a value, and returns that.
///
/// # Errors
/// When `deadline` passes first; the error has `what`.
pub fn wait_for<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = condition() {
            return Ok(answer);
        }
        if start.elapsed() >= deadline {
            bail!("{what}: timeout after {deadline:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Checks `condition` every 5 ms until it holds, and returns how long that took.
///
/// # Errors
/// When `deadline` passes first; the error has `what`.
pub fn wait_until(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<Duration> {
    let start = Instant::now();
    wait_for(deadline, what, || condition().then(|| start.elapsed()))
}

/// Checks `condition` every 5 ms until it holds, and returns how long that took.
///
/// # Panics
/// When `deadline` passes first; the message has `what`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, condition: impl FnMut() -> bool) -> Duration {
    wait_until(deadline, what, condition).unwrap_or_else(|error| panic!("{error}"))
}
