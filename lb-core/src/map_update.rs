//! What the core wants written into the maps.

use super::health::Health;
use super::memory::Memory;
use super::settings::{BackendId, ServiceId, SlotKind};

/// One write. The shell carries commands out one by one in the order in which they come.
///
/// In that order neither a selection nor a place in force ever names a backend that was not described
/// before, nor one that is described as anything but up: who comes up is described before being
/// selected or placed, who goes is described as gone after all have left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapUpdate {
    /// Describes a backend as last seen; sent when anything in it changed.
    SetBackend {
        backend: BackendId,
        state: Health,
        /// Nothing for the fallback and for workers not heard yet.
        memory: Option<Memory>,
        /// What it weighs against the service's other backends, where connections are spread.
        weight: u32,
    },
    /// Sends a service's new connections to a backend; sent only on change.
    Select {
        service: ServiceId,
        backend: BackendId,
    },
    /// Puts backends into a service's places, all at once; sent only on change.
    SetSlots {
        service: ServiceId,
        kind: SlotKind,
        slots: Vec<BackendId>,
    },
    /// Leaves a service's new connections to its places, which were set before.
    Spread { service: ServiceId },
}
