//! Notifies systemd, if it started this process: ready, stopping, and the watchdog.

use std::{path::PathBuf, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

/// How much longer a start may take after [`waiting`].
const START_EXTENSION: Duration = Duration::from_secs(30);

/// Notifies that the service works (`Type=notify`).
pub fn ready() {
    notify(NotifyState::Ready);
}

/// Notifies what the start waits for, and that it may take longer.
pub fn waiting(for_what: &str) {
    let more = u32::try_from(START_EXTENSION.as_micros()).unwrap_or(u32::MAX);
    notify(NotifyState::Status(for_what));
    notify(NotifyState::ExtendTimeoutUsec(more));
}

/// The directory in /run that systemd made for this service, if it started it.
pub fn runtime_directory() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("RUNTIME_DIRECTORY")?);
    directory.is_absolute().then_some(directory)
}

/// Notifies that the service ends.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

/// The watchdog of this process (`WatchdogSec=`), if it has one.
#[derive(Debug)]
pub struct Watchdog(Option<Interval>);

impl Watchdog {
    /// Starts with the period that systemd requires.
    pub fn start() -> Self {
        Self::lasting(sd_notify::watchdog_enabled())
    }

    fn lasting(patience: Option<Duration>) -> Self {
        // Twice in the required period, as sd_watchdog_enabled(3) recommends.
        let period = patience.map(|it| it / 2).filter(|it| !it.is_zero());
        Self(period.map(|period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        }))
    }

    /// Waits until a notification is due; never returns without a watchdog. The loop that must not hang polls it,
    /// and then calls [`Self::notify`].
    pub async fn is_due(&mut self) {
        match &mut self.0 {
            Some(ticks) => _ = ticks.tick().await,
            None => std::future::pending().await,
        }
    }

    /// Notifies that the loop runs.
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
