//! Packets of handshakes, until the client has proved that it receives packets.

use core::hint::black_box;

use super::{
    Decision, Forwarding, PacketMeta, Tables, client, decide_exit,
    established::recheck_established,
    flow::{
        count_open, end_bits, is_in_window, is_live, is_wrong_interface, keeps_flows, sequence_end,
        uncount,
    },
    is_left_to_tc,
    port::TimeWait,
    report::report_opened,
    slot::{UNANSWERED_NS, free},
    unknown::is_from_peer,
};
use crate::{
    address::Address,
    maps::{
        ALL_DIRECT, Backend, Flow, FlowKey, Handshake, direction, ended, mode, progress, ticks,
    },
    packet::SYN_LEN,
    verdict::Verdict,
};

/// Greatest distance in bytes from a SYN or SYN-ACK to its acknowledgement: both may carry data, and the worker may
/// send more before the handshake completes (RFC 7413).
const EARLY_DATA: u32 = 65_536;

/// Greatest distance in bytes between sequence numbers of one connection (RFC 7323, section 2.2).
const MAX_WINDOW: u32 = 1 << 30;

/// Handles a packet from the worker, or from the manager's own server, of the handshake in `slot`.
#[inline(never)]
pub(super) fn handle_worker_packet<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    slot: u32,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let Some(mut handshake) = tables.handshake(slot) else {
        return Verdict::NotOurs;
    };
    let Some(backend) = tables.backend(handshake.backend) else {
        return Verdict::NoBackend;
    };
    if is_wrong_interface(backend, packet) {
        return Verdict::WrongInterface;
    }
    let forwarding = Forwarding {
        is_request: false,
        translated: handshake.client.reversed(),
        ..forwarding(&handshake)
    };
    if is_left_to_tc(tables, &forwarding, backend, packet) {
        return decide_exit(&forwarding, backend, decision);
    }
    if is_retriable(&handshake, packet) {
        decision.backend = handshake.backend;
        drop(handshake);
        return begin_retry(tables, packet, slot);
    }
    handshake.bytes_out = handshake.bytes_out.wrapping_add(packet.bytes);
    if belongs_to(&handshake, packet) {
        decision.plausible = 1;
        handshake.ended |= end_bits(packet.flags);
        if packet.flags.is_syn_ack() || handshake.client.is_datagram() {
            handshake.worker_sequence = packet.sequence;
            if handshake.answered == 0 {
                count_answered(tables, handshake.backend);
            }
            handshake.answered = 1;
        }
        if handshake.progress == progress::CLIENT {
            handshake.progress = progress::WORKER;
        }
        if packet.flags.has_rst() {
            let was_answered = u64::from(handshake.answered);
            handshake.answered = 1;
            tables.count_traffic(handshake.backend, |traffic| {
                traffic.resets += was_answered;
                traffic.refused += 1 - was_answered;
            });
            drop(handshake);
            tables.end_handshake(slot, TimeWait::None);
        }
    }
    decide_exit(&forwarding, backend, decision)
}

/// Counts the answer to a handshake.
#[inline(always)]
fn count_answered<T: Tables>(tables: &T, backend: u32) {
    let now = tables.now_ns();
    tables.count_traffic(backend, |traffic| {
        traffic.answered += 1;
        traffic.last_answer_ns = now;
    });
}

/// Ends the handshake in `slot` and releases its port.
#[inline(always)]
pub fn end_handshake<T: Tables>(tables: &T, slot: u32, time_wait: TimeWait) -> u32 {
    let Some(mut handshake) = tables.handshake(slot) else {
        return 0;
    };
    if !handshake.is_valid() {
        return 0;
    }
    let (backend, translated) = (handshake.backend, handshake.translated);
    let age_ns = tables.now_ns().saturating_sub(handshake.created_ns);
    if handshake.answered == 0 && age_ns >= UNANSWERED_NS {
        tables.count_traffic(backend, |traffic| traffic.expired += 1);
    }
    free(tables, slot, &mut handshake);
    client::count(tables, false, &handshake.client.source);
    drop(handshake);
    tables.release(backend, time_wait, &translated)
}

