//! The names that a worker may have, in heartbeats and in the configuration.

use std::fmt;

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// What is wrong with a worker's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameProblem {
    Empty,
    Overlong { bytes: usize },
    BadCharacter { character: char },
    LeadingDot,
}

impl fmt::Display for NameProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the name is empty"),
            Self::Overlong { bytes } => {
                write!(f, "the name has {bytes} bytes, more than {MAX_NAME_BYTES}")
            }
            Self::BadCharacter { character } => write!(
                f,
                "the name contains {character:?}; allowed are ASCII letters, digits and . _ -"
            ),
            Self::LeadingDot => f.write_str("the name begins with a dot, as hidden files do"),
        }
    }
}

/// Checks a worker's name: 1 to 64 ASCII letters, digits, dots, underscores and hyphens,
/// the first one not a dot.
///
/// Such a name can stand in a log line, a file name and a shell command as it is.
///
/// # Errors
///
/// Returns the first thing that is wrong with it.
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
