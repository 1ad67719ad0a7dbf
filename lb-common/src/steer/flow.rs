//! What can be said of an established flow by looking at its entries, and how it ends.

use super::{
    Hook, PacketMeta, Tables,
    port::{TimeWait, reclaim, release},
};
use crate::{
    address::Address,
    headers::TcpFlags,
    maps::{Backend, Flow, FlowKey, Settings, direction, elapsed_ns, ended, state},
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
pub(super) fn reverse_entry<A: Address>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    packet: &PacketMeta,
) -> Flow<A> {
    let is_unseen = flow.direction == direction::REQUEST && flow.translated.is(key);
    Flow {
        sequence: packet.acknowledgement,
        translated: key.reversed(),
        ended: if is_unseen { ended::FIN } else { 0 },
        counted: 0,
        direction: flow.direction ^ (direction::REQUEST ^ direction::REPLY),
        bytes: 0,
        ..*flow
    }
}

/// Whether `other`, stored where the answers to the flow of `key` are looked up, belongs to it.
#[inline(always)]
pub(super) fn is_reverse_of<A: Address>(key: &FlowKey<A>, other: &Flow<A>) -> bool {
    other.translated.reversed() == *key
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
pub(super) fn end_bits(flags: TcpFlags) -> u8 {
    let fin = if flags.has_fin() { ended::FIN } else { 0 };
    let reset = if flags.has_rst() { ended::RESET } else { 0 };
    fin | reset
}

/// Whether the client's packets now come from another link address, which is a station's, or interface.
#[inline(always)]
pub(super) fn has_moved<A>(flow: &Flow<A>, packet: &PacketMeta) -> bool {
    let differs = flow.client_mac != packet.source_mac
        || flow.client_interface != packet.interface
        || flow.manager_mac != packet.destination_mac;
    differs && (packet.hook != Hook::Ingress || packet.source_mac.is_station())
}

/// Whether the sender that a packet names may have sent it, as far as its number tells (RFC 5961, section 3):
/// the receiver judges by its window, which is not known here. Datagrams have no number.
#[inline(always)]
pub(super) fn is_plausible<A>(flow: &Flow<A>, packet: &PacketMeta) -> bool {
    is_in_window(packet.sequence, flow.sequence)
}

/// Whether one sequence number is in the [`WINDOW`] around another.
#[inline(always)]
pub(super) fn is_in_window(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).wrapping_add(WINDOW) < 2 * WINDOW
}

/// How far, in bytes, a segment that an error message quotes may lie behind the last one of the same sender: twice
/// what Linux lets a sender have unacknowledged by default (`net.ipv4.tcp_wmem`). A path may become narrow while as
/// much is under way, and its sender then repeats the first of it.
const UNACKNOWLEDGED: u32 = 1 << 23;

/// Whether a message can quote a segment with this number after `last` (RFC 5927, section 4.1). Who does not know
/// the number hits it once in 455 attempts.
#[inline(always)]
pub(super) fn is_recent(number: u32, last: u32) -> bool {
    number.wrapping_sub(last).wrapping_add(UNACKNOWLEDGED) < UNACKNOWLEDGED + WINDOW
}

/// A sequence number past the end of a segment: its headers are counted, too.
#[inline(always)]
pub(super) fn sequence_end(packet: &PacketMeta) -> u32 {
    packet.sequence.wrapping_add(packet.bytes)
}

/// Whether a packet of a worker comes on another interface than the one to which its packets belong: then its
/// sender is forged, or its way back another than the one there. Each is left to the kernel.
#[inline(always)]
pub(super) fn is_wrong_interface(backend: &Backend, packet: &PacketMeta) -> bool {
    backend.reply_interface != 0 && backend.reply_interface != packet.interface
}

/// Accounts the packet to its flow.
#[inline(always)]
pub(super) fn account<A>(flow: &mut Flow<A>, packet: &PacketMeta, now_ticks: u32) {
    flow.last_seen_ticks = now_ticks;
    flow.bytes += u64::from(packet.bytes);
}

/// How long both directions have been silent.
#[inline(always)]
pub(super) fn idle_ns<A>(flow: &Flow<A>, reverse: Option<&Flow<A>>, now: u64) -> u64 {
    let idle = elapsed_ns(now, flow.last_seen_ticks);
    reverse.map_or(idle, |reverse| {
        idle.min(elapsed_ns(now, reverse.last_seen_ticks))
    })
}

/// Whether a new connection of the tuple's own client may take its place: the flow has ended, or both
/// directions have been silent for long. Where the worker has ended its part, the client has little time to
/// answer: one that is gone says nothing any more.
#[inline(always)]
pub(super) fn is_over<A: Address>(
    settings: &Settings,
    flow: &Flow<A>,
    reverse: Option<&Flow<A>>,
    now: u64,
) -> bool {
    let reverse_ended = reverse.map_or(0, |reverse| reverse.ended);
    let by_worker = if flow.direction == direction::REPLY {
        flow.ended & ended::FIN
    } else if reverse.is_some_and(|reverse| reverse.translated.reversed().is(&flow.translated)) {
        // Of a worker that answers past the manager, nothing is seen.
        0
    } else {
        reverse_ended & ended::FIN
    };
    let longest = if flow.translated.is_datagram() {
        settings.datagram_idle_ns
    } else if by_worker != 0 {
        settings.closing_idle_ns
    } else {
        settings.established_idle_ns
    };
    ended::both(flow.ended, reverse_ended) || idle_ns(flow, reverse, now) > longest
}

