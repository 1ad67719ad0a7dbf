//! Packets of established flows: one look-up of the flow, one of its backend.

use super::{
    Decision, Forwarding, Hook, PacketMeta, Tables, client, decide_exit,
    flow::{
        account, count_open, end_bits, has_moved, is_in_window, is_live, is_over, is_plausible,
        is_reverse_of, is_wrong_interface, keeps_flows, reverse_entry, sequence_end, uncount,
    },
    port::TimeWait,
    report::{other_side, report_end},
    slot::NO_SLOT,
    unknown::is_from_peer,
};
use crate::{
    address::Address,
    headers::TcpFlags,
    maps::{BY_ROUTE, Flow, FlowKey, IN_FRAGMENTS, LOOPBACK, direction, mode, record_kind, ticks},
    verdict::Verdict,
};

/// Period in ticks in which a flow checks its reverse entry once, because the kernel may have evicted it. A power of
/// two, so that no field is needed for the time of the last check.
const REVERSE_SYNC_PERIOD: u32 = ticks(1 << 30);

/// Ticks without acknowledgement after which the router to the client may have failed.
const CLIENT_TIMEOUT: u32 = ticks(2_000_000_000);

/// Ticks by which a client may delay an acknowledgement (RFC 9293, section 3.8.6.3).
const LATEST_ACKNOWLEDGEMENT: u32 = ticks(500_000_000);

/// Decides on a packet of an established flow; `None` if the flow is over and the packet may begin the next one.
#[inline(always)]
pub(super) fn established<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    is_datagram: bool,
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
    let mut now = tables.now_ticks();
    // Check the exact idle times only after a possibly long silence.
    let was_idle = is_datagram && now.wrapping_sub(flow.last_seen_ticks) > REVERSE_SYNC_PERIOD;
    let may_be_over = if is_request {
        packet.flags.is_syn() || !keeps || was_idle
    } else {
        // The manager's own server may reply to another connection of the same port: a direct one, or one of another
        // service.
        backend.mode == mode::LOCAL && (packet.flags.is_syn_ack() || was_idle)
    };
    if may_be_over {
        match tables.end_if_over(packet.flags.0, keeps, key, &mut flow) {
            FlowEnd::Continues => {}
            FlowEnd::Over => return None,
            FlowEnd::BackendDown => {
                decision.backend = flow.backend;
                return Some(Verdict::BackendDown);
            }
        }
    }

    // An implausible packet is forwarded, because the receiver checks its own window, but changes no state here.
    let plausible = is_plausible(&flow, packet);
    if plausible {
        decision.plausible = 1;
        if flow.ended | end_bits(packet.flags) == 0 {
            flow.sequence = packet.sequence;
        } else if tables.close(
            packet.flags.0,
            packet.sequence,
            sequence_end(packet),
            key,
            &mut flow,
        ) != 0
        {
            now = flow.last_seen_ticks;
        }
    } else if flow.bytes == 0 && flow.ended == 0 {
        // A peer carried the connection, which has gone on since its record.
        flow.sequence = packet.sequence;
    }
    // A copy for the functions below, so that the compiler keeps the packet in registers.
    let copy = || *packet;
    let moved =
        plausible && is_request && has_moved(&flow, packet) && !is_from_peer(tables, &copy());
    if moved {
        flow.client_interface = packet.interface;
        flow.client_mac = packet.source_mac;
        flow.manager_mac = packet.destination_mac;
    }
    let is_due = is_due(&flow, now, 0)
        && (!is_request
            || is_due(
                &flow,
                now,
                tables.settings().map_or(0, |it| it.reverse_sync_shift),
            )
            || is_from_peer(tables, &copy()));
    if (moved || is_due) && !sync_reverse_entry(tables, &copy(), key, &mut flow, now) {
        abandon(tables, key, &mut flow);
        drop(flow);
        tables.remove_established(key);
        return Some(Verdict::NoFlow);
    }
    account(&mut flow, packet, now);
    Some(decide_exit(&forwarding(&flow), backend, decision))
}

/// Whether a flow's other entry is checked at a packet: once in each period of [`REVERSE_SYNC_PERIOD`] times a power of
/// two.
#[inline(always)]
fn is_due<A>(flow: &Flow<A>, now: u32, shift: u32) -> bool {
    let period = |ticks: u32| (ticks / REVERSE_SYNC_PERIOD).wrapping_shr(shift);
    period(now) != period(flow.last_seen_ticks)
}

/// Ends a connection whose other entry another connection has replaced. Returns 0.
#[inline(never)]
fn abandon<T: Tables>(tables: &T, key: &FlowKey<T::Address>, flow: &mut Flow<T::Address>) -> u32 {
    if uncount(tables, &key.source, flow) {
        report_end(tables, key, flow, 0);
    }
    0
}

/// Looks up the flow again for a packet that matched neither flow nor handshake: another processor may have
/// established it meanwhile. Returns `otherwise` if not.
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

