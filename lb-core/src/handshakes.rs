//! Passive ejection: the handshakes with a backend show whether its server answers. A backend that fails is ejected,
//! and tried again later. Pure: counters and time come from the caller.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::milliseconds;

/// When a backend fails, and when it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailingSettings {
    /// The number of refused or unanswered handshakes in a row after which it fails; 0 disables passive ejection.
    pub after: u32,
    /// The first of these handshakes is not older than this.
    pub window: Duration,
    /// The time until the first trial. It doubles with each failed trial, and with each ejection within `max_pause`
    /// after a return.
    pub pause: Duration,
    pub max_pause: Duration,
    /// The largest part of a service's workers that is ejected at a time. One worker always may be, if another is
    /// left.
    pub max_percent: u32,
}

impl Default for FailingSettings {
    fn default() -> Self {
        Self {
            after: 3,
            window: Duration::from_secs(10),
            pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(30),
            max_percent: 50,
        }
    }
}

/// The packet programs' counters of a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficCounters {
    /// Handshakes that it answered.
    pub answered: u64,
    /// Handshakes that it answered with RST.
    pub refused: u64,
    /// SYNs that the client repeated, or that expired, without an answer.
    pub unanswered: u64,
    /// When its last packet passed.
    pub last_packet: Option<Instant>,
}

/// The handshakes that made a backend fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Evidence {
    pub refused: u64,
    pub unanswered: u64,
    /// The time from the first to the last of them, at most.
    #[serde(rename = "within_ms", serialize_with = "serialize_milliseconds")]
    pub within: Duration,
}

fn serialize_milliseconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(milliseconds(*time))
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            refused,
            unanswered,
            within,
        } = self;
        match (refused, unanswered) {
            (refused, 0) => write!(f, "refused {refused} handshakes")?,
            (0, unanswered) => write!(f, "did not answer {unanswered} handshakes")?,
            (refused, unanswered) => write!(
                f,
                "refused {refused} handshakes and did not answer {unanswered}"
            )?,
        }
        write!(f, " in a row within {} ms", within.as_millis())
    }
}

/// The outcome of a trial: a connection that the manager itself opens to the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialOutcome {
    Answered,
    /// Refused, unreachable or without an answer.
    Failed,
}

/// The handshakes of one backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Handshakes {
    last: Option<TrafficCounters>,
    /// When `last` was read.
    read: Option<Instant>,
    /// Refused handshakes since the last answer.
    refused: u64,
    /// Unanswered handshakes since the last answer.
    unanswered: u64,
    /// A time before the first of these handshakes.
    first: Option<Instant>,
    ejection: Option<Ejection>,
    /// Ejections and failed trials since the last return that lasted.
    failures: u32,
    returned: Option<Instant>,
    /// Whether an event says that it fails and still gets connections.
    pub is_kept: bool,
}

/// A backend that gets no new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    pub evidence: Evidence,
    pub since: Instant,
    /// Trials that failed.
    pub trials: u32,
    /// When the next trial is due; `None` while one runs.
    pub next_trial: Option<Instant>,
}

/// An ejection that a restarted manager continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdoptedEjection {
    pub evidence: Evidence,
    pub age: Duration,
    /// Trials that failed.
    pub trials: u32,
    /// Ejections and failed trials since the last return that lasted.
    pub failures: u32,
}

impl Handshakes {
    /// Continues an ejection of a former manager. The next trial is due at once.
    pub fn adopt(&mut self, adopted: &AdoptedEjection, now: Instant) {
        self.failures = adopted.failures;
        self.ejection = Some(Ejection {
            evidence: adopted.evidence,
            since: now.checked_sub(adopted.age).unwrap_or(now),
            trials: adopted.trials,
            next_trial: Some(now),
        });
    }

    /// Returns the ejection for a restarted manager.
    pub fn adoptable(&self, now: Instant) -> Option<AdoptedEjection> {
        let ejection = self.ejection?;
        Some(AdoptedEjection {
            evidence: ejection.evidence,
            age: now.saturating_duration_since(ejection.since),
            trials: ejection.trials,
            failures: self.failures,
        })
    }

