//! New connections: backend, source port, slot for the handshake.

use super::{
    Decision, Exit, Hook, PacketMeta, Tables,
    choice::{Tried, is_full, is_up},
    client, decide_exit,
    flow::{keeps_flows, supersede_own},
    handshake::{forward_request, forwarding},
    port::{self, TimeWait},
    slot::{NO_SLOT, client_hash, find_free_slot, held, is_pending, set_owner_tag},
};
use crate::{
    address::Address,
    maps::{Backend, FlowKey, Handshake, LOOPBACK, NO_PORT, mode, progress, service_flag, state},
    verdict::Verdict,
};

/// A SYN sooner than this after another one is a duplicate by the network, or the same packet at XDP and TC: clients
/// repeat later (RFC 6298, section 2.1).
const MIN_RETRY_INTERVAL_NS: u64 = 200_000_000;

/// How often unanswered datagrams lead to another worker. Some clients expect no reply.
const MAX_DATAGRAM_RETRIES: u8 = 3;

/// Handles a SYN to a service, or a datagram without a reply yet: the first of a connection, or a repetition for the
/// handshake in slot `existing`.
#[inline(never)]
pub(super) fn handle_new_connection<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    service: u32,
    existing: u32,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    // Passed to the kernel, which drops it.
    let sender = classify_sender(tables, packet, key);
    if matches!(sender, Sender::Impossible) {
        return Verdict::Malformed;
    }
    // Ends loops between memlb managers.
    if matches!(sender, Sender::Worker) && packet.time_to_live <= 1 {
        decision.exit = Exit::Drop;
        return Verdict::TimeToLive;
    }
    if let Some(mut scratch) = tables.flow_scratch() {
        scratch.pending.client = *key;
    }
    let mut attempt = Attempt {
        service,
        backend: tables.choose(service, key),
        retries: 0,
    };
    if existing != NO_SLOT {
        if !restarts(tables, packet, existing, &mut attempt) {
            return forward_request(tables, packet, existing, decision);
        }
        tables.end_handshake(existing, TimeWait::Possible);
    }
    let slot = tables.allocate_slot(attempt.backend, packet);
    match slot {
        NO_BACKEND | NO_ROUTE | AT_LIMIT | FULL | PORTS_EXHAUSTED => refuse(tables, service, slot),
        // Only TC can copy packets.
        EVICTS if packet.in_driver => Verdict::HandedOver,
        EVICTS => evict(tables, decision),
        slot => {
            decision.new_connection = 1;
            write_handshake(tables, packet, &attempt, slot);
            forward_request(tables, packet, slot, decision)
        }
    }
}

/// The sender of a connection's first packet.
#[repr(u32)]
enum Sender {
    Client,
    Worker,
    /// The source address is not possible on this interface.
    Impossible,
}

#[inline(never)]
fn classify_sender<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
) -> Sender {
    if packet.hook != Hook::Ingress {
        return Sender::Client;
    }
    if !key.source.is_valid_source_for(key.destination) {
        return Sender::Impossible;
    }
    match tables.expected_interface(key.source) {
        None => Sender::Client,
        Some(interface) if interface == packet.interface => Sender::Worker,
        Some(_) => Sender::Impossible,
    }
}

/// Service and backend of a new handshake.
struct Attempt {
    service: u32,
    backend: u32,
    retries: u8,
}

/// Results of [`allocate_slot`] other than a slot.
const PORTS_EXHAUSTED: u32 = NO_SLOT;
const NO_BACKEND: u32 = NO_SLOT - 1;
const NO_ROUTE: u32 = NO_SLOT - 2;
const AT_LIMIT: u32 = NO_SLOT - 3;
/// The slot of an unexpired handshake must be cleared first.
const EVICTS: u32 = NO_SLOT - 4;
const FULL: u32 = NO_SLOT - 5;

