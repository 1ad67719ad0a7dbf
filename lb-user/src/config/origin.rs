//! The sources of workers that the configuration file does not name.

use lb_core::{AdminState, Audited};

use crate::heartbeat::check_name;

/// The source of a worker whose agent joined by itself (`auto_join`).
pub const JOINED: &str = "joined";

/// Names that no source may have: they mean workers of the file, and those that joined by themselves.
const RESERVED: [&str; 2] = ["configuration", JOINED];

/// The source of a worker that the file does not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerOrigin {
    pub source: String,
    /// The state that the source wants.
    pub state: Option<Audited<AdminState>>,
}

/// Checks a source's name.
///
/// # Errors
///
/// Says what is wrong with it.
pub fn check_source(name: &str) -> Result<(), String> {
    check_name(name).map_err(|problem| format!("{name:?} cannot name a source: {problem}"))?;
    match RESERVED.contains(&name) {
        true => Err(format!("{name:?} cannot name a source: it is reserved")),
        false => Ok(()),
    }
}
