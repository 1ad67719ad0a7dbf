//! What can be said of an established flow by looking at its entries, and how it ends.

use super::{
    Arrival, Hook, Tables,
    port::{Remains, release},
};
use crate::{
    address::Address,
    headers::TcpFlags,
    maps::{Backend, Flow, FlowKey, Settings, direction, ended, state},
};

/// The entry of the other direction, from an entry and its key. Where the tuple stays as it is, as in
/// mode `dsr`, answers do not come by here: theirs counts as ended from the beginning.
#[inline(always)]
pub(super) fn twin<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> Flow<A> {
    let is_unseen = flow.direction == direction::REQUEST && flow.leaves.is(key);
    Flow {
        leaves: key.reversed(),
        ended: if is_unseen { ended::FIN } else { 0 },
        counted: 0,
        direction: flow.direction ^ (direction::REQUEST ^ direction::REPLY),
        bytes: 0,
        ..*flow
    }
}

/// Whether `other`, stored where the answers to the flow of `key` are looked up, belongs to it.
#[inline(always)]
pub(super) fn are_twins<A: Address>(key: &FlowKey<A>, other: &Flow<A>) -> bool {
    other.leaves.reversed() == *key
}

/// Whether packets still go this way.
#[inline(always)]
pub(super) fn is_live<A>(flow: &Flow<A>) -> bool {
    flow.superseded == 0
}

/// Whether packets of existing flows still go to `backend`.
#[inline(always)]
pub(super) fn keeps_flows(backend: &Backend) -> bool {
    matches!(backend.state, state::UP | state::DRAINING)
}

/// Which bits of [`ended`] a segment sets.
#[inline(always)]
pub(super) fn ending(flags: TcpFlags) -> u8 {
    let fin = if flags.finishes() { ended::FIN } else { 0 };
    let reset = if flags.resets() { ended::RESET } else { 0 };
    fin | reset
}

/// Whether the client's packets now come from another link address, which is a station's, or interface.
#[inline(always)]
pub(super) fn has_moved<A>(flow: &Flow<A>, arrival: &Arrival) -> bool {
    let differs = flow.client_mac != arrival.source_mac
        || flow.client_interface != arrival.interface
        || flow.manager_mac != arrival.destination_mac;
    differs && (arrival.hook != Hook::Ingress || arrival.source_mac.is_station())
}

/// Accounts the packet to its flow.
#[inline(always)]
pub(super) fn carry<A>(flow: &mut Flow<A>, arrival: &Arrival, now: u64) {
    flow.last_seen_ns = now;
    flow.bytes += u64::from(arrival.bytes);
}

/// Whether a new connection of the tuple's own client may take its place: the flow has ended, or both
/// directions have been silent for long.
#[inline(always)]
pub(super) fn is_over<A: Address>(
    settings: &Settings,
    flow: &Flow<A>,
    twin: Option<&Flow<A>>,
    now: u64,
) -> bool {
    let (twin_ended, twin_seen) = twin.map_or((0, 0), |twin| (twin.ended, twin.last_seen_ns));
    let idle = now.saturating_sub(flow.last_seen_ns.max(twin_seen));
    let longest = if flow.leaves.is_datagram() {
        settings.datagram_idle_ns
    } else {
        settings.established_idle_ns
    };
    ended::both(flow.ended, twin_ended) || idle > longest
}

/// Whether the workbench's claim may have its tuple towards a worker that sees the client's own port: only
/// the client itself may have had it. What is left of its earlier connection is superseded.
#[inline(never)]
pub(super) fn supersedes_own<T: Tables>(tables: &T) -> bool {
    let Some(bench) = tables.workbench() else {
        return false;
    };
    let reply_key = bench.claim.leaves.reversed();
    let client = bench.claim.client;
    drop(bench);
    let Some(mut holder) = tables.established(&reply_key) else {
        return true;
    };
    if is_live(&holder) && !holder.leaves.reversed().is(&client) {
        return false;
    }
    holder.superseded = 1;
    true
}

/// Takes a connection out of its backend's count of open ones, once, even if both sides end it at once;
/// returns whether it was counted.
#[inline(always)]
pub(super) fn uncount<T: Tables>(tables: &T, request: &mut Flow<T::Address>) -> bool {
    let was_open = request.counted == 1 && tables.take_count(request);
    if was_open {
        tables.count_active(request.backend, false);
    }
    was_open
}

/// Notes that one side has ended its part: with both, the connection is no longer open.
#[inline(never)]
pub(super) fn note_end<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
) -> bool {
    let twin_key = flow.leaves.reversed();
    let mut twin = tables
        .established(&twin_key)
        .filter(|twin| are_twins(key, twin));
    let twin_ended = twin.as_deref().map_or(0, |twin| twin.ended);
    let over = ended::both(flow.ended, twin_ended);
    if !over {
        return false;
    }
    let (was_open, leaves) = if flow.direction == direction::REQUEST {
        (uncount(tables, flow), flow.leaves)
    } else {
        let was_open = twin.as_deref_mut().is_some_and(|it| uncount(tables, it));
        (was_open, key.reversed())
    };
    drop(twin);
    if was_open {
        let remains = Remains::after(flow.ended | twin_ended, flow.direction);
        release(tables, flow.backend, &leaves, remains);
    }
    true
}