/// Counts the refusal of a connection to `service`, for the reason that [`allocate_slot`] gave.
#[inline(always)]
fn refuse<T: Tables>(tables: &T, service: u32, reason: u32) -> Verdict {
    let mut verdict = Verdict::NoBackend;
    tables.count_refusal(service, |refused| {
        let counter;
        (verdict, counter) = match reason {
            NO_ROUTE => (Verdict::NoRoute, &mut refused.no_route),
            AT_LIMIT => (Verdict::ClientLimit, &mut refused.client_limit),
            FULL => (Verdict::WorkersFull, &mut refused.workers_full),
            PORTS_EXHAUSTED => (Verdict::PortsExhausted, &mut refused.ports_exhausted),
            _ => (Verdict::NoBackend, &mut refused.no_backend),
        };
        *counter += 1;
    });
    verdict
}

/// Allocates a slot, and an unused source port towards the backend.
#[inline(always)]
pub fn allocate_slot<T: Tables>(tables: &T, id: u32, packet: &PacketMeta) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_BACKEND;
    };
    let Some(backend) = tables.backend(id) else {
        return NO_BACKEND;
    };
    if id == 0 || backend.state != state::UP {
        return NO_BACKEND;
    }
    let Some(mut scratch) = tables.flow_scratch() else {
        return NO_BACKEND;
    };
    let pending = &mut scratch.pending;
    pending.translate(backend);
    let is_sent_again = pending.flags & service_flag::RETRY_REFUSED != 0
        && backend.mode != mode::DSR
        && !pending.client.is_datagram();
    pending.keeps_syn = is_sent_again.into();
    pending.hash = client_hash(settings, &pending.client);
    let (hash, client) = (pending.hash, pending.client.source);
    drop(scratch);
    if client::is_at_limit(tables, &client) {
        return AT_LIMIT;
    }
    if is_full(tables, id) {
        return FULL;
    }
    if backend.mode != mode::LOCAL && !is_reachable(backend, packet, client) {
        return NO_ROUTE;
    }
    if find_pending_slot(tables, packet, hash) {
        return EVICTS;
    }
    let has_tuple = match backend.mode {
        mode::NAT => tables.allocate(backend.port_pool) != NO_PORT,
        mode::ROUTED => supersede_own(tables),
        _ => true,
    };
    if !has_tuple {
        return PORTS_EXHAUSTED;
    }
    tables
        .flow_scratch()
        .map_or(NO_BACKEND, |it| it.pending.slot)
}

/// Handshakes younger than this are replaced without a RST: a flood that fills the table as fast leaves no time for
/// handshakes, and each RST costs as much as a SYN.
const MIN_RESET_AGE_NS: u64 = 50_000_000;

/// Finds the slot for the pending connection. Returns whether it holds a handshake whose worker must receive a RST:
/// else the worker keeps it for a minute, and answers the next SYN from the same port with a bare ACK.
#[inline(never)]
fn find_pending_slot<T: Tables>(tables: &T, packet: &PacketMeta, hash: u64) -> bool {
    let Some(settings) = tables.settings() else {
        return false;
    };
    let mut slot = find_free_slot(tables, settings, hash);
    let is_free = slot != NO_SLOT;
    if !is_free {
        slot = tables.find_slot(hash);
    }
    let Some(mut scratch) = tables.flow_scratch() else {
        return false;
    };
    scratch.pending.slot = slot;
    drop(scratch);
    let Some(handshake) = tables.handshake(slot).filter(|_| !is_free) else {
        return false;
    };
    let now = tables.now_ns();
    let is_nat = |id| tables.backend(id).is_some_and(|it| it.mode == mode::NAT);
    packet.hook == Hook::Ingress
        && packet.flags.is_syn()
        && !handshake.client.is_datagram()
        && is_pending(&handshake, settings, now)
        && now.saturating_sub(handshake.created_ns) >= MIN_RESET_AGE_NS
        && is_nat(handshake.backend)
}

/// Ends the handshake in the pending connection's slot and decides on the RST to its worker.
#[inline(never)]
fn evict<T: Tables>(tables: &T, decision: &mut Decision<T::Address>) -> Verdict {
    let Some(mut scratch) = tables.flow_scratch() else {
        return Verdict::NoBackend;
    };
    let slot = scratch.pending.slot;
    let Some(handshake) = tables.handshake(slot) else {
        return Verdict::NoBackend;
    };
    let Some(backend) = tables.backend(handshake.backend) else {
        return Verdict::NoBackend;
    };
    scratch.pending.reset_sequence = handshake.client_sequence.wrapping_add(1);
    decide_exit(&forwarding(&handshake), backend, decision);
    decision.exit = Exit::Reset;
    drop(handshake);
    drop(scratch);
    tables.end_handshake(slot, TimeWait::None);
    Verdict::HandshakeEvicted
}

