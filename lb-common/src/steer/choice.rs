//! Which backend a new connection goes to: the service's selection, or what its policy draws.

use super::{Step, Tables};
use crate::address::Address;
use crate::maps::{CHOICE_SLOTS, FlowKey, Policy, SPREAD, first_choice, policy, state};

/// How many places are looked at, from a random one on, to find the backend with the fewest connections, or
/// another one than that which did not answer.
pub const COMPARED: u32 = 256;

/// How many places are tried until one holds a backend that is up.
const PLACES_TRIED: u32 = 4;

/// Returns the id of the backend for a new connection with the client's tuple `key`; 0 for none.
#[inline(never)]
pub(super) fn choose<T: Tables>(tables: &T, key: &FlowKey<T::Address>, service: u32) -> u32 {
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
                lightest: tables.veiled(0),
            };
            tables.repeat(places.slots.min(COMPARED), &mut scan);
            scan.lightest
        }
        _ => 0,
    }
}

/// Returns another backend than `tried`, which did not answer, for a client that repeats its SYN for
/// the `retries + 1`st time; 0 if there is none.
#[inline(never)]
pub(super) fn choose_another<T: Tables>(tables: &T, service: u32, tried: u32, retries: u8) -> u32 {
    let Some(policy) = tables.policy(service) else {
        return 0;
    };
    if policy.slots == 0 {
        return 0;
    }
    let places = Places {
        first: first_choice(service, policy.generation),
        slots: policy.slots.min(CHOICE_SLOTS),
    };
    let mut walk = Walk {
        places,
        start: match policy.kind {
            policy::RANKED => u32::from(retries) + 1,
            _ => tables.random(),
        },
        tried,
        found: tables.veiled(0),
    };
    tables.repeat(places.slots.min(COMPARED), &mut walk);
    walk.found
}

/// The places of one service's choices that are in force.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Places {
    first: u32,
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
            if is_up(tables, id) {
                return id;
            }
        }
        0
    }
}

/// The search for a backend other than the one that was tried: many places in a row may be its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Walk {
    places: Places,
    start: u32,
    tried: u32,
    found: u32,
}

impl Step for Walk {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, number: u32) -> bool {
        let id = self.places.at(tables, self.start.wrapping_add(number));
        let is_another = id != self.tried && is_up(tables, id);
        if is_another {
            self.found = id;
        }
        is_another
    }
}

/// The search for the backend with the fewest connections for its weight.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Scan {
    places: Places,
    start: u32,
    lightest: u32,
}

impl Step for Scan {
    /// Compares the next place with what was found so far; of equals the first one met stays.
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, number: u32) -> bool {
        let id = self.places.at(tables, self.start.wrapping_add(number));
        self.lightest = lighter(tables, self.lightest, id);
        false
    }
}

/// The one of two backends with fewer open connections for its weight, this one included.
#[inline(always)]
fn lighter<T: Tables>(tables: &T, one: u32, other: u32) -> u32 {
    let (first, second) = (weight_if_up(tables, one), weight_if_up(tables, other));
    let load = |id| u64::from(tables.active(id)) + 1;
    if load(other) * first < load(one) * second {
        other
    } else {
        one
    }
}

/// The weight of a backend; 0 unless it takes connections.
#[inline(always)]
fn weight_if_up<T: Tables>(tables: &T, id: u32) -> u64 {
    let Some(backend) = tables.backend(id) else {
        return 0;
    };
    let up = u64::from(backend.state == state::UP) & u64::from(id != 0);
    up * u64::from(backend.weight)
}

/// Whether a backend takes new connections.
#[inline(always)]
pub(super) fn is_up<T: Tables>(tables: &T, id: u32) -> bool {
    let Some(backend) = tables.backend(id) else {
        return false;
    };
    backend.state == state::UP && id != 0
}

/// A well-mixed number from the client's address (the finalizer of MurmurHash3).
#[inline(always)]
fn hash<A: Address>(key: &FlowKey<A>) -> u32 {
    let mut mixed = key.source.word();
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    mixed ^ (mixed >> 16)
}
