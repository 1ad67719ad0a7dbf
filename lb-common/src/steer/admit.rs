//! Connections that a peer has reported, written into the flow table as if they had begun here.
//!
//! Of two connections with the same tuple, the newer one wins. State from packets that pass here takes precedence over
//! a peer's record.

use super::{
    FlowScratch, Tables, client,
    flow::{count_open, is_live, is_over, is_reverse_of, uncount},
    port::TimeWait,
};
use crate::{
    address::Address,
    maps::{
        Admission, Backend, Flow, FlowKey, FlowRecord, direction, ended, mode, record_kind, ticks,
    },
};

/// Greatest difference in ticks of the times at which two managers saw the same connection begin: records take time,
/// and clocks differ.
const CLOCK_TOLERANCE: i32 = ticks(1_000_000_000) as i32;

/// Writes a record to the flow table. Its backend, interface, link addresses and times are this manager's. `scratch` is
/// not the one of [`Tables::flow_scratch`], which packets use at the same time.
#[inline(always)]
pub fn admit<T: Tables>(
    tables: &T,
    record: &FlowRecord,
    scratch: &mut FlowScratch<T::Address>,
) -> Admission {
    let is_worker = |it: &&Backend| record.backend != 0 && it.port != 0 && it.mode != mode::LOCAL;
    let Some(backend) = tables.backend(record.backend).filter(is_worker) else {
        return Admission::UnknownBackend;
    };
    let pending = &mut scratch.pending;
    pending.client = record.client_key();
    pending.translate(backend);
    if backend.mode == mode::NAT {
        pending.translated.source = T::Address::from_mapped(&record.source);
        pending.translated.source_port = record.source_port;
    }
    pending.reply_key = pending.translated.reversed();
    let is_over = ended::both(record.ended[0], record.ended[1]);
    match record.kind {
        record_kind::OPENED | record_kind::PRESENT if !is_over => {
            admit_open(tables, record, scratch)
        }
        _ => admit_end(tables, record, scratch),
    }
}

/// Whether one tick is later than another.
#[inline(always)]
fn is_later(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) as i32 > 0
}

/// Whether a record is of a later connection than the entry.
#[inline(always)]
fn is_newer<A>(record: &FlowRecord, flow: &Flow<A>) -> bool {
    record.created_ticks.wrapping_sub(flow.created_ticks) as i32 > CLOCK_TOLERANCE
}

/// Stores an open connection, or refreshes its entries.
#[inline(always)]
fn admit_open<T: Tables>(
    tables: &T,
    record: &FlowRecord,
    scratch: &mut FlowScratch<T::Address>,
) -> Admission {
    fill(record, scratch);
    let FlowScratch {
        request,
        reply,
        pending,
        ..
    } = scratch;
    let client = make_room(tables, &pending.client, request, record);
    let worker = make_room(tables, &pending.reply_key, reply, record);
    if client == HELD || worker == HELD {
        return Admission::Older;
    }
    if client == SAME {
        return refresh(tables, record, scratch);
    }
    if worker == SAME {
        // The other entry was evicted.
        tables.remove_established(&pending.reply_key);
    }
    if tables.add_established(&pending.reply_key, reply).is_err() {
        return Admission::TableFull;
    }
    if tables.add_established(&pending.client, request).is_err() {
        tables.remove_established(&pending.reply_key);
        return Admission::TableFull;
    }
    count(tables, record, scratch);
    if client == REPLACED || worker == REPLACED {
        Admission::Replaced
    } else {
        Admission::Inserted
    }
}

