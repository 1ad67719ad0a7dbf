//! Services: what clients connect to, and how a backend is chosen for them.

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

/// Value of `services`: which entry of `selection` names the chosen backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    pub id: u32,
}

/// Value of `selection`, indexed by service id, that leaves each new connection to the service's
/// [`Policy`]. Any other value is the id of the backend that gets all of them.
pub const SPREAD: u32 = u32::MAX;

/// Value of `policies`, indexed by service id: how `choices` are made from.
///
/// The generation that is not in force is filled first; then one write of this value puts it in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// One of [`policy`].
    pub kind: u32,
    /// 0 or 1: which half of the service's choices is in force, see [`first_choice`].
    pub generation: u32,
    /// How many slots of that half are filled, from its first on.
    pub slots: u32,
    pub reserved: u32,
}

/// Kinds of a [`Policy`], and what the slots hold: backend ids, in whatever order the kind wants.
pub mod policy {
    /// Two slots are drawn at random, and the backend with fewer open connections for its weight is
    /// taken. Backends fill slots in proportion to their weight.
    pub const BALANCED: u32 = 1;
    /// Each processor takes one slot after the other.
    pub const ROUND_ROBIN: u32 = 2;
    /// The backend with the fewest open connections for its weight. Each backend fills one slot.
    pub const LEAST_CONNECTIONS: u32 = 3;
    /// A hash of the client's address names the slot. All [`super::super::CHOICE_SLOTS`] are filled.
    pub const SOURCE_HASH: u32 = 4;
    /// `selection` names the backend; the slots hold all that are up, the most preferred first, for
    /// clients whose SYN that backend does not answer.
    pub const RANKED: u32 = 5;
}

/// Index in `choices` of a generation's first slot.
#[inline(always)]
pub fn first_choice(service: u32, generation: u32) -> u32 {
    (service * 2 + (generation & 1)) * CHOICE_SLOTS
}
