//! Why a backend gets no new connection, or less than its share. All views show the same text.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::milliseconds;
use crate::policy::{MaxShare, Policy};
use crate::service::{Selection, Service};
use crate::worker::Worker;

/// A reason, and its text: a clause that does not name the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShareReason {
    pub kind: ShareReasonKind,
    pub text: String,
}

/// What limits a backend's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShareReasonKind {
    /// No heartbeat since the manager started.
    Unknown,
    /// Its heartbeats are missing.
    Down,
    /// Its agent's check fails.
    Unhealthy,
    /// Its agent stops.
    Leaving,
    /// Maintenance, announced by its agent or ordered by an operator.
    Maintenance,
    Draining,
    /// The operator's weight is 0.
    ZeroWeight,
    /// Drained, with its connections reset.
    Terminated,
    Paused,
    /// Up, but not able to serve in the service's mode.
    Ineligible,
    /// Up, but no packet reaches it, or no reply passes the manager.
    Unreachable,
    /// Up, but its server refuses or does not answer handshakes.
    Failing,
    /// A backup, while a primary worker can serve.
    Backup,
    /// Policy `memory` selects another worker.
    NotSelected,
    /// Policy `memory` would select it, and waits for the end of the hold.
    Waiting,
    /// No memory above the reserve.
    Reserve,
    /// Its memory pressure reaches the limit.
    Pressure,
    /// It has as many connections as it may have.
    Full,
    /// It came back recently and gets less than its share.
    Ramp,
    /// `max_share` limits its share.
    Cap,
}

impl ShareReasonKind {
    /// Whether an operator should examine the worker: no operator ordered the state, and it does not end by itself.
    pub fn is_trouble(self) -> bool {
        matches!(
            self,
            Self::Down
                | Self::Unhealthy
                | Self::Terminated
                | Self::Ineligible
                | Self::Unreachable
                | Self::Failing
                | Self::Reserve
                | Self::Pressure
                | Self::Full
        )
    }

    /// Whether an operator's order is the reason.
    pub fn is_order(self) -> bool {
        matches!(
            self,
            Self::Maintenance | Self::Draining | Self::ZeroWeight | Self::Terminated | Self::Paused
        )
    }
}

impl ShareReason {
    fn new(kind: ShareReasonKind, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { kind, text }
    }

    /// Returns the reason of a worker that has as many connections as it may have.
    pub fn full(limit: u64) -> Self {
        Self::new(
            ShareReasonKind::Full,
            format!("has as many connections as max_connections allows, {limit}"),
        )
    }
}

impl Service {
    /// Returns why a backend gets no new connection, or less than its share.
    pub fn share_reason(
        &self,
        backend: usize,
        workers: &[Worker],
        now: Instant,
    ) -> Option<ShareReason> {
        let worker = &workers[self.workers[backend]];
        match self.state(backend, worker) {
            Health::Up => match self.share(Selection::Backend(backend)) {
                0 => Some(self.idle_reason(backend, workers, now)),
                share => self.limit_reason(self.ramp_percent(backend, workers, now), share),
            },
            state => Some(self.state_reason(backend, worker, state, now)),
        }
    }

    /// Returns the reason of a backend that is not up.
    fn state_reason(
        &self,
        backend: usize,
        worker: &Worker,
        state: Health,
        now: Instant,
    ) -> ShareReason {
        use ShareReasonKind as Kind;
        let ineligible = || self.ineligible_reason(backend, worker).unwrap_or_default();
        let silent = || seconds(worker.silent_for(now));
        let ordered = self.overrides[backend].effective_state().is_some();
        let is_weightless = self.overrides[backend].state.is_none() && ordered;
        let (kind, text) = match state {
            Health::Unknown => (Kind::Unknown, "no heartbeat received yet".to_owned()),
            Health::Down => (Kind::Down, format!("no heartbeat for {}", silent())),
            Health::Unhealthy => (Kind::Unhealthy, "its agent's check fails".to_owned()),
            Health::Leaving => (Kind::Leaving, "its agent stops".to_owned()),
            Health::Maintenance if ordered => (
                Kind::Maintenance,
                "in maintenance by the operator".to_owned(),
            ),
            Health::Maintenance => (
                Kind::Maintenance,
                "its agent announced maintenance".to_owned(),
            ),
            Health::Draining if is_weightless => {
                (Kind::ZeroWeight, "the operator's weight is 0%".to_owned())
            }
            Health::Draining => (Kind::Draining, "drained by the operator".to_owned()),
            Health::Terminated => (
                Kind::Terminated,
                "drained by the operator, and its connections are reset".to_owned(),
            ),
            Health::Paused => {
                let left = worker
                    .paused_until
                    .map(|it| it.saturating_duration_since(now));
                let left = seconds(left.unwrap_or_default());
                (Kind::Paused, format!("paused, {left} are left"))
            }
            Health::Ineligible => (Kind::Ineligible, ineligible()),
            Health::Unreachable => (Kind::Unreachable, ineligible()),
            Health::Up | Health::Failing => (Kind::Failing, self.failing_text(backend, now)),
        };
        ShareReason::new(kind, text)
    }

