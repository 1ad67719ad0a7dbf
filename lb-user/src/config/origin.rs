//! Where the workers come from that the configuration file does not name.

use lb_core::{AdminState, Audited};

use crate::heartbeat::check_name;

/// The source of a worker that joined by starting its agent.
pub const JOINED: &str = "joined";

/// Names that no source may have: they stand for memlb's own workers.
const RESERVED: [&str; 2] = ["configuration", JOINED];

/// Where a worker comes from that the file does not name.
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
        true => Err(format!(
            "{name:?} cannot name a source: it stands for memlb's own workers"
        )),
        false => Ok(()),
    }
}
