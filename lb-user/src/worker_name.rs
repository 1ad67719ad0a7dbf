//! The valid names of workers, in heartbeats and in the configuration.

use thiserror::Error;

/// The maximum length of a name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// What is wrong with a worker's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameProblem {
    #[error("the name is empty")]
    Empty,
    #[error("the name has {bytes} bytes, more than {MAX_NAME_BYTES}")]
    Overlong { bytes: usize },
    #[error("the name contains {character:?}; allowed are ASCII letters, digits and . _ -")]
    BadCharacter { character: char },
    #[error("the name begins with a dot, as hidden files do")]
    LeadingDot,
}

/// Checks a worker's name: 1 to 64 ASCII letters, digits, dots, underscores and hyphens,
/// the first one not a dot.
///
/// Such a name needs no escaping in a log line, a file name or a shell command.
///
/// # Errors
///
/// Returns the first problem.
pub fn check_name(name: &str) -> Result<(), NameProblem> {
    if name.is_empty() {
        return Err(NameProblem::Empty);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(NameProblem::Overlong { bytes: name.len() });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|&character| !allowed(character)) {
        Some(character) => Err(NameProblem::BadCharacter { character }),
        None if name.starts_with('.') => Err(NameProblem::LeadingDot),
        None => Ok(()),
    }
}
