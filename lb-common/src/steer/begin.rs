//! The beginning of a flow: a backend, a source port towards it, an entry for each direction.

use super::{
    Arrival, Decision, InsertError, Pair, Tables,
    choice::choose,
    flow::{are_twins, carry, is_over, twin},
    leave,
};
use crate::{
    maps::{Backend, Flow, FlowKey, ServiceKey, direction, mode, state},
    verdict::Verdict,
};

/// How many source ports are tried towards a worker before a connection is refused.
pub const PORT_ATTEMPTS: u32 = 16;

/// A packet of no flow: the first of a connection, a stray one, or none of ours.
#[inline(never)]
pub(super) fn unknown<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey,
    decision: &mut Decision,
) -> Verdict {
    let service_key = ServiceKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol as u8,
        reserved: 0,
    };
    let Some(service) = tables.service(&service_key) else {
        return Verdict::NotOurs;
    };
    if !arrival.flags.opens() {
        return Verdict::NoFlow;
    }
    let id = choose(tables, key, service.id);
    let backend = match tables.backend(id) {
        Some(backend) if backend.state == state::UP => backend,
        _ => return Verdict::NoBackend,
    };
    let Some(mut pair) = tables.workbench() else {
        return Verdict::TableFull;
    };
    pair.request.backend = id;
    pair.request.service = service.id;
    match open(tables, arrival, key, &backend, &mut pair) {
        Ok(()) => {
            decision.opened = 1;
            leave(&pair.request, &backend, arrival, decision)
        }
        Err(verdict) => verdict,
    }
}

/// Begins a flow from the client's tuple `key` to `backend`.
#[inline(always)]
fn open<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey,
    backend: &Backend,
    pair: &mut Pair,
) -> Result<(), Verdict> {
    let now = tables.now_ns();
    pair.request = Flow {
        leaves: FlowKey {
            destination: backend.address,
            destination_port: backend.port.to_be_bytes(),
            ..*key
        },
        client_interface: arrival.interface,
        client_mac: arrival.source_mac,
        manager_mac: arrival.destination_mac,
        direction: direction::REQUEST,
        ended: 0,
        answered: 0,
        reserved: [0; 5],
        worker_sequence: 0,
        created_ns: now,
        last_seen_ns: now,
        twin_seen_ns: now,
        packets: 0,
        bytes: 0,
        ..pair.request
    };
    pair.reply = twin(key, &pair.request);
    if backend.mode == mode::LOCAL {
        let reply_key = pair.request.leaves.reversed();
        tables
            .put_half_open(&reply_key, &pair.reply)
            .map_err(|_| Verdict::TableFull)?;
    } else {
        if backend.interface == 0 {
            return Err(Verdict::NoRoute);
        }
        pair.request.leaves.source = backend.source;
        claim_port(tables, key, pair, now)?;
    }
    carry(&mut pair.request, arrival, now);
    tables
        .put_half_open(key, &pair.request)
        .map_err(|_| Verdict::TableFull)
}

/// Gives a new flow a source port towards its worker, by storing the reply entry that only one flow
/// can hold.
///
/// The first try adds the client's port to an offset that depends on its address only: as long as
/// the range is no smaller than the client's own, a client's connections never share a port, and
/// a port comes back to the worker no sooner than to the client, whose TIME_WAIT then protects both.
#[inline(always)]
fn claim_port<T: Tables>(
    tables: &T,
    key: &FlowKey,
    pair: &mut Pair,
    now: u64,
) -> Result<(), Verdict> {
    let settings = tables.settings().ok_or(Verdict::PortsExhausted)?;
    let count = u32::from(settings.nat_port_count);
    let address = u32::from_be_bytes(key.source);
    let start = (address.wrapping_mul(0x9e37_79b1) >> 8)
        .wrapping_add(u32::from(u16::from_be_bytes(key.source_port)));
    let stride = (count >> 5) | 1;
    for attempt in 0..PORT_ATTEMPTS {
        let offset = start
            .wrapping_add(attempt.wrapping_mul(stride))
            .checked_rem(count)
            .ok_or(Verdict::PortsExhausted)?;
        let port = settings.nat_port_first.wrapping_add(offset as u16);
        pair.request.leaves.source_port = port.to_be_bytes();
        let reply_key = pair.request.leaves.reversed();

        if !clear_established(tables, &reply_key, now) {
            continue;
        }
        match tables.add_half_open(&reply_key, &pair.reply) {
            Ok(()) => return Ok(()),
            Err(InsertError::Exists) if clear_half_open(tables, &reply_key, now) => {
                if tables.add_half_open(&reply_key, &pair.reply).is_ok() {
                    return Ok(());
                }
            }
            Err(InsertError::Exists) => {}
            Err(InsertError::Full) => return Err(Verdict::TableFull),
        }
    }
    Err(Verdict::PortsExhausted)
}

/// Makes room at `reply_key` in the established table; not if a live flow is there.
#[inline(always)]
fn clear_established<T: Tables>(tables: &T, reply_key: &FlowKey, now: u64) -> bool {
    let Some(holder) = tables.established(reply_key) else {
        return true;
    };
    let holder_key = holder.leaves.reversed();
    let twin = tables
        .established(&holder_key)
        .filter(|twin| are_twins(reply_key, twin));
    if !is_over(tables, &holder, twin.as_deref(), now, |settings| {
        settings.established_idle_ns
    }) {
        return false;
    }
    let has_twin = twin.is_some();
    drop((holder, twin));
    if has_twin {
        tables.remove_established(&holder_key);
    }
    tables.remove_established(reply_key);
    true
}

/// Makes room at `reply_key` in the half-open table; not if a handshake is under way there.
#[inline(always)]
fn clear_half_open<T: Tables>(tables: &T, reply_key: &FlowKey, now: u64) -> bool {
    let Some(holder) = tables.half_open(reply_key) else {
        return true;
    };
    let holder_key = holder.leaves.reversed();
    let twin = tables
        .half_open(&holder_key)
        .filter(|twin| are_twins(reply_key, twin));
    if !is_over(tables, &holder, twin.as_deref(), now, |settings| {
        settings.half_open_idle_ns
    }) {
        return false;
    }
    let has_twin = twin.is_some();
    drop((holder, twin));
    if has_twin {
        tables.remove_half_open(&holder_key);
    }
    tables.remove_half_open(reply_key);
    true
}
