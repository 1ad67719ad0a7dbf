//! The way of packets of handshakes, until the client has proved that it is there.

use super::{
    Arrival, Decision, InsertError, Tables, Way,
    established::look_again,
    flow::{ending, is_from_elsewhere, is_live, is_near, keeps_flows, past_end, uncount},
    is_left_to_tc, leave,
    port::{Remains, release},
};
use crate::{
    address::Address,
    maps::{Backend, Flow, FlowKey, Handshake, direction, ended, mode, progress, ticks},
    verdict::Verdict,
};

/// How far, in bytes, an acknowledgement may lie beyond the SYN or the SYN-ACK: either may carry data, and
/// a worker may send more before the handshake is complete (RFC 7413).
const EARLY_DATA: u32 = 65_536;

/// How far, in bytes, sequence numbers of one connection may lie apart (RFC 7323, section 2.2).
const MOST_WINDOW: u32 = 1 << 30;

/// A packet from the worker, or from the manager's own server, of the handshake at `place`.
#[inline(never)]
pub(super) fn answer<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    place: u32,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let Some(mut handshake) = tables.handshake(place) else {
        return Verdict::NotOurs;
    };
    let Some(backend) = tables.backend(handshake.backend) else {
        return Verdict::NoBackend;
    };
    if is_from_elsewhere(backend, arrival) {
        return Verdict::WrongInterface;
    }
    let way = Way {
        is_request: false,
        leaves: handshake.client.reversed(),
        ..way(&handshake)
    };
    if is_left_to_tc(tables, &way, backend, arrival) {
        return leave(&way, backend, decision);
    }
    handshake.bytes_out = handshake.bytes_out.wrapping_add(arrival.bytes);
    if is_about(&handshake, arrival) {
        decision.plausible = 1;
        handshake.ended |= ending(arrival.flags);
        if arrival.flags.accepts() || handshake.client.is_datagram() {
            handshake.worker_sequence = arrival.sequence;
            handshake.answered = 1;
        }
        if handshake.progress == progress::CLIENT {
            handshake.progress = progress::WORKER;
        }
        if arrival.flags.resets() {
            drop(handshake);
            retire(tables, place, Remains::Nothing);
        }
    }
    leave(&way, backend, decision)
}

/// Ends the handshake at `place`, and gives its port back.
#[inline(never)]
pub(super) fn retire<T: Tables>(tables: &T, place: u32, remains: Remains) -> u32 {
    let Some(mut handshake) = tables.handshake(place) else {
        return 0;
    };
    if !handshake.is_whole() {
        return 0;
    }
    let (backend, leaves) = (handshake.backend, handshake.leaves);
    handshake.backend = 0;
    drop(handshake);
    release(tables, backend, &leaves, remains)
}

/// Whether what a worker sends is about this connection, and not the last words of the one before on the
/// same tuple, or forged: it acknowledges the client's SYN (RFC 9293, section 3.10.7.3), or follows what
/// did. Datagrams have no number.
#[inline(always)]
fn is_about<A: Address>(handshake: &Handshake<A>, arrival: &Arrival) -> bool {
    if handshake.answered == 1 {
        return is_near(arrival.sequence, handshake.worker_sequence);
    }
    let beyond = arrival
        .acknowledgement
        .wrapping_sub(handshake.client_sequence)
        .wrapping_sub(1);
    beyond < EARLY_DATA || handshake.client.is_datagram()
}

