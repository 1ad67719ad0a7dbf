//! The errors of requests.

use lb_core::AdminError;

use super::ErrorReply;
use crate::manager::{ReloadError, SourceError};

/// Why the reply to a request is an [`ErrorReply`].
pub(super) enum RequestError {
    /// The request is wrong.
    Usage(anyhow::Error),
    RunTime(anyhow::Error),
}

impl From<RequestError> for ErrorReply {
    fn from(error: RequestError) -> Self {
        let (is_usage, error) = match error {
            RequestError::Usage(error) => (true, error),
            RequestError::RunTime(error) => (false, error),
        };
        Self {
            error: format!("{error:#}"),
            is_usage,
        }
    }
}

impl From<anyhow::Error> for RequestError {
    fn from(error: anyhow::Error) -> Self {
        Self::RunTime(error)
    }
}

impl From<ReloadError> for RequestError {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::RunTime(_) => Self::RunTime(error.into()),
            ReloadError::Configuration(_) | ReloadError::Refused(_) => Self::Usage(error.into()),
        }
    }
}

impl From<SourceError> for RequestError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::RunTime(_) => Self::RunTime(error.into()),
            _ => Self::Usage(error.into()),
        }
    }
}

impl From<AdminError> for RequestError {
    fn from(error: AdminError) -> Self {
        Self::Usage(error.into())
    }
}
