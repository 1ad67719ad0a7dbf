//! Why a request is refused, or has failed.

use lb_core::AdminError;

use crate::manager::{ReloadError, SourceError};

/// Why a request has no reply of its own type.
pub(super) enum RequestError {
    Usage(anyhow::Error),
    RunTime(anyhow::Error),
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