/// Whether a flow ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlowEnd {
    #[default]
    Continues,
    /// It was over, and the packet may begin a new one.
    Over,
    BackendDown,
}

/// Supersedes a flow that is over, when a SYN, SYN-ACK or datagram arrives, or whose backend is down. A SYN or
/// datagram may then begin a new flow.
#[inline(always)]
pub fn end_if_over<T: Tables>(
    tables: &T,
    flags: u8,
    keeps: bool,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
) -> FlowEnd {
    let flags = TcpFlags(flags);
    let Some(settings) = tables.settings() else {
        return FlowEnd::Continues;
    };
    let mut reverse = tables
        .established(&flow.translated.reversed())
        .filter(|reverse| is_reverse_of(key, reverse));
    let now = tables.now_ns();
    let is_request = flow.direction == direction::REQUEST;
    let begins = flags.is_syn() || flags.is_syn_ack() || key.is_datagram();
    // An ended connection is not counted, even if the entry with the other direction's end was evicted.
    let ended = is_request && flow.counted == 0;
    let over = begins && (ended || is_over(settings, flow, reverse.as_deref(), now));
    if !over && (keeps || !is_request) {
        return FlowEnd::Continues;
    }
    flow.superseded = 1;
    let mut was_open = uncount(tables, &key.source, flow);
    if let Some(reverse) = reverse.as_deref_mut() {
        reverse.superseded = 1;
        was_open |= uncount(tables, &flow.translated.destination, reverse);
    }
    let other_ended = reverse.as_deref().map_or(0, |reverse| reverse.ended);
    drop(reverse);
    if was_open {
        report_end(tables, key, flow, other_ended);
        let translated = if is_request {
            flow.translated
        } else {
            key.reversed()
        };
        tables.release(flow.backend, TimeWait::Possible, &translated);
    }
    if begins {
        FlowEnd::Over
    } else {
        FlowEnd::BackendDown
    }
}

/// Updates the reverse entry from `flow`, and restores it if it was evicted. Returns whether the flow continues: not
/// if another flow has replaced an evicted reverse entry.
#[inline(never)]
fn sync_reverse_entry<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    flow: &mut Flow<T::Address>,
    now: u32,
) -> bool {
    let reverse_key = flow.translated.reversed();
    let is_reset = packet.flags.has_rst();
    if flow.direction == direction::REPLY && !is_reset && is_plausible(flow, packet) {
        let now = tables.now_ns();
        tables.count_traffic(flow.backend, |traffic| traffic.last_answer_ns = now);
    }
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
        if is_from_peer(tables, packet) {
            // It has sent the packet here because it does not know the connection.
            let other = other_side(reverse.sequence, reverse.ended);
            tables.report_flow(record_kind::PRESENT, other, key, flow);
        }
        // A packet that acknowledges the other side's number is genuine; the number in a restored entry may be wrong.
        let is_known = is_in_window(packet.acknowledgement, reverse.sequence);
        if packet.flags.is_ack() && is_known && flow.ended == 0 {
            flow.sequence = packet.sequence;
        }
    } else if flow.direction == direction::REQUEST
        && tables.find_by_reply(Hook::Ingress, &reverse_key) != NO_SLOT
    {
        // The entry was evicted, and another client's handshake uses the port.
        return false;
    } else if let Some(mut scratch) = tables.flow_scratch() {
        scratch.reply = reverse_entry(key, flow, packet);
        // The evicted entry remains counted until the manager reconciles the counts, so the new one is counted in
        // addition.
        let counts = flow.direction == direction::REPLY && flow.ended == 0;
        scratch.reply.counted = counts.into();
        // Verdict `table_full` counts refused connections only, and this one continues.
        if tables.add_established(&reverse_key, &scratch.reply).is_ok() && counts {
            count_open(tables, flow.backend, true);
            client::count(tables, true, &reverse_key.source);
        }
    }
    true
}

/// The interface of replies, with or without [`BY_ROUTE`]. While the client does not acknowledge, replies alternate
/// between the manager's route and the client's last link address, one [`REVERSE_SYNC_PERIOD`] each, because either
/// may work. The client's next packet ends this.
#[inline(always)]
fn interface_to_client<A>(reply: &Flow<A>, client_seen: u32, now: u32) -> u32 {
    let interface = reply.client_interface;
    let later_by = |than: u32, then: u32| than.wrapping_sub(then) as i32;
    let unanswered = later_by(reply.last_seen_ticks, client_seen) > LATEST_ACKNOWLEDGEMENT as i32;
    let silent = later_by(now, client_seen) > CLIENT_TIMEOUT as i32;
    // A tagged client is on another VLAN than the route's interface.
    let has_route = interface != LOOPBACK && reply.client_mac.tag() == 0;
    if unanswered && silent && has_route {
        interface ^ BY_ROUTE
    } else {
        interface & !BY_ROUTE
    }
}