/// Whether the pending connection may have its tuple towards a worker that sees the client's own port: only
/// the client itself may have had it. What is left of its earlier connection is superseded.
#[inline(never)]
pub(super) fn supersede_own<T: Tables>(tables: &T) -> bool {
    let Some(scratch) = tables.flow_scratch() else {
        return false;
    };
    let reply_key = scratch.pending.translated.reversed();
    let client = scratch.pending.client;
    drop(scratch);
    let Some(mut holder) = tables.established(&reply_key) else {
        return true;
    };
    if is_live(&holder) && !holder.translated.reversed().is(&client) {
        return false;
    }
    holder.superseded = 1;
    true
}

/// Takes a connection out of its backend's count of open ones, once, even if both sides end it at once;
/// returns whether it was counted.
#[inline(always)]
pub(super) fn uncount<T: Tables>(tables: &T, request: &mut Flow<T::Address>) -> bool {
    let was_open = request.counted == 1 && tables.clear_counted(request);
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
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
) -> u32 {
    let before = flow.ended;
    let ends = end_bits(packet.flags);
    let reverse_key = flow.translated.reversed();
    let mut reverse = tables
        .established(&reverse_key)
        .filter(|reverse| is_reverse_of(key, reverse));
    if ends != 0 {
        // Atomically, so that of two sides that end at once, one sees the other's end.
        tables.set_ended(flow, ends);
        if ends & ended::FIN != 0 {
            flow.sequence = sequence_end(packet);
        }
        apply_end(tables, key, flow, reverse.as_deref_mut());
        return 0;
    }
    // Nothing follows a RST.
    flow.ended &= !ended::RESET;
    let goes_beyond = packet.sequence.wrapping_sub(flow.sequence).wrapping_sub(1) < WINDOW;
    if goes_beyond {
        // No new data follows a FIN.
        flow.ended &= !ended::FIN;
    }
    if flow.ended & ended::FIN == 0 {
        flow.sequence = packet.sequence;
    }
    let idle = reverse.as_deref().map_or(u64::MAX, |reverse| {
        elapsed_ns(tables.now_ns(), reverse.last_seen_ticks)
    });
    if idle > ROUND_TRIP_NS {
        // It would be answered with another RST.
        flow.ended &= !ended::BY_RESET;
    }
    revive(tables, flow, reverse.as_deref_mut(), before & !flow.ended);
    0
}

/// Notes that one side has ended its part: with both, the connection is no longer open, and its port is given
/// back. The only place where an end becomes final.
#[inline(always)]
fn apply_end<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
    mut reverse: Option<&mut Flow<T::Address>>,
) {
    let reverse_ended = reverse.as_deref().map_or(0, |reverse| reverse.ended);
    if !ended::both(flow.ended, reverse_ended) {
        return;
    }
    if let Some(reverse) = reverse.as_deref_mut()
        && flow.ended & ended::RESET != 0
    {
        tables.set_ended(reverse, ended::BY_RESET);
    }
    let (was_open, translated) = if flow.direction == direction::REQUEST {
        (uncount(tables, flow), flow.translated)
    } else {
        let was_open = reverse.is_some_and(|request| uncount(tables, request));
        (was_open, key.reversed())
    };
    if was_open {
        let time_wait = TimeWait::after(flow.ended | reverse_ended, flow.direction);
        release(tables, flow.backend, &translated, time_wait);
    }
}

/// Lets a connection live again whose end was none, and keep its port: the entry of the packet that shows it has lost these bits
/// of [`ended`]. The only place where one is revived.
#[inline(always)]
fn revive<T: Tables>(
    tables: &T,
    flow: &mut Flow<T::Address>,
    mut reverse: Option<&mut Flow<T::Address>>,
    cleared: u8,
) {
    if cleared == 0 {
        return;
    }
    if let Some(reverse) = reverse.as_deref_mut() {
        tables.clear_ended(reverse, ended::of_other(cleared));
    }
    let reverse_ended = reverse.as_deref().map_or(0, |reverse| reverse.ended);
    if ended::both(flow.ended, reverse_ended) {
        return;
    }
    // In branches of their own: Linux 6.1 does not see that the other entry is there where it is needed.
    if flow.direction == direction::REQUEST {
        if tables.set_counted(flow) {
            tables.count_active(flow.backend, true);
            reclaim(tables, flow.backend, &flow.translated);
        }
    } else if let Some(request) = reverse
        && tables.set_counted(request)
    {
        tables.count_active(flow.backend, true);
        reclaim(tables, request.backend, &request.translated);
    }
}
