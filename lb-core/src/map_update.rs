//! The writes to the maps that the core requests.

use crate::health::Health;
use crate::memory::Memory;
use crate::policy::SlotKind;
use crate::settings::{BackendId, ServiceId};

/// One write. The caller applies the updates one by one, in order.
///
/// So no selection and no slot in force ever names a backend that was not written before, or that is not up: a backend
/// that comes up is written before it is selected, and a backend that goes down is written after every selection has
/// left it.
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
    /// Makes the kernel pick from a service's slots, which an earlier update has set.
    Spread { service: ServiceId },
}