/// A packet of the client that begins nothing, of the handshake at `place`.
#[inline(never)]
pub(super) fn go_on<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey<T::Address>,
    place: u32,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let Some(mut handshake) = tables.handshake(place) else {
        return Verdict::NoFlow;
    };
    let Some(backend) = tables
        .backend(handshake.backend)
        .filter(|backend| keeps_flows(backend))
    else {
        if handshake.backend == 0 {
            return look_again(tables, key, Verdict::NoFlow, decision);
        }
        decision.backend = handshake.backend;
        drop(handshake);
        retire(tables, place, Remains::Perhaps);
        return Verdict::BackendDown;
    };
    let left_to_tc = is_left_to_tc(tables, &way(&handshake), backend, arrival);
    if left_to_tc || !completes(&handshake, backend, arrival) {
        if !left_to_tc && is_half_seen(&handshake, arrival) {
            tables.count_unanswered(handshake.backend);
        }
        if !left_to_tc {
            note_progress(tables, &mut handshake, backend, arrival);
        }
        let is_end = arrival.flags.resets()
            && !left_to_tc
            && is_near(arrival.sequence, handshake.client_sequence);
        drop(handshake);
        let verdict = forward_request(tables, arrival, place, decision);
        if is_end {
            retire(tables, place, Remains::Nothing);
        }
        return verdict;
    }
    let way = Way {
        client_interface: arrival.interface,
        client_mac: arrival.source_mac,
        manager_mac: arrival.destination_mac,
        ..way(&handshake)
    };
    // Another processor may be at it. It may even have finished, and the place be another client's.
    let is_first = tables.complete(&mut handshake);
    if !handshake.is_whole() || !handshake.client.is(key) {
        return look_again(tables, key, Verdict::NoFlow, decision);
    }
    if is_first {
        if establish(tables, arrival, key, &handshake).is_err() {
            drop(handshake);
            retire(tables, place, Remains::Perhaps);
            return Verdict::TableFull;
        }
        // The port is the connection's from now on.
        handshake.backend = 0;
    }
    leave(&way, backend, decision)
}

/// Sends a client's packet on to the worker of the handshake at `place`.
#[inline(never)]
pub(super) fn forward_request<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    place: u32,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let Some(mut handshake) = tables.handshake(place) else {
        return Verdict::NoFlow;
    };
    let Some(backend) = tables.backend(handshake.backend) else {
        return Verdict::NoBackend;
    };
    let way = way(&handshake);
    if is_left_to_tc(tables, &way, backend, arrival) {
        return leave(&way, backend, decision);
    }
    if arrival.flags.opens() || handshake.client.is_datagram() {
        handshake.syn_ns = tables.now_ns();
    }
    handshake.client_interface = arrival.interface;
    handshake.client_mac = arrival.source_mac;
    handshake.manager_mac = arrival.destination_mac;
    handshake.bytes_in = handshake.bytes_in.wrapping_add(arrival.bytes);
    if backend.mode == mode::DSR {
        // Answers do not come by here, nor is it seen how they end. The worker may have answered: a second
        // one would, too, and the client believe the one and speak to the other.
        handshake.answered = 1;
        handshake.ended = ended::FIN;
    }
    leave(&way, backend, decision)
}

/// The client's way to the worker.
#[inline(always)]
fn way<A: Address>(handshake: &Handshake<A>) -> Way<A> {
    Way {
        is_request: true,
        leaves: handshake.leaves,
        backend: handshake.backend,
        client_interface: handshake.client_interface,
        client_mac: handshake.client_mac,
        manager_mac: handshake.manager_mac,
    }
}

/// Whether the client proves that it is there: it acknowledges the worker's SYN-ACK, which only its
/// true receiver can, or goes on after a second answer. Where answers do not come by here, it must go on twice.
#[inline(always)]
fn completes<A: Address>(handshake: &Handshake<A>, backend: &Backend, arrival: &Arrival) -> bool {
    let is_direct = backend.mode == mode::DSR;
    if handshake.client.is_datagram() {
        return handshake.progress
            == if is_direct {
                progress::CLIENT
            } else {
                progress::WORKER
            };
    }
    if is_direct {
        return handshake.progress == progress::CLIENT && has_advanced(handshake, arrival);
    }
    acknowledges_after(
        handshake.worker_sequence,
        arrival.acknowledgement,
        handshake,
        arrival,
    )
}

/// Whether the client acknowledges, with a number that follows `start`, what a worker has answered.
#[inline(always)]
fn acknowledges_after<A: Address>(
    start: u32,
    number: u32,
    handshake: &Handshake<A>,
    arrival: &Arrival,
) -> bool {
    let beyond = number.wrapping_sub(start).wrapping_sub(1);
    handshake.answered == 1 && arrival.flags.acknowledges() && beyond < EARLY_DATA
}

/// Whether the client acknowledges a SYN-ACK that did not pass here.
#[inline(always)]
fn is_half_seen<A: Address>(handshake: &Handshake<A>, arrival: &Arrival) -> bool {
    let is_segment = !handshake.client.is_datagram();
    is_segment && handshake.answered == 0 && arrival.flags.acknowledges()
}

