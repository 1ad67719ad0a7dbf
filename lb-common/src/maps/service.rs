//! Services, and how a backend is chosen for a new connection.

use super::CHOICE_SLOTS;
use crate::address::V6;

/// Key of `services`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// IPv4 as an IPv4-mapped address.
    pub address: V6,
    pub port: [u8; 2],
    /// IANA number.
    pub protocol: u8,
    pub reserved: u8,
}

/// Value of `services`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The index in `selection` and `policies`.
    pub id: u32,
    /// Bits of [`service_flag`].
    pub flags: u32,
}

/// Flags of a [`Service`].
pub mod service_flag {
    /// A SYN that its worker answers with RST goes to another worker.
    pub const RETRY_REFUSED: u32 = 1;
    /// The manager queries the agents of workers of mode `dsr` about unknown connections.
    pub const QUERY_AGENTS: u32 = 2;
}

/// Value of `selection`, indexed by service id: the [`Policy`] chooses for each new connection. Any other value is
/// the id of the backend that receives all new connections.
pub const SPREAD: u32 = u32::MAX;

/// Value of `policies`, indexed by service id: how to choose from `choices`. The manager fills the inactive
/// generation and then activates it by one write of this value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// One of [`policy`].
    pub kind: u32,
    /// 0 or 1: the active half of the service's choices, see [`first_choice`].
    pub generation: u32,
    /// Filled slots of that half, from the first on.
    pub slots: u32,
    /// The backend that receives new connections while all others have their `max_connections`; 0: none.
    pub fallback: u32,
}

/// Kinds of a [`Policy`]. Slots hold backend ids.
pub mod policy {
    /// Of two random slots, the backend with fewer open connections for its weight. Backends fill slots in proportion
    /// to their weight.
    pub const BALANCED: u32 = 1;
    /// Each processor uses the slots in turn.
    pub const ROUND_ROBIN: u32 = 2;
    /// The backend with the fewest open connections for its weight. Each backend fills one slot.
    pub const LEAST_CONNECTIONS: u32 = 3;
    /// A hash of the client's address selects the slot. All [`super::super::CHOICE_SLOTS`] are filled.
    pub const SOURCE_HASH: u32 = 4;
    /// `selection` holds the backend. The slots hold all backends that are up, most preferred first, for clients
    /// whose SYN the selected backend does not answer.
    pub const RANKED: u32 = 5;
}

/// Index in `choices` of a generation's first slot.
#[inline(always)]
pub fn first_choice(service: u32, generation: u32) -> u32 {
    (service * 2 + (generation & 1)) * CHOICE_SLOTS
}
