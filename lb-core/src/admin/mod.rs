//! Commands of operators for workers: drain, maintenance, terminate, weight, pause. No command makes a worker up that is
//! down.

mod command;
mod error;
mod overrides;

pub use command::{
    AdminAction, AdminCommand, AdminState, Audited, CommandResult, MAX_PAUSE, MAX_REASON_BYTES,
    MAX_WEIGHT_PERCENT, MIN_PAUSE, check_reason,
};
pub use error::{AdminError, unknown_name};
pub use overrides::{AdminOverride, AdminOverrides};
