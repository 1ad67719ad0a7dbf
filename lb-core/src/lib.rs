//! The decision core of memlb: heartbeats and time in, map updates and events out.
//!
//! It reads no clock and does no I/O. Its caller does this in a loop:
//!
//! 1. [`Core::handle_heartbeat`] for each valid datagram, until the socket is empty;
//! 2. [`Core::handle_timeout`] once, with the same clock;
//! 3. [`Core::poll_map_update`] and [`Core::poll_event`] until both are empty, carrying each out;
//! 4. [`Core::poll_trial`] until it is empty: open a connection to each, and report the outcome;
//! 5. sleep until [`Core::poll_timeout`] or the next datagram.
//!
//! The same inputs always give the same outputs.

// A test compares a whole snapshot with its JSON.
#![cfg_attr(test, recursion_limit = "256")]
// Listed with reasons in .clippy.toml.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod admin;
mod core;
mod counted;
mod deadlines;
mod eligibility;
mod endpoint;
mod event;
mod handshakes;
mod health;
mod map_update;
mod memory;
mod names;
mod policy;
mod reason;
mod report;
mod return_path;
mod sequence;
mod service;
mod settings;
mod share_reason;
mod snapshot;
mod worker;

use std::time::Duration;

pub use admin::{
    AdminAction, AdminCommand, AdminError, AdminOverride, AdminOverrides, AdminState, Audited,
    CommandResult, MAX_PAUSE, MAX_REASON_BYTES, MAX_WEIGHT_PERCENT, MIN_PAUSE, check_reason,
    unknown_name,
};
pub use core::{Core, HeartbeatOutcome};
pub use counted::counted;
pub use eligibility::{Ineligibility, WorkerRoute};
pub use endpoint::{Endpoint, ParseEndpointError, Protocol};
pub use event::{AttachedInterface, Audience, Cause, Event, EventKind, Severity};
pub use handshakes::{AdoptedEjection, Evidence, FailingSettings, TrafficCounters, TrialOutcome};
pub use health::Health;
pub use map_update::MapUpdate;
pub use memory::{Bytes, Memory, Pressure, Share};
pub use names::{ALL_WORKERS, MANAGER, NO_BACKEND};
pub use policy::{
    DEFAULT_HOLD, MaxShare, MemorySettings, Policy, SlotKind, SpreadSettings, Threshold,
};
pub use reason::Rule;
pub use report::{BootId, Report, Sequence, WorkerState};
pub use return_path::ReplyCounters;
pub use settings::{
    AdoptedState, BackendId, BackendSettings, CoreSettings, DEFAULT_DOWN_AFTER, FallbackSettings,
    Mode, ServiceId, ServiceSettings,
};
pub use share_reason::{ShareReason, ShareReasonKind};
pub use snapshot::{BackendSnapshot, FailingSnapshot, ServiceSnapshot, Snapshot, WaitingSnapshot};

/// Returns a duration in whole milliseconds.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