    fn failing_text(&self, backend: usize, now: Instant) -> String {
        let Some(ejection) = self.handshakes[backend].ejection() else {
            return "failing".to_owned();
        };
        let trial = match ejection.next_trial {
            Some(at) => format!("tried in {}", seconds(at.saturating_duration_since(now))),
            None => "tried now".to_owned(),
        };
        format!(
            "{} {} ago, {trial}",
            ejection.evidence,
            seconds(now.saturating_duration_since(ejection.since))
        )
    }

    /// Returns the reason of a backend that is up and gets no connection.
    fn idle_reason(&self, backend: usize, workers: &[Worker], now: Instant) -> ShareReason {
        use ShareReasonKind as Kind;
        let worker = &workers[self.workers[backend]];
        if self.is_idle_backup(backend) {
            return ShareReason::new(Kind::Backup, "a backup, and a primary worker serves");
        }
        if self.settings.policy == Policy::Memory {
            return match self.waiting(now).filter(|(waiting, _)| *waiting == backend) {
                Some((_, left)) => ShareReason::new(
                    Kind::Waiting,
                    format!(
                        "has more memory and waits for the hold to end, in {} ms",
                        milliseconds(left)
                    ),
                ),
                None => ShareReason::new(
                    Kind::NotSelected,
                    format!("policy memory selects {}", self.reason.to.name),
                ),
            };
        }
        if !self.candidates[backend].has_no_headroom {
            return ShareReason::new(Kind::Ramp, "has just come up: gets its share in a moment");
        }
        let limit = self.settings.spread.pressure_limit;
        match worker.pressure.filter(|pressure| *pressure >= limit) {
            Some(pressure) => ShareReason::new(
                Kind::Pressure,
                format!("its memory pressure, {pressure}, reaches pressure_limit, {limit}"),
            ),
            None => ShareReason::new(
                Kind::Reserve,
                format!(
                    "no memory above its reserve of {}%",
                    self.settings.spread.reserve_percent
                ),
            ),
        }
    }

    /// Returns the reason of a backend that gets less than its share by memory.
    fn limit_reason(&self, ramp: u32, share: u16) -> Option<ShareReason> {
        use ShareReasonKind as Kind;
        if ramp < 100 && share < 10_000 {
            let text = format!("came back recently: ramp_up limits it to {ramp}% of its share");
            return Some(ShareReason::new(Kind::Ramp, text));
        }
        let most = self.largest_share()?;
        let text = format!("max_share limits its share to {}%", most / 100);
        (u64::from(share) + 1 >= most).then(|| ShareReason::new(Kind::Cap, text))
    }

    /// Returns the share that `max_share` allows, in hundredths of a percent; `None` if it is not above an equal share,
    /// or limits nothing.
    fn largest_share(&self) -> Option<u64> {
        let spread = self.spread.as_ref()?;
        let backends = 0..self.settings.backends.len();
        let weighted = backends.filter(|it| spread.weight(*it) > 0).count() as u64;
        let most = match self.settings.spread.max_share {
            MaxShare::Auto if !spread.depends_on_memory() => return None,
            MaxShare::Auto => 60_000 / (weighted + 5),
            MaxShare::Percent(percent) => u64::from(percent) * 100,
        };
        (weighted > 1 && most < 10_000 && most * weighted > 10_000).then_some(most)
    }
}

fn seconds(duration: Duration) -> String {
    let tenths = duration.as_millis() / 100;
    format!("{}.{} s", tenths / 10, tenths % 10)
}