/// Whether a client whose answers do not come by here goes on after its first acknowledgement: it acknowledges
/// more, or has sent more.
#[inline(always)]
fn has_advanced<A: Address>(handshake: &Handshake<A>, arrival: &Arrival) -> bool {
    let sent = arrival
        .sequence
        .wrapping_sub(handshake.client_sequence)
        .wrapping_sub(1);
    let received = arrival
        .acknowledgement
        .wrapping_sub(handshake.worker_sequence);
    let (has_sent, has_received) = (sent != 0, received != 0);
    arrival.flags.acknowledges()
        && sent < MOST_WINDOW
        && received < MOST_WINDOW
        && (has_sent || has_received)
}

/// Notes that a client has gone on that has not proved yet that it is there.
#[inline(always)]
fn note_progress<T: Tables>(
    tables: &T,
    handshake: &mut Handshake<T::Address>,
    backend: &Backend,
    arrival: &Arrival,
) {
    let is_first = handshake.progress == progress::NONE;
    if handshake.client.is_datagram() {
        if is_first && handshake.answered == 1 {
            handshake.progress = progress::CLIENT;
        }
        return;
    }
    if backend.mode != mode::DSR || !arrival.flags.acknowledges() {
        return;
    }
    if is_first {
        let (start, number) = (handshake.client_sequence, arrival.sequence);
        if !acknowledges_after(start, number, handshake, arrival) {
            return;
        }
        handshake.progress = progress::CLIENT;
        handshake.worker_sequence = arrival.acknowledgement;
    }
    handshake.syn_ns = tables.now_ns();
}

/// Makes both entries of a completed handshake's flow.
#[inline(always)]
fn establish<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey<T::Address>,
    handshake: &Handshake<T::Address>,
) -> Result<(), InsertError> {
    let now = tables.now_ns();
    let reply_key = handshake.leaves.reversed();
    // Both sides may have said all they had to say with their first segments.
    let is_open = !ended::both(ending(arrival.flags), handshake.ended);
    let mut sequences = [handshake.client_sequence, handshake.worker_sequence];
    if arrival.flags.finishes() {
        sequences[0] = past_end(arrival);
    }
    if handshake.ended != 0 {
        // All that the worker has sent is counted, and its headers.
        sequences[1] = sequences[1].wrapping_add(handshake.bytes_out);
    }
    let mut pair = tables.workbench().ok_or(InsertError::Full)?;
    pair.request = Flow {
        leaves: handshake.leaves,
        client_mac: arrival.source_mac,
        manager_mac: arrival.destination_mac,
        backend: handshake.backend,
        client_interface: arrival.interface,
        direction: direction::REQUEST,
        ended: ending(arrival.flags),
        counted: is_open.into(),
        superseded: 0,
        created_ticks: ticks(handshake.created_ns),
        last_seen_ticks: ticks(now),
        sequence: sequences[0],
        bytes: u64::from(handshake.bytes_in) + u64::from(arrival.bytes),
    };
    pair.reply = Flow {
        leaves: key.reversed(),
        direction: direction::REPLY,
        sequence: sequences[1],
        ended: handshake.ended,
        counted: 0,
        bytes: handshake.bytes_out.into(),
        ..pair.request
    };
    store(tables, &reply_key, &pair.reply)?;
    if let Err(error) = store(tables, key, &pair.request) {
        tables.remove_established(&reply_key);
        return Err(error);
    }
    if is_open {
        tables.count_active(pair.request.backend, true);
    }
    Ok(())
}

/// Stores an entry, in the place of one that is free for it; not over another live flow. Whoever finds it
/// there finds it whole.
#[inline(never)]
fn store<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    flow: &Flow<T::Address>,
) -> Result<(), InsertError> {
    match tables.established(key) {
        Some(present) if is_live(&present) && present.leaves != flow.leaves => {
            Err(InsertError::Exists)
        }
        Some(mut present) => {
            uncount(tables, &mut present);
            present.superseded = 1;
            *present = Flow {
                superseded: 1,
                ..*flow
            };
            tables.publish(&mut present);
            Ok(())
        }
        None => tables.add_established(key, flow),
    }
}
