//! What can be said of a flow by looking at its entries.

use super::{Arrival, Tables};
use crate::{
    headers::TcpFlags,
    maps::{Backend, Flow, FlowKey, Settings, direction, ended, state},
};

/// The entry of the other direction, from an entry and its key.
#[inline(always)]
pub(super) fn twin(key: &FlowKey, flow: &Flow) -> Flow {
    Flow {
        leaves: key.reversed(),
        ended: 0,
        direction: flow.direction ^ (direction::REQUEST ^ direction::REPLY),
        packets: 0,
        bytes: 0,
        ..*flow
    }
}

/// Whether `other`, stored where the answers to the flow of `key` are looked up, belongs to it.
#[inline(always)]
pub(super) fn are_twins(key: &FlowKey, other: &Flow) -> bool {
    other.leaves.reversed() == *key
}

/// Whether a flow has ended, or both directions have been silent for so long that its tuple may be
/// used again.
#[inline(always)]
pub(super) fn is_over<T: Tables>(
    tables: &T,
    flow: &Flow,
    twin: Option<&Flow>,
    now: u64,
    idle_ns: impl Fn(&Settings) -> u64,
) -> bool {
    let Some(settings) = tables.settings() else {
        return false;
    };
    let (twin_ended, twin_seen) = twin.map_or((0, 0), |twin| (twin.ended, twin.last_seen_ns));
    let idle = now.saturating_sub(flow.last_seen_ns.max(twin_seen));
    if ended::both(flow.ended, twin_ended) {
        // Seen from the client, a closed connection is over at once; its port is kept for a while.
        flow.direction == direction::REQUEST || idle > settings.closing_idle_ns
    } else {
        idle > idle_ns(&settings)
    }
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

/// Whether the client's packets now come from another link address or interface.
#[inline(always)]
pub(super) fn has_moved(flow: &Flow, arrival: &Arrival) -> bool {
    flow.client_mac != arrival.source_mac
        || flow.client_interface != arrival.interface
        || flow.manager_mac != arrival.destination_mac
}

/// Accounts the packet to its flow.
#[inline(always)]
pub(super) fn carry(flow: &mut Flow, arrival: &Arrival, now: u64) {
    flow.last_seen_ns = now;
    flow.packets += u64::from(arrival.packets);
    flow.bytes += u64::from(arrival.bytes);
}
