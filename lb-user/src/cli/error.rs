//! Why a verb fails, and the exit status that follows from it.

use std::fmt::Display;

use memlb::{config::ConfigError, control::ClientError};

/// Why a verb failed; determines the exit status.
pub enum CliError {
    /// Wrong usage or configuration.
    Usage(anyhow::Error),
    RunTime(anyhow::Error),
}

impl CliError {
    pub fn usage(text: impl Display) -> Self {
        Self::Usage(anyhow::anyhow!("{text}"))
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::RunTime(error)
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refused) if refused.is_usage => Self::usage(refused.error),
            other => Self::RunTime(other.into()),
        }
    }
}

pub type CliResult = Result<(), CliError>;
