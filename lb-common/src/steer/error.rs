//! The way of ICMP error messages about flows: they go where the packet came from that they tell of.

use super::{
    Arrival, Decision, Exit, Hook, Tables, Way,
    flow::{are_twins, is_live, keeps_flows},
    leave,
    place::{NOWHERE, find_client, find_routed, find_worker},
};
use crate::{
    maps::{BY_ROUTE, FlowKey, IN_FRAGMENTS, direction, mode},
    verdict::Verdict,
};

/// Decides what becomes of an error message about the packet that `key` is the answering tuple of:
/// it goes on like a packet with that tuple, and tells of one with the reverse of the decision's
/// `leaves`.
#[inline(always)]
pub fn steer_error<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) {
    *decision = Decision::NONE;
    decision.verdict = related(tables, arrival, key, decision);
}

#[inline(never)]
fn related<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let way = match established(tables, key) {
        Some(way) => Some(way),
        None => under_way(tables, arrival.hook, key),
    };
    let Some(way) = way else {
        return Verdict::NotOurs;
    };
    match tables.backend(way.backend) {
        Some(backend) if keeps_flows(backend) => {
            let is_shared = way.is_request && backend.mode == mode::NAT;
            if is_shared && arrival.asks_for_fragments && narrows(tables, key, &way) {
                decision.backend = way.backend;
                decision.exit = Exit::Drop;
                return Verdict::NarrowPath;
            }
            leave(&way, backend, decision)
        }
        _ => {
            decision.backend = way.backend;
            Verdict::BackendDown
        }
    }
}

/// Marks the connection as one whose worker's segments must be cut up on their way to the client. To its worker all
/// clients have the manager's address: told of one narrow path, it would take it for all of theirs. Says whether
/// there is such a connection: datagrams have no numbers of their own to be put together by (RFC 6864).
#[inline(always)]
fn narrows<T: Tables>(tables: &T, key: &FlowKey<T::Address>, way: &Way<T::Address>) -> bool {
    if key.is_datagram() {
        return false;
    }
    let reply = tables.established(&way.leaves.reversed());
    let Some(mut reply) = reply.filter(|reply| are_twins(key, reply)) else {
        return false;
    };
    reply.client_interface |= IN_FRAGMENTS;
    true
}

#[inline(always)]
fn established<T: Tables>(tables: &T, key: &FlowKey<T::Address>) -> Option<Way<T::Address>> {
    let flow = tables.established(key).filter(|flow| is_live(flow))?;
    Some(Way {
        is_request: flow.direction == direction::REQUEST,
        leaves: flow.leaves,
        backend: flow.backend,
        // What is to become of replies does not concern a message.
        client_interface: flow.client_interface & !(BY_ROUTE | IN_FRAGMENTS),
        client_mac: flow.client_mac,
        manager_mac: flow.manager_mac,
    })
}

#[inline(always)]
fn under_way<T: Tables>(
    tables: &T,
    hook: Hook,
    key: &FlowKey<T::Address>,
) -> Option<Way<T::Address>> {
    let worker = match find_worker(tables, hook, key) {
        NOWHERE => find_routed(tables, hook, key),
        worker => worker,
    };
    let is_request = worker == NOWHERE;
    let place = if is_request {
        find_client(tables, key)
    } else {
        worker
    };
    let handshake = tables.handshake(place)?;
    Some(Way {
        is_request,
        leaves: if is_request {
            handshake.leaves
        } else {
            handshake.client.reversed()
        },
        backend: handshake.backend,
        client_interface: handshake.client_interface,
        client_mac: handshake.client_mac,
        manager_mac: handshake.manager_mac,
    })
}
