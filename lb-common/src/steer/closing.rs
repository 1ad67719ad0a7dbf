//! The end of established flows, and their revival after a spoofed end.

use super::{
    Tables, client,
    flow::{WINDOW, count_open, end_bits, is_reverse_of, uncount},
    port::TimeWait,
    report::{other_side, report_end},
};
use crate::{
    headers::TcpFlags,
    maps::{Flow, FlowKey, direction, elapsed_ns, ended, record_kind, ticks},
};

/// Time in nanoseconds in which packets may still arrive after a reset.
const ROUND_TRIP_NS: u64 = 1_500_000_000;

/// Ticks (0.2 s) after a RST in which a packet of the same side may be older than the RST: another processor handled
/// it.
const REORDER_TICKS: u32 = 12;

/// Handles a plausible packet that ends its direction, or that follows such an end.
///
/// A spoofed RST or FIN with a plausible number ends nothing for good: genuine packets of either side revive the
/// connection. Returns 1 for a packet that may be older than the RST of its own side, and must not renew the time of
/// that RST; else 0.
#[inline(always)]
pub fn close<T: Tables>(
    tables: &T,
    flags: u8,
    sequence: u32,
    sequence_end: u32,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
) -> u32 {
    let before = flow.ended;
    let ends = end_bits(TcpFlags(flags));
    let reverse_key = flow.translated.reversed();
    let mut reverse = tables
        .established(&reverse_key)
        .filter(|reverse| is_reverse_of(key, reverse));
    if ends != 0 {
        // Atomic, so that of two directions that end at the same time, one sees the other's end.
        tables.set_ended(flow, ends);
        if ends & ended::FIN != 0 {
            flow.sequence = sequence_end;
        }
        apply_end(tables, key, flow, reverse.as_deref_mut());
        return 0;
    }
    let now = tables.now_ns();
    let since_last = ticks(now).wrapping_sub(flow.last_seen_ticks);
    if flow.ended & ended::RESET != 0 && since_last <= REORDER_TICKS {
        return 1;
    }
    // No packet follows a genuine RST.
    flow.ended &= !ended::RESET;
    let goes_beyond = sequence.wrapping_sub(flow.sequence).wrapping_sub(1) < WINDOW;
    if goes_beyond {
        // No new data follows a genuine FIN.
        flow.ended &= !ended::FIN;
    }
    if flow.ended & ended::FIN == 0 {
        flow.sequence = sequence;
    }
    let idle = reverse
        .as_deref()
        .map_or(u64::MAX, |reverse| elapsed_ns(now, reverse.last_seen_ticks));
    if idle > ROUND_TRIP_NS {
        // The other side would have replied with another RST.
        flow.ended &= !ended::BY_RESET;
    }
    revive(
        tables,
        key,
        flow,
        reverse.as_deref_mut(),
        before & !flow.ended,
    );
    0
}

/// Applies the end of one direction. If both have ended, uncounts the connection and releases its port. No other
/// function does this.
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
        (uncount(tables, &key.source, flow), flow.translated)
    } else {
        let client = &flow.translated.destination;
        let was_open = reverse.is_some_and(|request| uncount(tables, client, request));
        (was_open, key.reversed())
    };
    if was_open {
        if flow.direction == direction::REPLY && flow.ended & ended::RESET != 0 {
            tables.count_traffic(flow.backend, |traffic| traffic.resets += 1);
        }
        let time_wait = TimeWait::after(flow.ended | reverse_ended, flow.direction);
        tables.release(flow.backend, time_wait, &translated);
        report_end(tables, key, flow, reverse_ended);
    }
}

/// Revives a connection after its entry has lost the `cleared` bits of [`ended`]: counts it again and reclaims its
/// port. No other function does this.
#[inline(always)]
fn revive<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
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
    let other = reverse
        .as_deref()
        .map_or(0, |reverse| other_side(reverse.sequence, reverse.ended));
    // Two branches, because the verifier of Linux 6.1 loses the null check of a merged pointer.
    if flow.direction == direction::REQUEST {
        if tables.set_counted(flow) {
            count_open(tables, flow.backend, true);
            client::count(tables, true, &key.source);
            tables.reclaim(flow.backend, &flow.translated);
            tables.report_flow(record_kind::OPENED, other, key, flow);
        }
    } else if let Some(request) = reverse
        && tables.set_counted(request)
    {
        count_open(tables, flow.backend, true);
        client::count(tables, true, &flow.translated.destination);
        tables.reclaim(request.backend, &request.translated);
        tables.report_flow(record_kind::OPENED, other, key, flow);
    }
}
