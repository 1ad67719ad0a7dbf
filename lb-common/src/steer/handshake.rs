//! The way of packets of handshakes, until the client has proved that it is there.

use super::{
    Arrival, Decision, Exit, InsertError, Tables,
    flow::{are_twins, carry, ending, is_over, keeps_flows, twin},
    leave,
};
use crate::{
    headers::TcpFlags,
    maps::{Flow, FlowKey, direction, state},
    verdict::Verdict,
};

/// How far, in bytes, the acknowledgement that completes a handshake may lie beyond the SYN-ACK: a
/// worker may send data before it (RFC 7413).
const EARLY_DATA: u32 = 65_536;

/// The way of a packet of a handshake; `None` if there is none, or it begins anew.
///
/// This and [`unknown`] stand apart from the way of established flows, so that theirs stays short.
/// They take room for the decision and return a part that the caller needs: the verifier lets no
/// function leave a pointer to its caller's stack in the result register, as a function that
/// returns a structure, or nothing, does.
#[inline(never)]
pub(super) fn half_open<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey,
    decision: &mut Decision,
) -> Option<Verdict> {
    let mut flow = tables.half_open(key)?;
    let Some(backend) = tables.backend(flow.backend) else {
        return Some(Verdict::NoBackend);
    };
    let now = tables.now_ns();
    let flags = arrival.flags;
    let is_request = flow.direction == direction::REQUEST;
    let twin_key = flow.leaves.reversed();
    let twin = tables
        .half_open(&twin_key)
        .filter(|twin| are_twins(key, twin));
    // A repeated SYN of a handshake that has lost its worker begins anew with another one.
    let begins = is_request
        && flags.opens()
        && (backend.state != state::UP
            || is_over(tables, &flow, twin.as_deref(), now, |settings| {
                settings.half_open_idle_ns
            }));
    let lost = is_request && !keeps_flows(&backend);
    let has_twin = twin.is_some();
    if begins || lost || (!has_twin && !goes_on_alone(tables, &twin_key, is_request, flags)) {
        drop((flow, twin));
        if has_twin {
            tables.remove_half_open(&twin_key);
        }
        tables.remove_half_open(key);
        return if is_request && flags.opens() {
            None
        } else if lost {
            Some(Verdict::BackendDown)
        } else {
            Some(Verdict::NoFlow)
        };
    }

    carry(&mut flow, arrival, now);
    flow.ended |= ending(flags);
    let verdict = leave(&flow, &backend, arrival, decision);
    if is_request && completes(&flow, arrival) {
        let twin_ended = twin.map_or(0, |twin| twin.ended);
        flow.twin_seen_ns = now;
        if promote(tables, key, &twin_key, &flow, twin_ended).is_err() {
            decision.exit = Exit::Pass;
            return Some(Verdict::TableFull);
        }
    } else if !is_request
        && flags.accepts()
        && let Some(mut request) = twin
    {
        request.answered = 1;
        request.worker_sequence = arrival.sequence;
    }
    Some(verdict)
}

/// Whether a handshake may go on whose other direction's entry was evicted, as a flood does: only
/// towards its end, which brings the entry back, and unless another flow has taken the place.
#[inline(always)]
fn goes_on_alone<T: Tables>(
    tables: &T,
    twin_key: &FlowKey,
    is_request: bool,
    flags: TcpFlags,
) -> bool {
    is_request
        && !flags.opens()
        && tables.half_open(twin_key).is_none()
        && tables.established(twin_key).is_none()
}

/// Whether the client acknowledges the worker's SYN-ACK, which only its true receiver can.
#[inline(always)]
fn completes(flow: &Flow, arrival: &Arrival) -> bool {
    let beyond = arrival
        .acknowledgement
        .wrapping_sub(flow.worker_sequence)
        .wrapping_sub(1);
    flow.answered == 1 && arrival.flags.acknowledges() && beyond < EARLY_DATA
}

/// Moves a completed handshake to the established table.
#[inline(always)]
fn promote<T: Tables>(
    tables: &T,
    key: &FlowKey,
    twin_key: &FlowKey,
    flow: &Flow,
    twin_ended: u8,
) -> Result<(), InsertError> {
    let mut pair = tables.workbench().ok_or(InsertError::Full)?;
    pair.request = *flow;
    pair.reply = twin(key, flow);
    pair.reply.ended = twin_ended;
    tables.put_established(twin_key, &pair.reply)?;
    tables.put_established(key, &pair.request)?;
    tables.remove_half_open(key);
    tables.remove_half_open(twin_key);
    Ok(())
}
