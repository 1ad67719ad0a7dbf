//! Refused handshakes: the SYN goes to another worker at once, and the client does not get the RST.
//!
//! Two functions do that, because Linux 6.1 allows 512 bytes of stack for all nested calls: first `begin_retry` of
//! `handshake.rs`, then [`retry_refused`]. The stored SYN has no data, so no server has read data of the client.

use super::{
    Decision, Exit, PacketMeta, Tables,
    choice::Tried,
    decide_exit,
    flow::supersede_own,
    handshake::{forwarding, handle_worker_packet},
    port::{TimeWait, record_handshake},
};
use crate::{
    maps::{MAX_REFUSALS, NO_PORT, mode},
    verdict::Verdict,
};

/// The slot of the handshake that the packet has begun, if its SYN must be kept.
#[inline(always)]
pub fn kept_slot<T: Tables>(tables: &T) -> Option<u32> {
    let scratch = tables.flow_scratch()?;
    (scratch.pending.keeps_syn != 0).then_some(scratch.pending.slot)
}

/// Completes the decision on a RST with [`Verdict::Retried`]: the SYN replaces it, or, where no worker is left, the
/// client gets it.
#[inline(always)]
pub fn retry_refused<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    decision: &mut Decision<T::Address>,
) {
    let slot = tables.flow_scratch().map_or(0, |it| it.pending.slot);
    if tables.move_handshake(slot) == 0 {
        if let Some(mut handshake) = tables.handshake(slot) {
            handshake.keeps_syn = 0;
        }
        decision.verdict = handle_worker_packet(tables, packet, slot, decision);
        return;
    }
    let Some(handshake) = tables.handshake(slot) else {
        return;
    };
    if let Some(backend) = tables.backend(handshake.backend) {
        decide_exit(&forwarding(&handshake), backend, decision);
        decision.verdict = Verdict::Retried;
    }
    if decision.exit == Exit::Local {
        // The SYN arrives once more where the client's packets arrive, and follows its handshake to the local stack.
        decision.translated = handshake.client;
        decision.interface = handshake.client_interface;
        decision.destination_mac = handshake.client_mac;
    }
}

/// Moves the handshake in `slot` to a worker that has not refused it. Returns the worker's id, or 0 if there is none.
#[inline(always)]
pub fn move_handshake<T: Tables>(tables: &T, slot: u32) -> u32 {
    let (Some(mut scratch), Some(handshake)) = (tables.flow_scratch(), tables.handshake(slot))
    else {
        return 0;
    };
    let [a, b, c] = handshake.refused_by;
    let is_kept = tables.keeps_syn(slot, &handshake.client, handshake.client_sequence);
    if !handshake.is_valid() || !is_kept || c != 0 {
        return 0;
    }
    let (service, refusing) = (handshake.service, handshake.backend);
    scratch.pending.client = handshake.client;
    drop((scratch, handshake));
    let next = tables.choose_another(service, 0, &Tried([refusing, a, b, c]));
    if !translate_pending(tables, next) {
        return 0;
    }
    let (Some(scratch), Some(mut handshake)) = (tables.flow_scratch(), tables.handshake(slot))
    else {
        return 0;
    };
    tables.release(refusing, TimeWait::None, &handshake.translated);
    handshake.translated = scratch.pending.translated;
    handshake.backend = next;
    handshake.refused_by = refusals([a, b, c], refusing);
    handshake.syn_ns = tables.now_ns();
    handshake.integrity_tag = handshake.compute_integrity_tag();
    record_handshake(tables, next, &handshake.translated, slot);
    tables.count_traffic(refusing, |traffic| {
        traffic.refused += 1;
        traffic.retried += 1;
    });
    tables.count_traffic(next, |traffic| traffic.connections += 1);
    next
}

/// Translates the pending connection to a backend, and allocates a source port if its mode needs one. Returns whether
/// the backend can receive the SYN.
#[inline(always)]
fn translate_pending<T: Tables>(tables: &T, id: u32) -> bool {
    let (Some(backend), Some(mut scratch)) = (tables.backend(id), tables.flow_scratch()) else {
        return false;
    };
    if id == 0 || backend.interface == 0 && backend.mode != mode::LOCAL {
        return false;
    }
    scratch.pending.translate(backend);
    drop(scratch);
    match backend.mode {
        mode::LOCAL => true,
        mode::NAT => tables.allocate(backend.port_pool) != NO_PORT,
        mode::ROUTED => supersede_own(tables),
        _ => false,
    }
}

/// Appends `one_more` to the backends that have refused.
#[inline(always)]
fn refusals([a, b, c]: [u32; MAX_REFUSALS], one_more: u32) -> [u32; MAX_REFUSALS] {
    if a == 0 {
        [one_more, 0, 0]
    } else if b == 0 {
        [a, one_more, 0]
    } else {
        [a, b, if c == 0 { one_more } else { c }]
    }
}
