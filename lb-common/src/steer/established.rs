//! The way of packets of established flows: one look-up of the flow, one of its backend.

use super::{
    Decision, Forwarding, Hook, PacketMeta, Tables, decide_exit,
    flow::{
        account, close, end_bits, has_moved, is_in_window, is_live, is_over, is_plausible,
        is_reverse_of, is_wrong_interface, keeps_flows, reverse_entry, uncount,
    },
    port::{TimeWait, release},
    slot::{NO_SLOT, find_by_reply},
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
const REVERSE_SYNC_PERIOD: u32 = ticks(1 << 30);

/// A client that has not acknowledged replies for so long may be behind a router that has died, or that no
/// longer forwards.
const CLIENT_TIMEOUT: u32 = ticks(2_000_000_000);

/// A client may keep an acknowledgement back for so long (RFC 9293, section 3.8.6.3).
const LATEST_ACKNOWLEDGEMENT: u32 = ticks(500_000_000);

/// The way of an established flow's packet; `None` if the flow is over and the packet may belong to
/// the next one.
#[inline(always)]
pub(super) fn established<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
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
    if !is_request && is_wrong_interface(backend, packet) {
        return Some(Verdict::WrongInterface);
    }
    let keeps = keeps_flows(backend);
    let now = ticks(tables.now_ns());
    // Only a silence that could have been too long is looked at closely.
    let was_idle =
        key.is_datagram() && now.wrapping_sub(flow.last_seen_ticks) > REVERSE_SYNC_PERIOD;
    let may_be_over = if is_request {
        packet.flags.is_syn() || !keeps || was_idle
    } else {
        // The manager's own server may answer another connection of the same port: one that came to it
        // directly, or by another service.
        backend.mode == mode::LOCAL && (packet.flags.is_syn_ack() || was_idle)
    };
    if may_be_over {
        match end_if_over(tables, packet.flags, key, &mut flow, keeps) {
            FlowEnd::Continues => {}
            FlowEnd::Over => return None,
            FlowEnd::BackendDown => {
                decision.backend = flow.backend;
                return Some(Verdict::BackendDown);
            }
        }
    }

    // What its sender cannot have sent is left to the receiver's judgement, and changes nothing here.
    let plausible = is_plausible(&flow, packet);
    if plausible {
        decision.plausible = 1;
        if flow.ended | end_bits(packet.flags) == 0 {
            flow.sequence = packet.sequence;
        } else {
            close(tables, packet, key, &mut flow);
        }
    }
    let moved = plausible && is_request && has_moved(&flow, packet);
    if moved {
        flow.client_interface = packet.interface;
        flow.client_mac = packet.source_mac;
        flow.manager_mac = packet.destination_mac;
    }
    let is_due = now / REVERSE_SYNC_PERIOD != flow.last_seen_ticks / REVERSE_SYNC_PERIOD;
    if (moved || is_due) && !sync_reverse_entry(tables, packet, key, &mut flow, now) {
        uncount(tables, &mut flow);
        drop(flow);
        tables.remove_established(key);
        return Some(Verdict::NoFlow);
    }
    account(&mut flow, packet, now);
    Some(decide_exit(&forwarding(&flow), backend, decision))
}

/// The way of a packet that belonged to no flow when it came, and belongs to no handshake: another processor
/// may have made the one from the other meanwhile. If not, its verdict is `otherwise`.
#[inline(never)]
pub(super) fn recheck_established<T: Tables>(
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
    decide_exit(&forwarding(&flow), backend, decision)
}

#[inline(always)]
fn forwarding<A: Address>(flow: &Flow<A>) -> Forwarding<A> {
    Forwarding {
        is_request: flow.direction == direction::REQUEST,
        translated: flow.translated,
        backend: flow.backend,
        client_interface: flow.client_interface,
        client_mac: flow.client_mac,
        manager_mac: flow.manager_mac,
    }
}

/// Whether an established flow had to go.
#[repr(u32)]
enum FlowEnd {
    Continues,
    /// It was over, and its client begins a new one.
    Over,
    BackendDown,
}

