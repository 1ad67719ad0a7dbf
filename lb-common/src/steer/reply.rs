//! How a worker's packet finds its handshake: by the manager's port.

use super::{
    Hook, Tables, port,
    slot::{NO_SLOT, Tuple, find_in_bucket},
};
use crate::maps::FlowKey;

/// The slot of the handshake that a reply with the tuple `key` belongs to.
///
/// A worker replies to the manager's port. The manager's own server, seen at egress, replies to the client.
#[inline(always)]
pub fn find_by_reply<T: Tables>(tables: &T, hook: Hook, key: &FlowKey<T::Address>) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_SLOT;
    };
    let translated = key.reversed();
    if hook != Hook::Ingress {
        return find_in_bucket(tables, settings, &translated, Tuple::Translated);
    }
    let slot = port::handshake_at(tables, settings, key);
    if tables.holds(slot, Tuple::Translated, &translated) {
        slot
    } else {
        NO_SLOT
    }
}

/// The same in mode `routed`, where the worker replies to the client's address. Only packets that are not for a
/// service are looked up here.
#[inline(always)]
pub fn find_by_routed_reply<T: Tables>(tables: &T, hook: Hook, key: &FlowKey<T::Address>) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_SLOT;
    };
    if hook != Hook::Ingress {
        return NO_SLOT;
    }
    find_in_bucket(tables, settings, &key.reversed(), Tuple::Routed)
}
