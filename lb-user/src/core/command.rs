//! What the core wants written into the maps.

use super::health::Health;
use super::memory::Memory;
use super::settings::{BackendId, ServiceId};

/// One write. The shell carries commands out one by one in the order in which they come.
///
/// In that order a selection never names a backend that was not described before, nor one that is
/// described as anything but up: who comes up is described before being selected, who goes is
/// described as gone after the selection has left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Describes a backend as last seen; sent when anything in it changed.
    SetBackend {
        backend: BackendId,
        state: Health,
        /// Nothing for the fallback and for workers not heard yet.
        memory: Option<Memory>,
    },
    /// Sends a service's new connections to a backend; sent only on change.
    Select {
        service: ServiceId,
        backend: BackendId,
    },
}
