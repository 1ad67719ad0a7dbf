//! Notices that the machine slept, by the one clock that went on meanwhile.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Less than this is no sleep.
const LEAST: Duration = Duration::from_millis(500);

/// Compares the clock that counts sleep with the one that does not.
#[derive(Debug)]
pub(super) struct Suspension {
    slept: Duration,
}

impl Suspension {
    pub fn new() -> Self {
        Self { slept: slept() }
    }

    /// Returns how long the machine slept since the last call, if it did.
    pub fn detect(&mut self) -> Option<Duration> {
        self.compare(slept())
    }

    fn compare(&mut self, slept: Duration) -> Option<Duration> {
        let more = slept.saturating_sub(self.slept);
        self.slept = slept;
        (more >= LEAST).then_some(more)
    }
}

/// How long the machine has slept since it was started.
fn slept() -> Duration {
    let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    // In this order the difference is never too large.
    let boot = read(ClockId::CLOCK_BOOTTIME);
    boot.saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_noticed_once_and_a_busy_machine_is_none() {
        let mut suspension = Suspension::new();
        assert_eq!(suspension.detect(), None);
        let before = suspension.slept;
        assert_eq!(
            suspension.compare(before + Duration::from_millis(499)),
            None
        );
        let hour = Duration::from_secs(3_600);
        assert_eq!(
            suspension.compare(before + Duration::from_millis(499) + hour),
            Some(hour)
        );
        assert_eq!(
            suspension.compare(before + Duration::from_millis(499) + hour),
            None
        );
    }
}
