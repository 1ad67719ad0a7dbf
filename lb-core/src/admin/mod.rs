//! Commands of operators for workers: drain, maintenance, terminate, weight, pause. No command makes a worker up that
//! is down.

mod command;
mod error;
mod overrides;
mod state;

use std::time::Duration;

pub use command::{AdminAction, AdminCommand, Audited, CommandResult, check_reason};
pub use error::{AdminError, unknown_name};
pub use overrides::{AdminOverride, AdminOverrides};
pub use state::AdminState;

/// The largest weight that an operator can set, in percent.
pub const MAX_WEIGHT_PERCENT: u32 = 1000;

/// The longest reason, in bytes.
pub const MAX_REASON_BYTES: usize = 1000;

/// The shortest and the longest pause.
pub const MIN_PAUSE: Duration = Duration::from_secs(1);
pub const MAX_PAUSE: Duration = Duration::from_secs(3_600);
