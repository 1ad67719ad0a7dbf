//! Events of the manager itself, beside those of its core.

use serde::Serialize;

use crate::{
    deny::{Denied, Prefix},
    status::Interface,
};

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Happening<'a> {
    ManagerStarted {
        version: &'a str,
        interfaces: &'a [Interface],
    },
    ManagerStopped,
    /// What a failed write has left out is in the maps.
    MapsWritten,
    InterfaceGone {
        interface: &'a str,
    },
    InterfaceBack {
        interface: &'a str,
    },
    InterfaceRenamed {
        interface: &'a str,
        was: &'a str,
    },
    /// Another interface has the name that the configuration names.
    InterfaceReplaced {
        interface: &'a str,
        former: &'a str,
    },
    /// Somebody had taken them off.
    ProgramsRestored {
        interface: &'a str,
        programs: &'a [&'static str],
    },
    InterfaceNotAttached {
        interface: &'a str,
        error: &'a str,
    },
    /// Somebody had removed them.
    PinsRestored {
        pins: &'a [String],
    },
    /// A worker in mode `nat` has few ports left.
    NatPortsScarce {
        service: &'a str,
        worker: &'a str,
        open: u64,
        ports: u64,
    },
    NatPortsSufficient {
        service: &'a str,
        worker: &'a str,
        open: u64,
        ports: u64,
    },
    MapWriteFailed {
        error: &'a str,
    },
    /// The operator denies clients; those that are connected are cut off.
    PrefixDenied {
        #[serde(flatten)]
        denied: &'a Denied,
    },
    PrefixAllowed {
        prefix: &'a Prefix,
        by: &'a str,
    },
}