/// Whether a worker's packet belongs to this handshake, not to an earlier connection of the same tuple, and is not
/// spoofed: it acknowledges the client's SYN (RFC 9293, section 3.10.7.3), or follows a packet that did. Datagrams
/// have no number.
#[inline(always)]
fn belongs_to<A: Address>(handshake: &Handshake<A>, packet: &PacketMeta) -> bool {
    if handshake.answered == 1 {
        return is_in_window(packet.sequence, handshake.worker_sequence);
    }
    let beyond = packet
        .acknowledgement
        .wrapping_sub(handshake.client_sequence)
        .wrapping_sub(1);
    beyond < EARLY_DATA || handshake.client.is_datagram()
}

/// Whether the packet refuses the handshake with a SYN that can be sent again: a RST that acknowledges exactly the SYN
/// (RFC 9293, section 3.10.7.1), before any other reply. The SYN takes the place of the RST, which must not be longer.
#[inline(always)]
fn is_retriable<A: Address>(handshake: &Handshake<A>, packet: &PacketMeta) -> bool {
    let expected = handshake.client_sequence.wrapping_add(1);
    handshake.keeps_syn & !handshake.answered & 1 != 0
        && packet.flags.has_rst()
        && packet.flags.has_ack()
        && packet.acknowledgement == expected
        && packet.bytes < SYN_LEN as u32
}

/// Begins a retry of the handshake in `slot`. XDP leaves it to TC, which can resize every packet.
#[inline(always)]
fn begin_retry<T: Tables>(tables: &T, packet: &PacketMeta, slot: u32) -> Verdict {
    if packet.in_driver {
        return Verdict::HandedOver;
    }
    if let Some(mut scratch) = tables.flow_scratch() {
        scratch.pending.slot = slot;
        scratch.pending.keeps_syn = 1;
    }
    Verdict::Retried
}

/// Handles a client's packet, not a SYN, of the handshake in `slot`.
#[inline(never)]
pub(super) fn handle_client_packet<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    slot: u32,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let Some(mut handshake) = tables.handshake(slot) else {
        return Verdict::NoFlow;
    };
    let Some(backend) = tables
        .backend(handshake.backend)
        .filter(|backend| keeps_flows(backend))
    else {
        if handshake.backend == 0 {
            return recheck_established(tables, key, Verdict::NoFlow, decision);
        }
        decision.backend = handshake.backend;
        drop(handshake);
        tables.end_handshake(slot, TimeWait::Possible);
        return Verdict::BackendDown;
    };
    let left_to_tc = is_left_to_tc(tables, &forwarding(&handshake), backend, packet);
    if left_to_tc || !completes(tables, &handshake, backend, packet) {
        if !left_to_tc && is_half_seen(&handshake, packet) {
            tables.count_traffic(handshake.backend, |traffic| traffic.unanswered += 1);
        }
        if !left_to_tc {
            record_progress(tables, &mut handshake, backend, packet);
        }
        let is_end = packet.flags.has_rst()
            && !left_to_tc
            && is_in_window(packet.sequence, handshake.client_sequence);
        drop(handshake);
        let verdict = forward_request(tables, packet, slot, decision);
        if is_end {
            tables.end_handshake(slot, TimeWait::None);
        }
        return verdict;
    }
    let forwarding = forwarding(&handshake);
    // Another processor may complete it at the same time, and the slot may already hold another client's handshake.
    let is_first = tables.mark_completed(&mut handshake);
    if !handshake.is_valid() || !handshake.client.is(key) {
        return recheck_established(tables, key, Verdict::NoFlow, decision);
    }
    if is_first {
        learn_client(tables, &mut handshake, packet);
        if !establish(tables, packet, key, &handshake) {
            drop(handshake);
            tables.end_handshake(slot, TimeWait::Possible);
            return Verdict::TableFull;
        }
        // The port now belongs to the flow.
        free(tables, slot, &mut handshake);
    }
    decide_exit(&forwarding, backend, decision)
}

