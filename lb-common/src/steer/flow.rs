//! What can be said of an established flow by looking at its entries, and how it ends.

use super::{Arrival, Hook, Tables};
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

/// Whether the workbench's claim may have its tuple towards the worker: nobody has it, or it was the
/// client's own, or its flow is over for long enough. Whoever had it is superseded.
#[inline(never)]
pub(super) fn frees<T: Tables>(tables: &T) -> bool {
    let Some(bench) = tables.workbench() else {
        return false;
    };
    let reply_key = bench.claim.leaves.reversed();
    drop(bench);
    let Some(mut holder) = tables.established(&reply_key) else {
        return true;
    };
    let holder_key = holder.leaves.reversed();
    let mut twin = tables.established(&holder_key);
    if twin
        .as_deref()
        .is_some_and(|twin| !are_twins(&reply_key, twin))
    {
        twin = None;
    }
    let (Some(settings), Some(bench)) = (tables.settings(), tables.workbench()) else {
        return false;
    };
    let now = tables.now_ns();
    let seen = twin.as_deref().map_or(0, |twin| twin.last_seen_ns);
    let silence = now.saturating_sub(holder.last_seen_ns.max(seen));
    let over = holder.superseded == 1 || is_over(settings, &holder, twin.as_deref(), now);
    let own = holder_key.is(&bench.claim.client);
    if !over || (!own && silence <= settings.closing_idle_ns) {
        return false;
    }
    holder.superseded = 1;
    if let Some(twin) = twin.as_deref_mut() {
        twin.superseded = 1;
        uncount(tables, twin);
    }
    true
}

/// Takes a connection out of its backend's count of open ones, once, even if both sides end it at once.
#[inline(always)]
pub(super) fn uncount<T: Tables>(tables: &T, request: &mut Flow<T::Address>) {
    if request.counted == 1 && tables.take_count(request) {
        tables.count_active(request.backend, false);
    }
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
    if over {
        if flow.direction == direction::REQUEST {
            uncount(tables, flow);
        } else if let Some(request) = twin.as_deref_mut() {
            uncount(tables, request);
        }
    }
    over
}
