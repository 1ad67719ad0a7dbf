//! Detects that the machine was suspended, by the clock that runs meanwhile.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The shortest suspension that is reported.
const MIN_SUSPENSION: Duration = Duration::from_millis(500);

/// Compares the clock that counts suspensions with the one that does not.
#[derive(Debug)]
pub(super) struct Suspension {
    suspended: Duration,
}

impl Suspension {
    pub fn new() -> Self {
        Self {
            suspended: suspended(),
        }
    }

    /// Returns how long the machine was suspended since the last call, if it was.
    pub fn detect(&mut self) -> Option<Duration> {
        self.compare(suspended())
    }

    fn compare(&mut self, suspended: Duration) -> Option<Duration> {
        let more = suspended.saturating_sub(self.suspended);
        self.suspended = suspended;
        (more >= MIN_SUSPENSION).then_some(more)
    }
}

/// Returns how long the machine was suspended since its start.
fn suspended() -> Duration {
    let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    // In this order, the difference is never too large.
    let boot = read(ClockId::CLOCK_BOOTTIME);
    boot.saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspension_is_detected_once() {
        let mut suspension = Suspension::new();
        assert_eq!(suspension.detect(), None);
        let before = suspension.suspended;
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
