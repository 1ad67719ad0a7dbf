//! State of established flows.

use super::{Hook, PacketMeta, Tables, client};
use crate::{
    address::Address,
    headers::TcpFlags,
    maps::{
        ALL_DIRECT, Backend, Flow, FlowKey, Settings, direction, elapsed_ns, ended, mode, state,
    },
};

/// Greatest distance in bytes between sequence numbers of plausible segments of one sender. It exceeds the largest
/// GSO segment and a burst of losses or repetitions. A blind attacker hits this range once in 2,048 attempts (RFC
/// 5961, section 1).
pub(super) const WINDOW: u32 = 1 << 20;

/// Builds the reverse entry from an entry, its key and a packet, whose acknowledgement number is the other side's
/// sequence number. If the tuple is not translated, as in mode `dsr`, replies do not pass the manager: the reverse
/// direction counts as ended.
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

/// Whether `other`, found under the reverse key of the flow of `key`, belongs to that flow.
#[inline(always)]
pub(super) fn is_reverse_of<A: Address>(key: &FlowKey<A>, other: &Flow<A>) -> bool {
    other.translated.reversed() == *key
}

/// Whether the entry still matches packets.
#[inline(always)]
pub(super) fn is_live<A>(flow: &Flow<A>) -> bool {
    flow.superseded == 0
}

/// Whether `backend` receives packets of existing flows.
#[inline(always)]
pub(super) fn keeps_flows(backend: &Backend) -> bool {
    matches!(backend.state, state::UP | state::DRAINING)
}

/// The bits of [`ended`] that a segment sets.
#[inline(always)]
pub(super) fn end_bits(flags: TcpFlags) -> u8 {
    let fin = if flags.has_fin() { ended::FIN } else { 0 };
    let reset = if flags.has_rst() { ended::RESET } else { 0 };
    fin | reset
}

/// Whether the client's packets come from another link address or interface than before. A link address must be a
/// station's.
#[inline(always)]
pub(super) fn has_moved<A>(flow: &Flow<A>, packet: &PacketMeta) -> bool {
    let differs = flow.client_mac != packet.source_mac
        || flow.client_interface != packet.interface
        || flow.manager_mac != packet.destination_mac;
    differs && (packet.hook != Hook::Ingress || packet.source_mac.is_station())
}

/// Whether the sequence number is plausible (RFC 5961, section 3). The receiver checks its window, which is not known
/// here. Datagrams have no number.
#[inline(always)]
pub(super) fn is_plausible<A>(flow: &Flow<A>, packet: &PacketMeta) -> bool {
    is_in_window(packet.sequence, flow.sequence)
}

/// Whether one sequence number is in the [`WINDOW`] around another.
#[inline(always)]
pub(super) fn is_in_window(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).wrapping_add(WINDOW) < 2 * WINDOW
}

/// Greatest distance in bytes from a segment that an ICMP error quotes to the sender's last one: twice Linux's
/// default send buffer (`net.ipv4.tcp_wmem`), because a path may become narrow while a full buffer is in flight.
const UNACKNOWLEDGED: u32 = 1 << 23;

/// Whether an ICMP error may quote a segment with this number when `last` is the sender's last one (RFC 5927, section
/// 4.1). A blind attacker hits the range once in 455 attempts.
#[inline(always)]
pub(super) fn is_recent(number: u32, last: u32) -> bool {
    number.wrapping_sub(last).wrapping_add(UNACKNOWLEDGED) < UNACKNOWLEDGED + WINDOW
}

/// A sequence number not below the segment's end: the length includes the headers.
#[inline(always)]
pub(super) fn sequence_end(packet: &PacketMeta) -> u32 {
    packet.sequence.wrapping_add(packet.bytes)
}

/// Whether a worker's packet arrives on another interface than the route to the worker. Either its source is spoofed,
/// or the routing is asymmetric; the kernel handles both.
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

/// Time in nanoseconds since the last packet of either direction.
#[inline(always)]
pub(super) fn idle_ns<A>(flow: &Flow<A>, reverse: Option<&Flow<A>>, now: u64) -> u64 {
    let idle = elapsed_ns(now, flow.last_seen_ticks);
    reverse.map_or(idle, |reverse| {
        idle.min(elapsed_ns(now, reverse.last_seen_ticks))
    })
}

/// Whether a new connection of the same tuple may replace the flow: it has ended, or both directions have been idle
/// for too long. After the worker's FIN, the limit is `closing_idle_ns`.
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
        // Replies in mode `dsr` do not pass the manager.
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

/// Whether the tuple of the pending connection is free in mode `routed`, where the worker sees the client's port.
/// Supersedes an earlier connection of the same client.
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

/// Adds an open connection to its backend's count, and to the sum of mode `dsr`, or removes one.
#[inline(always)]
pub(super) fn count_open<T: Tables>(tables: &T, backend: u32, is_open: bool) {
    tables.count_active(backend, is_open);
    let is_direct = |it: &Backend| it.mode == mode::DSR;
    if tables.backend(backend).is_some_and(is_direct) {
        tables.count_active(ALL_DIRECT, is_open);
    }
}

/// Removes a connection from its backend's count and its client's, exactly once even if both sides end it at the same
/// time. Returns whether it was counted.
#[inline(always)]
pub(super) fn uncount<T: Tables>(
    tables: &T,
    client: &T::Address,
    request: &mut Flow<T::Address>,
) -> bool {
    let was_open = request.counted == 1 && tables.clear_counted(request);
    if was_open {
        count_open(tables, request.backend, false);
        client::count(tables, false, client);
    }
    was_open
}