/// Whether packets reach the worker and replies reach the client. A client on the manager cannot use mode `dsr`,
/// because the kernel rejects packets from the network with its own source address, nor mode `routed` from a loopback
/// address.
#[inline(always)]
fn is_reachable<A: Address>(backend: &Backend, packet: &PacketMeta, client: A) -> bool {
    let from_here = packet.hook == Hook::Loopback || packet.interface == LOOPBACK;
    let is_answered = match backend.mode {
        mode::DSR => false,
        mode::ROUTED => client.is_valid_source(),
        _ => true,
    };
    backend.interface != 0 && (!from_here || is_answered)
}

/// Whether a SYN replaces the client's pending handshake: it begins a new connection from the same port, or the
/// worker receives none any more, or has not replied. In the last case another backend is tried. Otherwise the SYN
/// follows the first one.
#[inline(always)]
fn restarts<T: Tables>(tables: &T, packet: &PacketMeta, slot: u32, attempt: &mut Attempt) -> bool {
    let Some(handshake) = tables.handshake(slot) else {
        return true;
    };
    let (tried, retries) = (handshake.backend, handshake.retries);
    let is_same = handshake.client_sequence == packet.sequence;
    let answered = handshake.answered == 1;
    let syn_ns = handshake.syn_ns;
    let is_datagram = handshake.client.is_datagram();
    // In mode `dsr`, the client's acknowledgement shows the answer.
    let is_unseen = !is_datagram
        && if handshake.client.is(&handshake.translated) {
            handshake.progress == progress::NONE
        } else {
            !answered
        };
    let gives_up = is_datagram && retries >= MAX_DATAGRAM_RETRIES;
    drop(handshake);
    let Some(worker) = tables.backend(tried) else {
        return true;
    };
    if !is_same || !keeps_flows(worker) {
        return true;
    }
    let idle = tables.now_ns().saturating_sub(syn_ns);
    if is_unseen && idle >= MIN_RETRY_INTERVAL_NS {
        tables.count_traffic(tried, |traffic| traffic.unanswered += 1);
    }
    if answered {
        return false;
    }
    if worker.state != state::UP {
        return true;
    }
    if gives_up || idle < MIN_RETRY_INTERVAL_NS {
        return false;
    }
    if attempt.backend == tried || !is_up(tables, attempt.backend) {
        attempt.backend = tables.choose_another(
            attempt.service,
            u32::from(retries) + 1,
            &Tried([tried, 0, 0, 0]),
        );
    }
    attempt.retries = retries.wrapping_add(1);
    attempt.backend != 0
}

/// Writes the pending connection to `slot`.
#[inline(never)]
fn write_handshake<T: Tables>(tables: &T, packet: &PacketMeta, attempt: &Attempt, slot: u32) {
    let now = tables.now_ns();
    if held(tables, slot) != 0 {
        // The former handshake of the slot ends.
        tables.end_handshake(slot, TimeWait::Possible);
    }
    let (Some(mut scratch), Some(mut handshake)) = (tables.flow_scratch(), tables.handshake(slot))
    else {
        return;
    };
    *handshake = Handshake {
        client: scratch.pending.client,
        translated: scratch.pending.translated,
        client_mac: packet.source_mac,
        manager_mac: packet.destination_mac,
        backend: attempt.backend,
        service: attempt.service,
        client_interface: packet.interface,
        client_sequence: packet.sequence,
        created_ns: now,
        syn_ns: now,
        retries: attempt.retries,
        keeps_syn: scratch.pending.keeps_syn as u8,
        ..Handshake::FREE
    };
    scratch.pending.slot = slot;
    handshake.integrity_tag = handshake.compute_integrity_tag();
    client::count(tables, true, &handshake.client.source);
    set_owner_tag(tables, slot, scratch.pending.hash);
    port::record_handshake(tables, attempt.backend, &handshake.translated, slot);
}
