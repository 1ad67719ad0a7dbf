//! ICMP errors about flows: they are forwarded to the sender of the quoted packet.

use super::{
    Decision, Exit, Forwarding, Hook, PacketMeta, Tables, decide_exit,
    flow::{is_live, is_recent, is_reverse_of, keeps_flows},
    slot::NO_SLOT,
    unknown::unknown,
};
use crate::{
    maps::{BY_ROUTE, FlowKey, IN_FRAGMENTS, direction, mode},
    verdict::Verdict,
};

/// Decides on an ICMP error. `key` is the tuple of replies to the quoted packet: the error is forwarded like a packet
/// with that tuple, and afterwards quotes the reverse of the decision's `translated`.
#[inline(always)]
pub fn steer_error<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) {
    *decision = Decision::NONE;
    decision.verdict = related(tables, packet, key, decision);
    if decision.verdict == Verdict::NotOurs {
        decision.verdict = unknown(tables, packet, key, Verdict::NotOurs, decision);
    }
}

#[inline(never)]
fn related<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let (found, is_pending) = match flow_forwarding(tables, key, packet.sequence) {
        Some(found) => (Some(found), false),
        None => {
            let found = handshake_forwarding(tables, packet.hook, key, packet.sequence);
            (found, true)
        }
    };
    let Some((forwarding, last)) = found else {
        return Verdict::NotOurs;
    };
    match tables.backend(forwarding.backend) {
        Some(backend) if keeps_flows(backend) => {
            // In mode `dsr`, the worker's numbers are unknown.
            let is_judged = !key.is_datagram() && backend.mode != mode::DSR;
            if is_judged && !is_recent(packet.sequence, last) {
                decision.backend = forwarding.backend;
                decision.exit = Exit::Drop;
                return Verdict::ImplausibleError;
            }
            if packet.port_unreachable && !forwarding.is_request {
                count_refusal(tables, forwarding.backend, is_pending, key.is_datagram());
            }
            let is_shared = forwarding.is_request && backend.mode == mode::NAT;
            if is_shared
                && packet.fragmentation_needed
                && mark_narrow_path(tables, key, &forwarding)
            {
                decision.backend = forwarding.backend;
                decision.exit = Exit::Drop;
                return Verdict::NarrowPath;
            }
            decide_exit(&forwarding, backend, decision)
        }
        _ => {
            decision.backend = forwarding.backend;
            Verdict::BackendDown
        }
    }
}

/// Counts a worker's error "port unreachable". About an established segment it has no effect.
#[inline(always)]
fn count_refusal<T: Tables>(tables: &T, backend: u32, is_pending: bool, is_datagram: bool) {
    tables.count_traffic(backend, |traffic| {
        if is_pending {
            traffic.refused += 1;
        } else if is_datagram {
            traffic.resets += 1;
        }
    });
}

/// Marks the connection so that the worker's segments leave by [`Exit::ClientInFragments`]. The worker sees all clients
/// at the manager's address, and would apply one narrow path to all of them. Returns whether there is such a
/// connection; datagrams are excluded, because their identification is not unique (RFC 6864).
#[inline(always)]
fn mark_narrow_path<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    forwarding: &Forwarding<T::Address>,
) -> bool {
    if key.is_datagram() {
        return false;
    }
    let reply = tables.established(&forwarding.translated.reversed());
    let Some(mut reply) = reply.filter(|reply| is_reverse_of(key, reply)) else {
        return false;
    };
    reply.client_interface |= IN_FRAGMENTS;
    true
}

/// Forwarding of an established flow, and the last sequence number of the quoted packet's sender, or `unknown`.
#[inline(always)]
fn flow_forwarding<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    unknown: u32,
) -> Option<(Forwarding<T::Address>, u32)> {
    let flow = tables.established(key).filter(|flow| is_live(flow))?;
    let forwarding = Forwarding {
        is_request: flow.direction == direction::REQUEST,
        translated: flow.translated,
        backend: flow.backend,
        // The flags concern replies only.
        client_interface: flow.client_interface & !(BY_ROUTE | IN_FRAGMENTS),
        client_mac: flow.client_mac,
        manager_mac: flow.manager_mac,
    };
    drop(flow);
    let sender = tables
        .established(&forwarding.translated.reversed())
        .filter(|sender| is_reverse_of(key, sender));
    Some((forwarding, sender.map_or(unknown, |sender| sender.sequence)))
}

/// The same for a handshake.
#[inline(always)]
fn handshake_forwarding<T: Tables>(
    tables: &T,
    hook: Hook,
    key: &FlowKey<T::Address>,
    unknown: u32,
) -> Option<(Forwarding<T::Address>, u32)> {
    let worker = match tables.find_by_reply(hook, key) {
        NO_SLOT => tables.find_by_routed_reply(hook, key),
        worker => worker,
    };
    let is_request = worker == NO_SLOT;
    let slot = if is_request {
        tables.find_by_client(key)
    } else {
        worker
    };
    let handshake = tables.handshake(slot)?;
    let last = if !is_request {
        handshake.client_sequence
    } else if handshake.answered == 1 {
        handshake.worker_sequence
    } else {
        unknown
    };
    let forwarding = Forwarding {
        is_request,
        translated: if is_request {
            handshake.translated
        } else {
            handshake.client.reversed()
        },
        backend: handshake.backend,
        client_interface: handshake.client_interface,
        client_mac: handshake.client_mac,
        manager_mac: handshake.manager_mac,
    };
    Some((forwarding, last))
}
