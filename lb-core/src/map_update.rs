//! What the core writes into the maps.

use crate::health::Health;
use crate::memory::Memory;
use crate::policy::SlotKind;
use crate::settings::{BackendId, ServiceId};

/// One write. The caller carries updates out one by one in their order.
///
/// In that order neither a selection nor a slot in force ever names a backend that was not written
/// before, or that is not up: a backend that comes up is written before it is selected, and one that
/// goes down is written after every selection has left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapUpdate {
    /// Writes a backend; emitted when anything in it changed.
    SetBackend {
        backend: BackendId,
        state: Health,
        /// `None` for the fallback and before a worker's first heartbeat.
        memory: Option<Memory>,
        /// Relative to the service's other backends.
        weight: u32,
    },
    /// Sends a service's new connections to one backend; emitted only on change.
    Select {
        service: ServiceId,
        backend: BackendId,
    },
    /// Replaces all slots of a service at once; emitted only on change.
    SetSlots {
        service: ServiceId,
        kind: SlotKind,
        slots: Vec<BackendId>,
    },
    /// Lets the kernel draw from a service's slots, which were set before.
    Spread { service: ServiceId },
}
