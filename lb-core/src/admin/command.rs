//! A command of an operator.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AdminError, AdminState, MAX_PAUSE, MAX_REASON_BYTES, MAX_WEIGHT_PERCENT, MIN_PAUSE};
use crate::milliseconds;

/// A command of an operator for a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminCommand {
    pub worker: String,
    /// `None` means all services of the worker, also future ones.
    pub service: Option<String>,
    #[serde(flatten)]
    pub action: AdminAction,
    /// The user who gave it.
    pub by: String,
    /// Milliseconds since 1970 by the operator's clock, for display only.
    pub at_ms: u64,
    pub reason: Option<String>,
}

impl AdminCommand {
    /// Checks everything that does not depend on the configuration.
    ///
    /// # Errors
    ///
    /// Returns the first value out of range.
    pub fn check(&self) -> Result<(), AdminError> {
        self.reason.as_deref().map_or(Ok(()), check_reason)?;
        match self.action {
            AdminAction::Weight { percent } if percent > MAX_WEIGHT_PERCENT => {
                Err(AdminError::WeightTooLarge { percent })
            }
            AdminAction::Pause { for_ms }
                if !(milliseconds(MIN_PAUSE)..=milliseconds(MAX_PAUSE)).contains(&for_ms) =>
            {
                Err(AdminError::PauseOutOfRange { for_ms })
            }
            AdminAction::Pause { .. } if self.service.is_some() => {
                Err(AdminError::PauseOfOneService)
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for AdminCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, by, .. } = self;
        match self.action {
            AdminAction::SetState { state } => {
                write!(f, "{worker} is {} by {by}", state.description())?;
            }
            AdminAction::Undrain => {
                write!(f, "{worker} takes new connections again by order of {by}")?;
            }
            AdminAction::Weight { percent } => {
                write!(f, "{worker} has weight {percent}% by order of {by}")?;
            }
            AdminAction::Pause { for_ms } => {
                let duration = humantime::format_duration(Duration::from_millis(for_ms));
                write!(f, "{worker} is paused for {duration} by {by}")?;
            }
            AdminAction::Resume => write!(f, "{worker} is no longer paused, by order of {by}")?,
        }
        if let Some(service) = &self.service {
            write!(f, ", for {service}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum AdminAction {
    SetState {
        state: AdminState,
    },
    /// Ends any [`AdminState`]; a weight stays.
    Undrain,
    Weight {
        percent: u32,
    },
    /// Announces that the worker will be silent for this time. It keeps its connections.
    Pause {
        for_ms: u64,
    },
    /// Ends a pause.
    Resume,
}

impl AdminAction {
    /// Whether it only ends earlier commands.
    pub fn is_removal(self) -> bool {
        matches!(
            self,
            Self::Undrain | Self::Resume | Self::Weight { percent: 100 }
        )
    }
}

/// A value with the user who set it, the time and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Audited<T> {
    pub value: T,
    pub by: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl<T> Audited<T> {
    pub(super) fn new(value: T, command: &AdminCommand) -> Self {
        Self {
            value,
            by: command.by.clone(),
            at_ms: command.at_ms,
            reason: command.reason.clone(),
        }
    }
}

impl Audited<u64> {
    /// Returns the time left of a pause at `now_ms` by the wall clock. If the clock was set back, that is at most the
    /// whole pause.
    pub fn pause_left(&self, now_ms: u64) -> Duration {
        let end_ms = self.at_ms.saturating_add(self.value);
        Duration::from_millis(end_ms.saturating_sub(now_ms).min(self.value))
    }
}

/// The result of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandResult {
    /// The services of the worker that have no worker for new connections now.
    pub without_worker: Vec<String>,
    /// Effects that the operator may not have intended, one sentence each.
    pub warnings: Vec<String>,
}

/// Checks the reason of a command: one line without control characters, because tables and logs show it.
///
/// # Errors
///
/// Returns the first problem.
pub fn check_reason(reason: &str) -> Result<(), AdminError> {
    if reason.len() > MAX_REASON_BYTES {
        let bytes = reason.len();
        return Err(AdminError::ReasonTooLong { bytes });
    }
    match reason.chars().find(|character| character.is_control()) {
        Some(character) => Err(AdminError::ReasonUnprintable { character }),
        None => Ok(()),
    }
}
