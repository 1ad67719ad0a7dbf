//! Which backend a new connection goes to: the service's selection, or what its policy draws.

use super::Tables;
use crate::maps::{Backend, CHOICE_SLOTS, FlowKey, Policy, SPREAD, first_choice, policy, state};

/// How many backends are compared, from a random one on, to find the one with the fewest connections.
pub const COMPARED: u32 = 256;

/// How many places are tried until one holds a backend that is up.
const PLACES_TRIED: u32 = 4;

/// Returns the id of the backend for a new connection with the client's tuple `key`; 0 for none.
#[inline(never)]
pub(super) fn choose<T: Tables>(tables: &T, key: &FlowKey, service: u32) -> u32 {
    let selected = tables.selection(service).unwrap_or(0);
    if selected != SPREAD {
        return selected;
    }
    let Some(policy) = tables.policy(service) else {
        return 0;
    };
    let places = Places {
        first: first_choice(service, policy.generation),
        slots: policy.slots.min(CHOICE_SLOTS),
    };
    match policy {
        Policy { slots: 0, .. } => 0,
        Policy { kind, .. } if kind == policy::BALANCED => {
            let one = places.up(tables, tables.random());
            let other = places.up(tables, tables.random());
            lighter(tables, one, other)
        }
        Policy { kind, .. } if kind == policy::ROUND_ROBIN => {
            places.up(tables, tables.turn(service))
        }
        Policy { kind, .. } if kind == policy::SOURCE_HASH => places.up(tables, hash(key)),
        Policy { kind, .. } if kind == policy::LEAST_CONNECTIONS => {
            let mut scan = Scan {
                places,
                start: tables.random(),
                lightest: 0,
            };
            tables.scan(places.slots.min(COMPARED), &mut scan);
            scan.lightest
        }
        _ => 0,
    }
}

/// The places of one service's choices that are in force.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Places {
    first: u32,
    /// Not 0.
    slots: u32,
}

impl Places {
    #[inline(always)]
    fn at<T: Tables>(self, tables: &T, number: u32) -> u32 {
        let place = number.checked_rem(self.slots).unwrap_or(0);
        tables.choice(self.first + place).unwrap_or(0)
    }

    /// The backend at a place or, while it is not up, at one of the places that follow.
    #[inline(always)]
    fn up<T: Tables>(self, tables: &T, number: u32) -> u32 {
        for step in 0..PLACES_TRIED {
            let id = self.at(tables, number.wrapping_add(step));
            if is_up(tables, id).is_some() {
                return id;
            }
        }
        0
    }
}

/// The search for the backend with the fewest connections for its weight.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scan {
    places: Places,
    start: u32,
    lightest: u32,
}

impl Scan {
    /// Compares the next place with what was found so far; of equals the first one met stays.
    #[inline(always)]
    pub fn step<T: Tables>(&mut self, tables: &T, step: u32) {
        let id = self.places.at(tables, self.start.wrapping_add(step));
        self.lightest = lighter(tables, self.lightest, id);
    }
}

/// The one of two backends with fewer open connections for its weight, this one included.
#[inline(always)]
fn lighter<T: Tables>(tables: &T, one: u32, other: u32) -> u32 {
    let (Some(first), Some(second)) = (is_up(tables, one), is_up(tables, other)) else {
        return if is_up(tables, other).is_some() {
            other
        } else {
            one
        };
    };
    let load = |id| u64::from(tables.active(id)) + 1;
    if load(other) * u64::from(first.weight) < load(one) * u64::from(second.weight) {
        other
    } else {
        one
    }
}

#[inline(always)]
fn is_up<T: Tables>(tables: &T, id: u32) -> Option<Backend> {
    tables
        .backend(id)
        .filter(|backend| id != 0 && backend.state == state::UP)
}

/// A well-mixed number from the client's address (the finalizer of MurmurHash3).
#[inline(always)]
fn hash(key: &FlowKey) -> u32 {
    let mut mixed = u32::from_be_bytes(key.source);
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    mixed ^ (mixed >> 16)
}
