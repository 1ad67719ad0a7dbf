//! Events of the manager itself, beside those of its core.

use serde::Serialize;

use crate::status::Interface;

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Happening<'a> {
    ManagerStarted {
        version: &'a str,
        interfaces: &'a [Interface],
    },
    ManagerStopped,
    MapWriteFailed {
        error: &'a str,
    },
}