/// Fills the two entries of a connection that no packet has passed here.
#[inline(always)]
fn fill<A: Address>(record: &FlowRecord, scratch: &mut FlowScratch<A>) {
    scratch.request = Flow {
        translated: scratch.pending.translated,
        client_mac: record.client_mac,
        manager_mac: record.manager_mac,
        backend: record.backend,
        client_interface: record.client_interface,
        direction: direction::REQUEST,
        ended: record.ended[0],
        counted: 1,
        superseded: 0,
        created_ticks: record.created_ticks,
        last_seen_ticks: record.last_seen_ticks,
        sequence: record.sequences[0],
        bytes: 0,
    };
    scratch.reply = Flow {
        translated: scratch.pending.client.reversed(),
        direction: direction::REPLY,
        ended: record.ended[1],
        counted: 0,
        sequence: record.sequences[1],
        ..scratch.request
    };
}

/// Counts a connection that has just been stored, and marks its port as used.
#[inline(always)]
fn count<T: Tables>(tables: &T, record: &FlowRecord, scratch: &FlowScratch<T::Address>) {
    let pending = &scratch.pending;
    count_open(tables, record.backend, true);
    client::count(tables, true, &pending.client.source);
    if is_own_source(tables, record, &pending.translated) {
        tables.reclaim(record.backend, &pending.translated);
    }
}

/// Whether the connection leaves with an address of this manager. Without configured NAT addresses, that is the one
/// of the route.
#[inline(always)]
fn is_own_source<T: Tables>(
    tables: &T,
    record: &FlowRecord,
    translated: &FlowKey<T::Address>,
) -> bool {
    let is_configured = tables
        .settings()
        .is_some_and(|it| it.nat_sources[usize::from(!T::Address::IS_V4)] != 0);
    is_configured
        || tables
            .backend(record.backend)
            .is_some_and(|it| T::Address::from_mapped(&it.source) == translated.source)
}

/// Results of [`make_room`].
const FREE: u32 = 0;
/// An entry of the connection itself.
const SAME: u32 = 1;
/// Another connection, which has been removed.
const REPLACED: u32 = 2;
/// Another connection, which stays.
const HELD: u32 = 3;

/// Frees a key for the connection with the entry `fresh` there.
#[inline(never)]
fn make_room<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    fresh: &Flow<T::Address>,
    record: &FlowRecord,
) -> u32 {
    let Some(settings) = tables.settings() else {
        return HELD;
    };
    let Some(mut holder) = tables.established(key) else {
        return FREE;
    };
    if is_live(&holder) && holder.translated.is(&fresh.translated) {
        return SAME;
    }
    let other_key = holder.translated.reversed();
    let mut other = tables
        .established(&other_key)
        .filter(|other| is_reverse_of(key, other));
    if is_live(&holder) && !is_over(settings, &holder, other.as_deref(), tables.now_ns()) {
        let (mut seen, mut bytes) = (holder.last_seen_ticks, holder.bytes);
        if let Some(other) = other.as_deref() {
            bytes |= other.bytes;
            if is_later(other.last_seen_ticks, seen) {
                seen = other.last_seen_ticks;
            }
        }
        let is_carried = bytes != 0 && is_later(seen, record.last_seen_ticks);
        if is_carried || !is_later(record.created_ticks, holder.created_ticks) {
            return HELD;
        }
    }
    let backend = holder.backend;
    // Two branches, because the verifier of Linux 6.1 loses the null check of a merged pointer.
    if holder.direction == direction::REQUEST {
        if uncount(tables, &key.source, &mut holder) {
            tables.release(backend, TimeWait::Possible, &holder.translated);
        }
    } else if let Some(request) = other.as_deref_mut()
        && uncount(tables, &other_key.source, request)
    {
        tables.release(backend, TimeWait::Possible, &request.translated);
    }
    let has_other = other.is_some();
    drop(other);
    drop(holder);
    if has_other {
        tables.remove_established(&other_key);
    }
    tables.remove_established(key);
    REPLACED
}

