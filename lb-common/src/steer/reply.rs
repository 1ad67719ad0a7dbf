//! How a worker's packet finds its handshake: by the manager's port.

use super::{
    Hook, Tables, port,
    slot::{NO_SLOT, find_in_bucket, is_pending},
};
use crate::maps::{FlowKey, mode};

/// The slot of the handshake that a reply with the tuple `key` belongs to.
///
/// A worker replies to the manager's port. The manager's own server, seen at egress, replies to the client.
#[inline(never)]
pub(super) fn find_by_reply<T: Tables>(tables: &T, hook: Hook, key: &FlowKey<T::Address>) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_SLOT;
    };
    let translated = key.reversed();
    if hook != Hook::Ingress {
        return find_in_bucket(tables, settings, &translated, |handshake| {
            handshake.translated.is(&translated)
        });
    }
    let slot = port::handshake_at(tables, settings, key);
    if let Some(handshake) = tables.handshake(slot)
        && handshake.translated.is(&translated)
        && is_pending(&handshake, settings, tables.now_ns())
    {
        return slot;
    }
    NO_SLOT
}

/// The same in mode `routed`, where the worker replies to the client's address. Only packets that are not for a
/// service are looked up here.
#[inline(never)]
pub(super) fn find_by_routed_reply<T: Tables>(
    tables: &T,
    hook: Hook,
    key: &FlowKey<T::Address>,
) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_SLOT;
    };
    if hook != Hook::Ingress {
        return NO_SLOT;
    }
    let translated = key.reversed();
    find_in_bucket(tables, settings, &translated, |handshake| {
        let backend = tables.backend(handshake.backend);
        handshake.translated.is(&translated) && backend.is_some_and(|it| it.mode == mode::ROUTED)
    })
}
