//! `memlb doctor`: every failure that can be provoked is reported, and repaired by the suggested command.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod diagnosis;
mod health;
mod manager;
mod typical;
mod worker;

use std::time::Duration;

/// Within this time everything happens that shall happen at all.
const SOON: Duration = Duration::from_secs(20);
