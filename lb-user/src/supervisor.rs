//! What systemd is told of this process, where systemd started it: that it is ready, that its loop
//! still turns, that it stops.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

/// Tells that the service does its work from now on (`Type=notify`).
pub fn ready() {
    tell(NotifyState::Ready);
}

/// Tells that the service ends by itself.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// The watchdog that systemd keeps for this process (`WatchdogSec=`), if it does.
#[derive(Debug)]
pub struct Watchdog(Option<Interval>);

impl Watchdog {
    /// Takes up what systemd asks for.
    pub fn start() -> Self {
        Self::lasting(sd_notify::watchdog_enabled())
    }

    fn lasting(patience: Option<Duration>) -> Self {
        // Twice as often as need be, as sd_watchdog_enabled(3) recommends.
        let period = patience.map(|it| it / 2).filter(|it| !it.is_zero());
        Self(period.map(|period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        }))
    }

    /// Waits until systemd wants to hear again; never returns where it does not. Polled by the very
    /// loop that must not hang, which then calls [`Self::pat`].
    pub async fn is_due(&mut self) {
        match &mut self.0 {
            Some(ticks) => _ = ticks.tick().await,
            None => std::future::pending().await,
        }
    }

    /// Tells that the loop has come round again.
    pub fn pat(&self) {
        tell(NotifyState::Watchdog);
    }
}

fn tell(state: NotifyState<'_>) {
    // Does nothing where nobody listens.
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("tell systemd of this service's state: {error}");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_due_twice_in_the_time_allowed() {
        let mut watchdog = Watchdog::lasting(Some(Duration::from_secs(10)));
        watchdog.is_due().await;
        let before = Instant::now();
        watchdog.is_due().await;
        assert_eq!(before.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn is_never_due_without_a_watchdog() {
        for none in [None, Some(Duration::ZERO)] {
            let mut watchdog = Watchdog::lasting(none);
            assert!(
                timeout(Duration::from_secs(3600), watchdog.is_due())
                    .await
                    .is_err()
            );
        }
    }
}