/// Forwards a client's packet to the worker of the handshake in `slot`.
#[inline(never)]
pub(super) fn forward_request<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    slot: u32,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let Some(mut handshake) = tables.handshake(slot) else {
        return Verdict::NoFlow;
    };
    let Some(backend) = tables.backend(handshake.backend) else {
        return Verdict::NoBackend;
    };
    let forwarding = forwarding(&handshake);
    if is_left_to_tc(tables, &forwarding, backend, packet) {
        return decide_exit(&forwarding, backend, decision);
    }
    if packet.flags.is_syn() || handshake.client.is_datagram() {
        handshake.syn_ns = tables.now_ns();
    }
    learn_client(tables, &mut handshake, packet);
    handshake.bytes_in = handshake.bytes_in.wrapping_add(packet.bytes);
    if backend.mode == mode::DSR {
        // Replies do not pass the manager, nor does their end. The worker may have replied: with a second worker, the
        // client would accept one's SYN-ACK and send to the other.
        handshake.answered = 1;
        handshake.ended = ended::FIN;
    }
    decide_exit(&forwarding, backend, decision)
}

/// Notes where the client's packets come from. A peer's frame does not say it; peers relay no SYN.
#[inline(always)]
fn learn_client<T: Tables>(tables: &T, handshake: &mut Handshake<T::Address>, packet: &PacketMeta) {
    let is_known = handshake.client_interface == packet.interface
        && handshake.client_mac == packet.source_mac
        && handshake.manager_mac == packet.destination_mac;
    if !is_known && (packet.flags.is_syn() || !is_from_peer(tables, packet)) {
        handshake.client_interface = packet.interface;
        handshake.client_mac = packet.source_mac;
        handshake.manager_mac = packet.destination_mac;
    }
}

/// Forwarding from the client to the worker.
#[inline(always)]
pub(super) fn forwarding<A: Address>(handshake: &Handshake<A>) -> Forwarding<A> {
    Forwarding {
        is_request: true,
        translated: handshake.translated,
        backend: handshake.backend,
        client_interface: handshake.client_interface,
        client_mac: handshake.client_mac,
        manager_mac: handshake.manager_mac,
    }
}

/// Whether the packet proves that the client receives packets: it acknowledges the worker's SYN-ACK, or it is a
/// datagram after the worker's second reply. In mode `dsr`, where replies do not pass, the client must send twice.
/// A forger can imitate that, so these connections stay handshakes while the flow table has no room for more of them.
#[inline(always)]
fn completes<T: Tables>(
    tables: &T,
    handshake: &Handshake<T::Address>,
    backend: &Backend,
    packet: &PacketMeta,
) -> bool {
    let is_direct = backend.mode == mode::DSR;
    if is_direct && !has_room(tables) {
        return false;
    }
    if handshake.client.is_datagram() {
        return handshake.progress
            == if is_direct {
                progress::CLIENT
            } else {
                progress::WORKER
            };
    }
    if is_direct {
        return handshake.progress == progress::CLIENT && has_advanced(handshake, packet);
    }
    acknowledges_after(
        handshake.worker_sequence,
        packet.acknowledgement,
        handshake,
        packet,
    )
}

/// Whether the flow table may take another connection of mode `dsr`.
#[inline(always)]
fn has_room<T: Tables>(tables: &T) -> bool {
    let most = tables.settings().map_or(0, |it| it.direct_flows);
    tables.active_connections(ALL_DIRECT) < most
}

/// Whether the client acknowledges the worker's reply with a `number` after `start`.
#[inline(always)]
fn acknowledges_after<A: Address>(
    start: u32,
    number: u32,
    handshake: &Handshake<A>,
    packet: &PacketMeta,
) -> bool {
    let beyond = number.wrapping_sub(start).wrapping_sub(1);
    handshake.answered == 1 && packet.flags.is_ack() && beyond < EARLY_DATA
}

/// Whether the client acknowledges a SYN-ACK that did not pass the manager.
#[inline(always)]
fn is_half_seen<A: Address>(handshake: &Handshake<A>, packet: &PacketMeta) -> bool {
    let is_segment = !handshake.client.is_datagram();
    is_segment && handshake.answered == 0 && packet.flags.is_ack()
}

/// In mode `dsr`: whether the client acknowledges more, or has sent more, than with its first acknowledgement.
#[inline(always)]
fn has_advanced<A: Address>(handshake: &Handshake<A>, packet: &PacketMeta) -> bool {
    let sent = packet
        .sequence
        .wrapping_sub(handshake.client_sequence)
        .wrapping_sub(1);
    let received = packet
        .acknowledgement
        .wrapping_sub(handshake.worker_sequence);
    let (has_sent, has_received) = (sent != 0, received != 0);
    packet.flags.is_ack()
        && sent < MAX_WINDOW
        && received < MAX_WINDOW
        && (has_sent || has_received)
}

