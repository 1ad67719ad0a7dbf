//! The way of packets of established flows: one look-up of the flow, one of its backend.

use super::{
    Arrival, Decision, Hook, Tables, Way,
    flow::{
        are_twins, carry, close, ending, has_moved, is_from_elsewhere, is_live, is_near, is_over,
        is_plausible, keeps_flows, twin, uncount,
    },
    leave,
    place::{NOWHERE, find_worker},
    port::{Remains, release},
};
use crate::{
    address::Address,
    headers::TcpFlags,
    maps::{BY_ROUTE, Flow, FlowKey, IN_FRAGMENTS, LOOPBACK, direction, mode, ticks},
    verdict::Verdict,
};

/// A flow looks after its other direction's entry with its first packet of each period of so many
/// ticks, so that the two cannot be parted for long by the table's eviction. A power of two spares
/// the flow a note of when it last did.
const TWIN_CARE: u32 = ticks(1 << 30);

/// A client that has not acknowledged replies for so long may be behind a router that has died, or that no
/// longer forwards.
const CLIENT_SILENCE: u32 = ticks(2_000_000_000);

/// A client may keep an acknowledgement back for so long (RFC 9293, section 3.8.6.3).
const LATEST_ACKNOWLEDGEMENT: u32 = ticks(500_000_000);

/// The way of an established flow's packet; `None` if the flow is over and the packet may belong to
/// the next one.
#[inline(always)]
pub(super) fn established<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey<T::Address>,
    mut flow: T::Entry<'_>,
    decision: &mut Decision<T::Address>,
) -> Option<Verdict> {
    if !is_live(&flow) {
        return None;
    }
    let Some(backend) = tables.backend(flow.backend) else {
        return Some(Verdict::NoBackend);
    };
    let is_request = flow.direction == direction::REQUEST;
    if !is_request && is_from_elsewhere(backend, arrival) {
        return Some(Verdict::WrongInterface);
    }
    let keeps = keeps_flows(backend);
    let now = ticks(tables.now_ns());
    // Only a silence that could have been too long is looked at closely.
    let rested = key.is_datagram() && now.wrapping_sub(flow.last_seen_ticks) > TWIN_CARE;
    let may_be_over = if is_request {
        arrival.flags.opens() || !keeps || rested
    } else {
        // The manager's own server may answer another connection of the same port: one that came to it
        // directly, or by another service.
        backend.mode == mode::LOCAL && (arrival.flags.accepts() || rested)
    };
    if may_be_over {
        match dismiss(tables, arrival.flags, key, &mut flow, keeps) {
            Dismissal::None => {}
            Dismissal::Over => return None,
            Dismissal::BackendDown => {
                decision.backend = flow.backend;
                return Some(Verdict::BackendDown);
            }
        }
    }

    // What its sender cannot have sent is left to the receiver's judgement, and changes nothing here.
    let plausible = is_plausible(&flow, arrival);
    if plausible {
        decision.plausible = 1;
        if flow.ended | ending(arrival.flags) == 0 {
            flow.sequence = arrival.sequence;
        } else {
            close(tables, arrival, key, &mut flow);
        }
    }
    let moved = plausible && is_request && has_moved(&flow, arrival);
    if moved {
        flow.client_interface = arrival.interface;
        flow.client_mac = arrival.source_mac;
        flow.manager_mac = arrival.destination_mac;
    }
    let is_due = now / TWIN_CARE != flow.last_seen_ticks / TWIN_CARE;
    if (moved || is_due) && !look_after_twin(tables, arrival, key, &mut flow, now) {
        uncount(tables, &mut flow);
        drop(flow);
        tables.remove_established(key);
        return Some(Verdict::NoFlow);
    }
    carry(&mut flow, arrival, now);
    Some(leave(&way(&flow), backend, decision))
}

/// The way of a packet that belonged to no flow when it came, and belongs to no handshake: another processor
/// may have made the one from the other meanwhile. If not, its verdict is `otherwise`.
#[inline(never)]
pub(super) fn look_again<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    otherwise: Verdict,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let Some(flow) = tables.established(key).filter(|flow| is_live(flow)) else {
        return otherwise;
    };
    let Some(backend) = tables
        .backend(flow.backend)
        .filter(|backend| keeps_flows(backend))
    else {
        return otherwise;
    };
    leave(&way(&flow), backend, decision)
}

#[inline(always)]
fn way<A: Address>(flow: &Flow<A>) -> Way<A> {
    Way {
        is_request: flow.direction == direction::REQUEST,
        leaves: flow.leaves,
        backend: flow.backend,
        client_interface: flow.client_interface,
        client_mac: flow.client_mac,
        manager_mac: flow.manager_mac,
    }
}