    pub fn ejection(&self) -> Option<&Ejection> {
        self.ejection.as_ref()
    }

    pub fn last_packet(&self) -> Option<Instant> {
        self.last?.last_packet
    }

    /// Returns when its last ejection ended by an answered trial, for the ramp.
    pub fn returned(&self) -> Option<Instant> {
        self.returned
    }

    /// Counts the handshakes since the last call. Returns the evidence if the backend should be ejected.
    ///
    /// One answer resets the count, wherever it comes among the handshakes since the last call: a server that
    /// answers some clients is overloaded rather than dead.
    pub fn observe(
        &mut self,
        counters: TrafficCounters,
        settings: &FailingSettings,
        now: Instant,
    ) -> Option<Evidence> {
        let since = self.read.replace(now);
        let before = self.last.replace(counters)?;
        if self.ejection.is_some() || settings.after == 0 {
            return None;
        }
        let more = |of: fn(&TrafficCounters) -> u64| of(&counters).saturating_sub(of(&before));
        let (refused, unanswered) = (more(|it| it.refused), more(|it| it.unanswered));
        if more(|it| it.answered) > 0 {
            self.clear_counts();
            return None;
        }
        if refused + unanswered == 0 {
            return None;
        }
        let is_old = |first| now.saturating_duration_since(first) > settings.window;
        if self.first.is_some_and(is_old) {
            self.clear_counts();
        }
        let first = *self.first.get_or_insert(since.unwrap_or(now));
        self.refused += refused;
        self.unanswered += unanswered;
        let evidence = Evidence {
            refused: self.refused,
            unanswered: self.unanswered,
            within: now.saturating_duration_since(first),
        };
        (self.refused + self.unanswered >= u64::from(settings.after)).then_some(evidence)
    }

    /// Ejects the backend. Returns the pause until the first trial.
    pub fn eject(
        &mut self,
        evidence: Evidence,
        settings: &FailingSettings,
        now: Instant,
    ) -> Duration {
        let lasted = |at| now.saturating_duration_since(at) >= settings.max_pause;
        if self.returned.is_none_or(lasted) {
            self.failures = 0;
        }
        self.clear_counts();
        let pause = self.next_pause(settings);
        self.ejection = Some(Ejection {
            evidence,
            since: now,
            trials: 0,
            next_trial: now.checked_add(pause),
        });
        pause
    }

    /// Begins the trial that is due.
    pub fn begin_trial(&mut self, now: Instant) -> bool {
        let Some(ejection) = &mut self.ejection else {
            return false;
        };
        let is_due = ejection.next_trial.is_some_and(|at| at <= now);
        if is_due {
            ejection.next_trial = None;
        }
        is_due
    }

    /// Handles the outcome of a trial. Returns the ejection that it ends.
    pub fn end_trial(
        &mut self,
        outcome: TrialOutcome,
        settings: &FailingSettings,
        now: Instant,
    ) -> Option<Ejection> {
        let mut ejection = self.ejection?;
        match outcome {
            TrialOutcome::Answered => {
                self.returned = Some(now);
                self.ejection.take()
            }
            TrialOutcome::Failed => {
                ejection.trials += 1;
                ejection.next_trial = now.checked_add(self.next_pause(settings));
                self.ejection = Some(ejection);
                None
            }
        }
    }

    /// Ends an ejection without a trial: the worker's own health changed, or passive ejection is off. Returns the
    /// ejection.
    pub fn reset(&mut self) -> Option<Ejection> {
        self.clear_counts();
        self.ejection.take()
    }

    /// Clears the counts of handshakes without an answer.
    fn clear_counts(&mut self) {
        (self.refused, self.unanswered, self.first, self.is_kept) = (0, 0, None, false);
    }

    fn next_pause(&mut self, settings: &FailingSettings) -> Duration {
        let doubled = settings.pause * 2u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(settings.max_pause.max(settings.pause))
    }
}