/// Records the progress of a handshake that is not complete.
#[inline(always)]
fn record_progress<T: Tables>(
    tables: &T,
    handshake: &mut Handshake<T::Address>,
    backend: &Backend,
    packet: &PacketMeta,
) {
    let is_first = handshake.progress == progress::NONE;
    if handshake.client.is_datagram() {
        if is_first && handshake.answered == 1 {
            handshake.progress = progress::CLIENT;
        }
        return;
    }
    if backend.mode != mode::DSR || !packet.flags.is_ack() {
        return;
    }
    if is_first {
        let (start, number) = (handshake.client_sequence, packet.sequence);
        if !acknowledges_after(start, number, handshake, packet) {
            return;
        }
        handshake.progress = progress::CLIENT;
        handshake.worker_sequence = packet.acknowledgement;
        count_answered(tables, handshake.backend);
    }
    handshake.syn_ns = tables.now_ns();
}

/// Creates both entries of a completed handshake's flow. Returns whether there was room.
#[inline(always)]
fn establish<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    handshake: &Handshake<T::Address>,
) -> bool {
    let now = tables.now_ns();
    let reply_key = handshake.translated.reversed();
    // Both sides may have ended already with their first segments.
    let is_open = !ended::both(end_bits(packet.flags), handshake.ended);
    let mut sequences = if handshake.translated.is(key) && !key.is_datagram() {
        // It may have been among the handshakes for long.
        [packet.sequence, packet.acknowledgement]
    } else {
        [handshake.client_sequence, handshake.worker_sequence]
    };
    if packet.flags.has_fin() {
        sequences[0] = sequence_end(packet);
    }
    if handshake.ended != 0 {
        // `bytes_out` includes headers, so this is not below the worker's last number.
        sequences[1] = sequences[1].wrapping_add(handshake.bytes_out);
    }
    let Some(mut scratch) = tables.flow_scratch() else {
        return false;
    };
    scratch.request = Flow {
        translated: handshake.translated,
        client_mac: handshake.client_mac,
        manager_mac: handshake.manager_mac,
        backend: handshake.backend,
        client_interface: handshake.client_interface,
        direction: direction::REQUEST,
        ended: end_bits(packet.flags),
        counted: is_open.into(),
        superseded: 0,
        created_ticks: ticks(handshake.created_ns),
        last_seen_ticks: ticks(now),
        sequence: sequences[0],
        bytes: u64::from(handshake.bytes_in) + u64::from(packet.bytes),
    };
    scratch.reply = Flow {
        translated: key.reversed(),
        direction: direction::REPLY,
        sequence: sequences[1],
        ended: handshake.ended,
        counted: 0,
        bytes: handshake.bytes_out.into(),
        ..scratch.request
    };
    if !store(tables, &reply_key, &scratch.reply) {
        return false;
    }
    if !store(tables, key, &scratch.request) {
        tables.remove_established(&reply_key);
        return false;
    }
    // Read again from the map: the verifier of Linux 6.1 takes the former value for false here, and removes the branch.
    let is_open = black_box(&scratch.request).counted == 1;
    drop(scratch);
    if is_open {
        count_open(tables, handshake.backend, true);
        report_opened(tables, key);
    } else {
        client::count(tables, false, &key.source);
    }
    true
}

/// Stores an entry, or replaces a superseded one; never another live flow. Other processors see the entry only when
/// it is complete. Returns whether it is stored.
#[inline(never)]
fn store<T: Tables>(tables: &T, key: &FlowKey<T::Address>, flow: &Flow<T::Address>) -> bool {
    match tables.established(key) {
        Some(present) if is_live(&present) && present.translated != flow.translated => false,
        Some(mut present) => {
            uncount(tables, &key.source, &mut present);
            present.superseded = 1;
            *present = Flow {
                superseded: 1,
                ..*flow
            };
            tables.publish(&mut present);
            true
        }
        None => tables.add_established(key, flow).is_ok(),
    }
}