/// Whether an established flow had to go.
#[repr(u32)]
enum Dismissal {
    None,
    /// It was over, and its client begins a new one.
    Over,
    BackendDown,
}

/// Supersedes a flow that a SYN, a SYN-ACK or a datagram finds over, or whose backend is down, from which
/// a SYN leads to another one. Datagrams have no RST: theirs begins anew.
#[inline(never)]
fn dismiss<T: Tables>(
    tables: &T,
    flags: TcpFlags,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
    keeps: bool,
) -> Dismissal {
    let Some(settings) = tables.settings() else {
        return Dismissal::None;
    };
    let mut twin = tables
        .established(&flow.leaves.reversed())
        .filter(|twin| are_twins(key, twin));
    let now = tables.now_ns();
    let is_request = flow.direction == direction::REQUEST;
    let begins = flags.opens() || flags.accepts() || key.is_datagram();
    // What has ended counts no more, even where the entry that showed the other end was evicted since.
    let ended = is_request && flow.counted == 0;
    let over = begins && (ended || is_over(settings, flow, twin.as_deref(), now));
    if !over && (keeps || !is_request) {
        return Dismissal::None;
    }
    flow.superseded = 1;
    let mut was_open = uncount(tables, flow);
    if let Some(twin) = twin.as_deref_mut() {
        twin.superseded = 1;
        was_open |= uncount(tables, twin);
    }
    drop(twin);
    if was_open {
        let leaves = if is_request {
            flow.leaves
        } else {
            key.reversed()
        };
        release(tables, flow.backend, &leaves, Remains::Perhaps);
    }
    if begins {
        Dismissal::Over
    } else {
        Dismissal::BackendDown
    }
}

/// Brings the other direction's entry in line with `flow`, and back if it was evicted. Returns whether
/// the flow may go on: not when another one has taken the place of an evicted entry.
#[inline(never)]
fn look_after_twin<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
    now: u32,
) -> bool {
    let twin_key = flow.leaves.reversed();
    if let Some(mut twin) = tables.established(&twin_key) {
        if !are_twins(key, &twin) || !is_live(&twin) {
            return false;
        }
        if flow.direction == direction::REQUEST {
            twin.client_interface = flow.client_interface | twin.client_interface & IN_FRAGMENTS;
            twin.client_mac = flow.client_mac;
            twin.manager_mac = flow.manager_mac;
        } else if !key.is_datagram() {
            flow.client_interface = interface_to_client(flow, twin.last_seen_ticks, now);
        }
        // Who knows the other side's number is heard: that of an entry that was made anew may be wrong.
        let is_known = is_near(arrival.acknowledgement, twin.sequence);
        if arrival.flags.acknowledges() && is_known && flow.ended == 0 {
            flow.sequence = arrival.sequence;
        }
    } else if flow.direction == direction::REQUEST
        && find_worker(tables, Hook::Ingress, &twin_key) != NOWHERE
    {
        // Without its entry, the port was free for the next client's handshake.
        return false;
    } else if let Some(mut pair) = tables.workbench() {
        pair.reply = twin(key, flow, arrival);
        // What was evicted is still in the count until the next recount: the new entry is one more.
        let counts = flow.direction == direction::REPLY && flow.ended == 0;
        pair.reply.counted = counts.into();
        // A full table is counted where a connection is refused, not where one goes on.
        if tables.add_established(&twin_key, &pair.reply).is_ok() && counts {
            tables.count_active(flow.backend, true);
        }
    }
    true
}

/// The interface by which replies leave, with [`BY_ROUTE`] or without. While the client does not
/// acknowledge, they take the manager's route and the client's last link address by turns, one period of
/// [`TWIN_CARE`] each: either may be the one that works. The client's next packet ends that.
#[inline(always)]
fn interface_to_client<A>(reply: &Flow<A>, client_seen: u32, now: u32) -> u32 {
    let interface = reply.client_interface;
    let later_by = |than: u32, then: u32| than.wrapping_sub(then) as i32;
    let unanswered = later_by(reply.last_seen_ticks, client_seen) > LATEST_ACKNOWLEDGEMENT as i32;
    let silent = later_by(now, client_seen) > CLIENT_SILENCE as i32;
    // The route's interface has no tag; the frames of this one have.
    let has_route = interface != LOOPBACK && reply.client_mac.tag() == 0;
    if unanswered && silent && has_route {
        interface ^ BY_ROUTE
    } else {
        interface & !BY_ROUTE
    }
}