/// Refreshes the entries of a known connection from a record: all fields if no packet of it has passed here, else only
/// the age.
#[inline(always)]
fn refresh<T: Tables>(
    tables: &T,
    record: &FlowRecord,
    scratch: &mut FlowScratch<T::Address>,
) -> Admission {
    let FlowScratch {
        request: fresh_request,
        reply: fresh_reply,
        pending,
        ..
    } = scratch;
    let Some(mut request) = tables.established(&pending.client) else {
        return Admission::Absent;
    };
    let is_new = is_newer(record, &request);
    let is_revived = request.counted == 0 && record.kind == record_kind::OPENED;
    if request.counted == 0 && record.kind == record_kind::PRESENT && !is_new {
        // The record may be older than the end.
        return Admission::Older;
    }
    let mut bytes = request.bytes;
    let reply = tables
        .established(&pending.reply_key)
        .filter(|reply| is_reverse_of(&pending.client, reply));
    let has_reply = reply.is_some();
    if let Some(mut reply) = reply {
        bytes |= reply.bytes;
        let is_whole = bytes == 0 || is_new || is_revived;
        update_entry(tables, &mut reply, fresh_reply, is_whole);
    }
    let is_whole = bytes == 0 || is_new || is_revived;
    update_entry(tables, &mut request, fresh_request, is_whole);
    let is_counted = !tables.set_counted(&mut request);
    drop(request);
    if !has_reply {
        // It was evicted. If there is no room, the next packet restores it.
        _ = tables.add_established(&pending.reply_key, fresh_reply);
    }
    if !is_counted {
        count(tables, record, scratch);
    }
    Admission::Refreshed
}

/// Updates an entry from a record: all of it, or only its age.
#[inline(always)]
fn update_entry<T: Tables>(
    tables: &T,
    flow: &mut Flow<T::Address>,
    fresh: &Flow<T::Address>,
    is_whole: bool,
) {
    if is_later(fresh.last_seen_ticks, flow.last_seen_ticks) {
        flow.last_seen_ticks = fresh.last_seen_ticks;
    }
    if !is_whole {
        return;
    }
    flow.client_mac = fresh.client_mac;
    flow.manager_mac = fresh.manager_mac;
    flow.client_interface = fresh.client_interface;
    flow.created_ticks = fresh.created_ticks;
    flow.sequence = fresh.sequence;
    tables.clear_ended(flow, !fresh.ended);
    tables.set_ended(flow, fresh.ended);
}

/// Ends a connection: removes it if no packet of it has passed here, else marks it.
#[inline(always)]
fn admit_end<T: Tables>(
    tables: &T,
    record: &FlowRecord,
    scratch: &mut FlowScratch<T::Address>,
) -> Admission {
    let pending = &scratch.pending;
    let Some(mut request) = tables
        .established(&pending.client)
        .filter(|it| is_live(it) && it.translated.is(&pending.translated))
    else {
        return Admission::Absent;
    };
    // A later connection of the same tuple.
    if request.created_ticks.wrapping_sub(record.created_ticks) as i32 > CLOCK_TOLERANCE {
        return Admission::Older;
    }
    let mut reply = tables
        .established(&pending.reply_key)
        .filter(|reply| is_reverse_of(&pending.client, reply));
    let bytes = request.bytes | reply.as_deref().map_or(0, |reply| reply.bytes);
    if bytes != 0 && record.kind == record_kind::FORGOTTEN {
        return Admission::Older;
    }
    tables.set_ended(&mut request, record.ended[0] | ended::FIN);
    if let Some(reply) = reply.as_deref_mut() {
        tables.set_ended(reply, record.ended[1] | ended::FIN);
    }
    let was_open = uncount(tables, &pending.client.source, &mut request);
    drop(request);
    drop(reply);
    if was_open && is_own_source(tables, record, &pending.translated) {
        tables.release(record.backend, TimeWait::Possible, &pending.translated);
    }
    if bytes != 0 {
        return Admission::Ended;
    }
    tables.remove_established(&pending.client);
    tables.remove_established(&pending.reply_key);
    Admission::Removed
}
