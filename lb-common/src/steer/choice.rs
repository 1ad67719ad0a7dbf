//! The backend of a new connection: the service's selection, or a choice by its policy.

use super::{ChoiceTables, Step};
use crate::address::Address;
use crate::maps::{
    CHOICE_SLOTS, FlowKey, MAX_REFUSALS, Policy, SPREAD, first_choice, policy, state,
};

/// Most slots that a search compares, from a random one on: for the backend with the fewest connections, or for
/// another backend after an unanswered SYN.
pub const COMPARED: u32 = 256;

/// Most slots tried until one holds a backend that is up.
const SLOTS_TRIED: u32 = 4;

/// Returns the id of the backend for a new connection with the client's tuple `key`; 0 for none. A backend that is full
/// is returned only if there is neither another one nor a fallback.
#[inline(always)]
pub fn choose<T: ChoiceTables, A: Address>(tables: &T, service: u32, key: &FlowKey<A>) -> u32 {
    let chosen = preferred(tables, key, service);
    if !is_full(tables, chosen) {
        return chosen;
    }
    let another = choose_another(tables, service, 0, &Tried([chosen, 0, 0, 0]));
    if another != 0 {
        return another;
    }
    let fallback = tables.policy(service).map_or(0, |policy| policy.fallback);
    if is_up(tables, fallback) {
        fallback
    } else {
        chosen
    }
}

/// The choice of selection and policy. If all that it considers are full, one of them.
#[inline(always)]
fn preferred<T: ChoiceTables, A: Address>(tables: &T, key: &FlowKey<A>, service: u32) -> u32 {
    let selected = tables.selection(service).unwrap_or(0);
    if selected != SPREAD {
        return selected;
    }
    let Some(policy) = tables.policy(service) else {
        return 0;
    };
    let slots = SlotRange {
        first: first_choice(service, policy.generation),
        count: policy.slots.min(CHOICE_SLOTS),
    };
    match policy {
        Policy { slots: 0, .. } => 0,
        Policy { kind, .. } if kind == policy::BALANCED => {
            let one = slots.up(tables, tables.random());
            let other = slots.up(tables, tables.random());
            less_loaded(tables, one, other)
        }
        Policy { kind, .. } if kind == policy::ROUND_ROBIN => {
            slots.up(tables, tables.next_round_robin(service))
        }
        Policy { kind, .. } if kind == policy::SOURCE_HASH => slots.up(tables, hash(key)),
        Policy { kind, .. } if kind == policy::LEAST_CONNECTIONS => {
            let mut search = LeastLoadedSearch {
                slots,
                start: tables.random(),
                least_loaded: tables.barrier_var(0),
            };
            tables.repeat(slots.count.min(COMPARED), &mut search);
            search.least_loaded
        }
        _ => 0,
    }
}

/// Returns another backend than those in `tried`; 0 if there is none. Of ranked backends, the search begins with the
/// one at `rank`.
#[inline(always)]
pub fn choose_another<T: ChoiceTables>(tables: &T, service: u32, rank: u32, tried: &Tried) -> u32 {
    let Some(policy) = tables.policy(service) else {
        return 0;
    };
    if policy.slots == 0 {
        return 0;
    }
    let slots = SlotRange {
        first: first_choice(service, policy.generation),
        count: policy.slots.min(CHOICE_SLOTS),
    };
    let mut search = OtherBackendSearch {
        slots,
        start: match policy.kind {
            policy::RANKED => rank,
            _ => tables.random(),
        },
        tried: *tried,
        found: tables.barrier_var(0),
    };
    tables.repeat(slots.count.min(COMPARED), &mut search);
    search.found
}

/// The active slots of a service's choices.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SlotRange {
    first: u32,
    count: u32,
}

impl SlotRange {
    #[inline(always)]
    fn at<T: ChoiceTables>(self, tables: &T, number: u32) -> u32 {
        let slot = number.checked_rem(self.count).unwrap_or(0);
        tables.choice(self.first + slot).unwrap_or(0)
    }

