//! What can be said of an established flow by looking at its entries, and how it ends.

use super::{
    Arrival, Hook, Tables,
    port::{Remains, release, retake},
};
use crate::{
    address::Address,
    headers::TcpFlags,
    maps::{Backend, Flow, FlowKey, Settings, direction, ended, since, state},
};

/// How far, in bytes, a segment's number may lie from the last one of the same sender: more than the
/// largest segment that a card makes, and than what a sender repeats or a network loses at once. Who does not
/// know the number hits this range once in 2,048 attempts (RFC 5961, section 1).
const WINDOW: u32 = 1 << 20;

/// How long, in nanoseconds, packets may be under way to one that has reset its connection.
const ROUND_TRIP_NS: u64 = 1_500_000_000;

/// The entry of the other direction, from an entry, its key and a packet of it, which acknowledges what the
/// other side sent last. Where the tuple stays as it is, as in mode `dsr`, answers do not come by here:
/// theirs counts as ended from the beginning.
#[inline(always)]
pub(super) fn twin<A: Address>(key: &FlowKey<A>, flow: &Flow<A>, arrival: &Arrival) -> Flow<A> {
    let is_unseen = flow.direction == direction::REQUEST && flow.leaves.is(key);
    Flow {
        sequence: arrival.acknowledgement,
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

/// Whether the sender that a packet names may have sent it, as far as its number tells (RFC 5961, section 3):
/// the receiver judges by its window, which is not known here. Datagrams have no number.
#[inline(always)]
pub(super) fn is_plausible<A>(flow: &Flow<A>, arrival: &Arrival) -> bool {
    is_near(arrival.sequence, flow.sequence)
}

/// Whether one sequence number is in the [`WINDOW`] around another.
#[inline(always)]
pub(super) fn is_near(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).wrapping_add(WINDOW) < 2 * WINDOW
}

/// A sequence number past the end of a segment: its headers are counted, too.
#[inline(always)]
pub(super) fn past_end(arrival: &Arrival) -> u32 {
    arrival.sequence.wrapping_add(arrival.bytes)
}

/// Whether a packet of a worker comes on another interface than the one to which its packets belong: then its
/// sender is forged, or its way back another than the one there. Each is left to the kernel.
#[inline(always)]
pub(super) fn is_from_elsewhere(backend: &Backend, arrival: &Arrival) -> bool {
    backend.reply_interface != 0 && backend.reply_interface != arrival.interface
}

/// Accounts the packet to its flow.
#[inline(always)]
pub(super) fn carry<A>(flow: &mut Flow<A>, arrival: &Arrival, now_ticks: u32) {
    flow.last_seen_ticks = now_ticks;
    flow.bytes += u64::from(arrival.bytes);
}

/// How long both directions have been silent.
#[inline(always)]
pub(super) fn silence_ns<A>(flow: &Flow<A>, twin: Option<&Flow<A>>, now: u64) -> u64 {
    let silence = since(now, flow.last_seen_ticks);
    twin.map_or(silence, |twin| {
        silence.min(since(now, twin.last_seen_ticks))
    })
}

/// Whether a new connection of the tuple's own client may take its place: the flow has ended, or both
/// directions have been silent for long. Where the worker has ended its part, the client has little time to
/// answer: one that is gone says nothing any more.
#[inline(always)]
pub(super) fn is_over<A: Address>(
    settings: &Settings,
    flow: &Flow<A>,
    twin: Option<&Flow<A>>,
    now: u64,
) -> bool {
    let twin_ended = twin.map_or(0, |twin| twin.ended);
    let by_worker = if flow.direction == direction::REPLY {
        flow.ended & ended::FIN
    } else if twin.is_some_and(|twin| twin.leaves.reversed().is(&flow.leaves)) {
        // Of a worker that answers past the manager, nothing is seen.
        0
    } else {
        twin_ended & ended::FIN
    };
    let longest = if flow.leaves.is_datagram() {
        settings.datagram_idle_ns
    } else if by_worker != 0 {
        settings.closing_idle_ns
    } else {
        settings.established_idle_ns
    };
    ended::both(flow.ended, twin_ended) || silence_ns(flow, twin, now) > longest
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

/// A plausible packet that ends its direction, or follows an end.
///
/// A RST or FIN that is forged with a number near enough is its sender's for the programs only: the sender
/// goes on, and so does the other side, and with them the connection.
#[inline(never)]
pub(super) fn close<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
) -> u32 {
    let before = flow.ended;
    let ends = ending(arrival.flags);
    let twin_key = flow.leaves.reversed();
    let mut twin = tables
        .established(&twin_key)
        .filter(|twin| are_twins(key, twin));
    if ends != 0 {
        // Atomically, so that of two sides that end at once, one sees the other's end.
        tables.set_ended(flow, ends);
        if ends & ended::FIN != 0 {
            flow.sequence = past_end(arrival);
        }
        note_end(tables, key, flow, twin.as_deref_mut());
        return 0;
    }
    // Nothing follows a RST.
    flow.ended &= !ended::RESET;
    let goes_beyond = arrival.sequence.wrapping_sub(flow.sequence).wrapping_sub(1) < WINDOW;
    if goes_beyond {
        // No new data follows a FIN.
        flow.ended &= !ended::FIN;
    }
    if flow.ended & ended::FIN == 0 {
        flow.sequence = arrival.sequence;
    }
    let silence = twin.as_deref().map_or(u64::MAX, |twin| {
        since(tables.now_ns(), twin.last_seen_ticks)
    });
    if silence > ROUND_TRIP_NS {
        // It would be answered with another RST.
        flow.ended &= !ended::BY_RESET;
    }
    revive(tables, flow, twin.as_deref_mut(), before & !flow.ended);
    0
}

/// Notes that one side has ended its part: with both, the connection is no longer open, and its port is given
/// back. The only place where an end becomes final.
#[inline(always)]
fn note_end<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
    mut twin: Option<&mut Flow<T::Address>>,
) {
    let twin_ended = twin.as_deref().map_or(0, |twin| twin.ended);
    if !ended::both(flow.ended, twin_ended) {
        return;
    }
    if let Some(twin) = twin.as_deref_mut()
        && flow.ended & ended::RESET != 0
    {
        tables.set_ended(twin, ended::BY_RESET);
    }
    let (was_open, leaves) = if flow.direction == direction::REQUEST {
        (uncount(tables, flow), flow.leaves)
    } else {
        let was_open = twin.is_some_and(|request| uncount(tables, request));
        (was_open, key.reversed())
    };
    if was_open {
        let remains = Remains::after(flow.ended | twin_ended, flow.direction);
        release(tables, flow.backend, &leaves, remains);
    }
}

/// Lets a connection live again whose end was none, and keep its port: the entry of the packet that shows it has lost these bits
/// of [`ended`]. The only place where one is revived.
#[inline(always)]
fn revive<T: Tables>(
    tables: &T,
    flow: &mut Flow<T::Address>,
    mut twin: Option<&mut Flow<T::Address>>,
    lost: u8,
) {
    if lost == 0 {
        return;
    }
    if let Some(twin) = twin.as_deref_mut() {
        tables.clear_ended(twin, ended::of_other(lost));
    }
    let twin_ended = twin.as_deref().map_or(0, |twin| twin.ended);
    if ended::both(flow.ended, twin_ended) {
        return;
    }
    // In branches of their own: Linux 6.1 does not see that the other entry is there where it is needed.
    if flow.direction == direction::REQUEST {
        if tables.give_count(flow) {
            tables.count_active(flow.backend, true);
            retake(tables, flow.backend, &flow.leaves);
        }
    } else if let Some(request) = twin
        && tables.give_count(request)
    {
        tables.count_active(flow.backend, true);
        retake(tables, request.backend, &request.leaves);
    }
}
