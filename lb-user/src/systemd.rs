//! Notifications to systemd, if it started this process: ready, stopping, watchdog.

use std::{path::PathBuf, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

/// By how much [`waiting`] extends the start timeout.
const START_EXTENSION: Duration = Duration::from_secs(30);

/// Notifies systemd that the service is ready (`Type=notify`).
pub fn ready() {
    notify(NotifyState::Ready);
}

/// Notifies systemd of the condition that the start waits for, and extends the start timeout.
pub fn waiting(condition: &str) {
    let more = u32::try_from(START_EXTENSION.as_micros()).unwrap_or(u32::MAX);
    notify(NotifyState::Status(condition));
    notify(NotifyState::ExtendTimeoutUsec(more));
}

/// The runtime directory that systemd created for this service (`RuntimeDirectory=`), if any.
pub fn runtime_directory() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("RUNTIME_DIRECTORY")?);
    directory.is_absolute().then_some(directory)
}

/// Notifies systemd that the service stops.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

/// The watchdog of this process (`WatchdogSec=`), if systemd requires one.
#[derive(Debug)]
pub struct Watchdog(Option<Interval>);

impl Watchdog {
    /// Starts with the period that systemd requires.
    pub fn start() -> Self {
        Self::with_timeout(sd_notify::watchdog_enabled())
    }

    fn with_timeout(timeout: Option<Duration>) -> Self {
        // Half of the timeout, as sd_watchdog_enabled(3) recommends.
        let period = timeout.map(|it| it / 2).filter(|it| !it.is_zero());
        Self(period.map(|period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        }))
    }

    /// Waits until a notification is due; never returns without a watchdog. The watched loop polls it, and then calls
    /// [`Self::notify`].
    pub async fn due(&mut self) {
        match &mut self.0 {
            Some(ticks) => _ = ticks.tick().await,
            None => std::future::pending().await,
        }
    }

    /// Notifies systemd that the loop runs.
    pub fn notify(&self) {
        notify(NotifyState::Watchdog);
    }
}

fn notify(state: NotifyState<'_>) {
    // Does nothing without systemd.
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("notify systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn watchdog_message_is_due_twice_per_timeout() {
        let mut watchdog = Watchdog::with_timeout(Some(Duration::from_secs(10)));
        watchdog.due().await;
        let before = Instant::now();
        watchdog.due().await;
        assert_eq!(before.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn no_watchdog_message_is_due_without_a_watchdog() {
        for none in [None, Some(Duration::ZERO)] {
            let mut watchdog = Watchdog::with_timeout(none);
            assert!(
                timeout(Duration::from_secs(3600), watchdog.due())
                    .await
                    .is_err()
            );
        }
    }
}