    /// The backend in a slot or, if it is not up or full, in one of the next slots. If all of them are full, the last.
    #[inline(always)]
    fn up<T: ChoiceTables>(self, tables: &T, number: u32) -> u32 {
        let mut full = 0;
        for step in 0..SLOTS_TRIED {
            let id = self.at(tables, number.wrapping_add(step));
            if is_up(tables, id) {
                if !is_full(tables, id) {
                    return id;
                }
                full = id;
            }
        }
        full
    }
}

/// Backends that a client's SYN has reached; 0: none. Aligned, because the verifier demands aligned words on the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Tried(pub [u32; 1 + MAX_REFUSALS]);

/// The search for a backend other than those in `tried`, which may fill many slots in a row.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct OtherBackendSearch {
    slots: SlotRange,
    tried: Tried,
    start: u32,
    found: u32,
}

impl<T: ChoiceTables> Step<T> for OtherBackendSearch {
    #[inline(always)]
    fn step(&mut self, tables: &T, number: u32) -> bool {
        let id = self.slots.at(tables, self.start.wrapping_add(number));
        let Tried([a, b, c, d]) = self.tried;
        let is_tried = (id == a) | (id == b) | (id == c) | (id == d);
        let is_another = !is_tried && is_up(tables, id) && !is_full(tables, id);
        if is_another {
            self.found = id;
        }
        is_another
    }
}

/// The search for the backend with the fewest connections for its weight.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct LeastLoadedSearch {
    slots: SlotRange,
    start: u32,
    least_loaded: u32,
}

impl<T: ChoiceTables> Step<T> for LeastLoadedSearch {
    /// Compares the next slot with the best so far; of equal ones, the first stays.
    #[inline(always)]
    fn step(&mut self, tables: &T, number: u32) -> bool {
        let id = self.slots.at(tables, self.start.wrapping_add(number));
        self.least_loaded = less_loaded(tables, self.least_loaded, id);
        false
    }
}

/// Whether a backend has all connections that it may have. Half-open ones do not count: else forged SYNs would fill it.
#[inline(always)]
pub(super) fn is_full<T: ChoiceTables>(tables: &T, id: u32) -> bool {
    let most = tables.backend(id).map_or(0, |it| it.max_connections);
    most != 0 && tables.active_connections(id) >= most
}

/// Of two backends, the one with fewer connections for its weight, the new one included; rather one that is not full.
#[inline(always)]
fn less_loaded<T: ChoiceTables>(tables: &T, one: u32, other: u32) -> u32 {
    if one != 0 && is_full(tables, other) {
        return one;
    }
    if is_up(tables, other) && is_full(tables, one) {
        return other;
    }
    let (first, second) = (weight_if_up(tables, one), weight_if_up(tables, other));
    let load = |id| u64::from(tables.active_connections(id)) + 1;
    if load(other) * first < load(one) * second {
        other
    } else {
        one
    }
}

/// The weight of a backend; 0 unless it is up.
#[inline(always)]
fn weight_if_up<T: ChoiceTables>(tables: &T, id: u32) -> u64 {
    let Some(backend) = tables.backend(id) else {
        return 0;
    };
    let up = u64::from(backend.state == state::UP) & u64::from(id != 0);
    up * u64::from(backend.weight)
}

/// Whether a backend receives new connections.
#[inline(always)]
pub(super) fn is_up<T: ChoiceTables>(tables: &T, id: u32) -> bool {
    let Some(backend) = tables.backend(id) else {
        return false;
    };
    backend.state == state::UP && id != 0
}

/// A hash of the client's address (the finalizer of MurmurHash3).
#[inline(always)]
fn hash<A: Address>(key: &FlowKey<A>) -> u32 {
    let mut mixed = key.source.word();
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    mixed ^ (mixed >> 16)
}