/// Supersedes a flow that a SYN, a SYN-ACK or a datagram finds over, or whose backend is down, from which
/// a SYN leads to another one. Datagrams have no RST: theirs begins anew.
#[inline(never)]
fn end_if_over<T: Tables>(
    tables: &T,
    flags: TcpFlags,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
    keeps: bool,
) -> FlowEnd {
    let Some(settings) = tables.settings() else {
        return FlowEnd::Continues;
    };
    let mut reverse = tables
        .established(&flow.translated.reversed())
        .filter(|reverse| is_reverse_of(key, reverse));
    let now = tables.now_ns();
    let is_request = flow.direction == direction::REQUEST;
    let begins = flags.is_syn() || flags.is_syn_ack() || key.is_datagram();
    // What has ended counts no more, even where the entry that showed the other end was evicted since.
    let ended = is_request && flow.counted == 0;
    let over = begins && (ended || is_over(settings, flow, reverse.as_deref(), now));
    if !over && (keeps || !is_request) {
        return FlowEnd::Continues;
    }
    flow.superseded = 1;
    let mut was_open = uncount(tables, flow);
    if let Some(reverse) = reverse.as_deref_mut() {
        reverse.superseded = 1;
        was_open |= uncount(tables, reverse);
    }
    drop(reverse);
    if was_open {
        let translated = if is_request {
            flow.translated
        } else {
            key.reversed()
        };
        release(tables, flow.backend, &translated, TimeWait::Possible);
    }
    if begins {
        FlowEnd::Over
    } else {
        FlowEnd::BackendDown
    }
}

/// Brings the other direction's entry in line with `flow`, and back if it was evicted. Returns whether
/// the flow may go on: not when another one has taken the place of an evicted entry.
#[inline(never)]
fn sync_reverse_entry<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
    now: u32,
) -> bool {
    let reverse_key = flow.translated.reversed();
    if let Some(mut reverse) = tables.established(&reverse_key) {
        if !is_reverse_of(key, &reverse) || !is_live(&reverse) {
            return false;
        }
        if flow.direction == direction::REQUEST {
            reverse.client_interface =
                flow.client_interface | reverse.client_interface & IN_FRAGMENTS;
            reverse.client_mac = flow.client_mac;
            reverse.manager_mac = flow.manager_mac;
        } else if !key.is_datagram() {
            flow.client_interface = interface_to_client(flow, reverse.last_seen_ticks, now);
        }
        // Who knows the other side's number is heard: that of an entry that was made anew may be wrong.
        let is_known = is_in_window(packet.acknowledgement, reverse.sequence);
        if packet.flags.is_ack() && is_known && flow.ended == 0 {
            flow.sequence = packet.sequence;
        }
    } else if flow.direction == direction::REQUEST
        && find_by_reply(tables, Hook::Ingress, &reverse_key) != NO_SLOT
    {
        // Without its entry, the port was free for the next client's handshake.
        return false;
    } else if let Some(mut scratch) = tables.flow_scratch() {
        scratch.reply = reverse_entry(key, flow, packet);
        // What was evicted is still in the count until the next recount: the new entry is one more.
        let counts = flow.direction == direction::REPLY && flow.ended == 0;
        scratch.reply.counted = counts.into();
        // A full table is counted where a connection is refused, not where one goes on.
        if tables.add_established(&reverse_key, &scratch.reply).is_ok() && counts {
            tables.count_active(flow.backend, true);
        }
    }
    true
}

/// The interface by which replies leave, with [`BY_ROUTE`] or without. While the client does not
/// acknowledge, they take the manager's route and the client's last link address by turns, one period of
/// [`REVERSE_SYNC_PERIOD`] each: either may be the one that works. The client's next packet ends that.
#[inline(always)]
fn interface_to_client<A>(reply: &Flow<A>, client_seen: u32, now: u32) -> u32 {
    let interface = reply.client_interface;
    let later_by = |than: u32, then: u32| than.wrapping_sub(then) as i32;
    let unanswered = later_by(reply.last_seen_ticks, client_seen) > LATEST_ACKNOWLEDGEMENT as i32;
    let silent = later_by(now, client_seen) > CLIENT_TIMEOUT as i32;
    // The route's interface has no tag; the frames of this one have.
    let has_route = interface != LOOPBACK && reply.client_mac.tag() == 0;
    if unanswered && silent && has_route {
        interface ^ BY_ROUTE
    } else {
        interface & !BY_ROUTE
    }
}
