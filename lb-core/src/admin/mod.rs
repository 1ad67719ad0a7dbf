//! What operators set for workers: drain, maintenance, weight, pause. It only ever takes connections away
//! from a worker: a worker that is down stays down.

mod command;
mod error;
mod overrides;

pub use command::{
    AdminAction, AdminCommand, AdminState, Audited, CommandResult, MAX_PAUSE, MAX_REASON_BYTES,
    MAX_WEIGHT_PERCENT, MIN_PAUSE, check_reason,
};
pub use error::{AdminError, unknown_name};
pub use overrides::{AdminOverride, AdminOverrides};
