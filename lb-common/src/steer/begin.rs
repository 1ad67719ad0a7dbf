//! The beginning of a connection: a backend, a source port towards it, a place for the handshake.

use super::{
    Arrival, Decision, Exit, Hook, Tables,
    choice::{choose, choose_another, is_up},
    flow::{keeps_flows, supersedes_own},
    handshake::{forward_request, retire},
    place::{NOWHERE, client_hash, room, take_note},
    port::{self, NO_PORT, Remains},
};
use crate::{
    address::{Address, V4},
    maps::{Backend, FlowKey, Handshake, LOOPBACK, mode, state},
    verdict::Verdict,
};

/// A SYN that follows another one sooner than this is a duplicate made by the network, or the same
/// packet met by XDP and by TC: no client repeats its SYN so soon (RFC 6298, section 2.1).
const SOONEST_RETRY_NS: u64 = 200_000_000;

/// The tuples of a connection that looks for a place. It stands in the workbench: with it on the
/// stack, the calls below would not fit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Claim<A = V4> {
    pub(super) client: FlowKey<A>,
    pub(super) leaves: FlowKey<A>,
    /// The tuples by which the port's last connection is looked up.
    pub(super) reply_key: FlowKey<A>,
    pub(super) request_key: FlowKey<A>,
    /// Of the client, by which its handshake finds a place.
    pub(super) hash: u64,
    /// The client's address, as one word, of the connection that holds the port looked at last.
    pub(super) holder: u32,
    pub(super) reserved: u32,
}

/// How often a client's unanswered datagrams make it try another worker. A client that never expects
/// an answer is then left in peace.
const MOST_DATAGRAM_RETRIES: u8 = 3;

/// A SYN to a service, or a datagram that nobody has answered yet: the first one of a connection, or a
/// repeated one of the handshake at `under_way`.
#[inline(never)]
pub(super) fn begin<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey<T::Address>,
    service: u32,
    under_way: u32,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    // The kernel would drop it, and so it does.
    let sender = sender(tables, arrival, key);
    if matches!(sender, Sender::Impossible) {
        return Verdict::Malformed;
    }
    // What memlb managers send each other in a circle ends when its time to live does.
    if matches!(sender, Sender::Worker) && arrival.time_to_live <= 1 {
        decision.exit = Exit::Drop;
        return Verdict::TimeToLive;
    }
    if let Some(mut bench) = tables.workbench() {
        bench.claim.client = *key;
    }
    let mut start = Start {
        service,
        backend: choose(tables, key, service),
        retries: 0,
    };
    if under_way != NOWHERE {
        if !begins_anew(tables, arrival, under_way, &mut start) {
            return forward_request(tables, arrival, under_way, decision);
        }
        retire(tables, under_way, Remains::Perhaps);
    }
    let place = claim(tables, arrival, start.backend);
    match place {
        NO_BACKEND => Verdict::NoBackend,
        NO_ROUTE => Verdict::NoRoute,
        EXHAUSTED => Verdict::PortsExhausted,
        place => {
            decision.opened = 1;
            write(tables, arrival, &start, place);
            forward_request(tables, arrival, place, decision)
        }
    }
}

/// Who sent the first packet of a connection.
#[repr(u32)]
enum Sender {
    Client,
    Worker,
    /// A packet from the network that names a sender that cannot be there.
    Impossible,
}

#[inline(never)]
fn sender<T: Tables>(tables: &T, arrival: &Arrival, key: &FlowKey<T::Address>) -> Sender {
    if arrival.hook != Hook::Ingress {
        return Sender::Client;
    }
    if !key.source.may_send_to(key.destination) {
        return Sender::Impossible;
    }
    match tables.home(key.source) {
        None => Sender::Client,
        Some(interface) if interface == arrival.interface => Sender::Worker,
        Some(_) => Sender::Impossible,
    }
}

/// What a handshake begins with beside its tuples.
struct Start {
    service: u32,
    backend: u32,
    retries: u8,
}

/// What [`claim`] returns instead of a place.
const EXHAUSTED: u32 = NOWHERE;
const NO_BACKEND: u32 = NOWHERE - 1;
const NO_ROUTE: u32 = NOWHERE - 2;

/// Finds a place, and a source port towards the backend, that no other connection uses.
#[inline(never)]
fn claim<T: Tables>(tables: &T, arrival: &Arrival, id: u32) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_BACKEND;
    };
    let Some(backend) = tables.backend(id) else {
        return NO_BACKEND;
    };
    if id == 0 || backend.state != state::UP {
        return NO_BACKEND;
    }
    let Some(mut bench) = tables.workbench() else {
        return NO_BACKEND;
    };
    let claim = &mut bench.claim;
    claim.leaves = claim.client;
    if backend.mode != mode::DSR {
        claim.leaves.destination = T::Address::from_mapped(&backend.address);
        claim.leaves.destination_port = backend.port.to_be_bytes();
    }
    if backend.mode == mode::NAT {
        claim.leaves.source = T::Address::from_mapped(&backend.source);
    }
    claim.hash = client_hash(settings, &claim.client);
    let (hash, client) = (claim.hash, claim.client.source);
    drop(bench);
    if backend.mode != mode::LOCAL && !is_reachable(backend, arrival, client) {
        return NO_ROUTE;
    }
    let has_tuple = match backend.mode {
        mode::NAT => port::take(tables, backend.port_pool) != NO_PORT,
        mode::ROUTED => supersedes_own(tables),
        _ => true,
    };
    if !has_tuple {
        return EXHAUSTED;
    }
    room(tables, hash)
}

/// Whether a client's packets can reach a worker and be answered. From a client on the manager itself, a
/// worker that answers past the manager is out of reach (the kernel accepts nothing from the network that
/// its own address sent), and so is one that sees a loopback address as its client's.
#[inline(always)]
fn is_reachable<A: Address>(backend: &Backend, arrival: &Arrival, client: A) -> bool {
    let from_here = arrival.hook == Hook::Loopback || arrival.interface == LOOPBACK;
    let is_answered = match backend.mode {
        mode::DSR => false,
        mode::ROUTED => client.is_sender(),
        _ => true,
    };
    backend.interface != 0 && (!from_here || is_answered)
}

/// Whether a SYN whose client has a handshake under way begins another one, and with which backend: it
/// is a new connection from the same port, or the worker takes none any more, or it has surely not
/// answered and another one is tried. Else the SYN goes where the first one went.
#[inline(always)]
fn begins_anew<T: Tables>(tables: &T, arrival: &Arrival, place: u32, start: &mut Start) -> bool {
    let Some(handshake) = tables.handshake(place) else {
        return true;
    };
    let (tried, retries) = (handshake.backend, handshake.retries);
    let is_same = handshake.client_sequence == arrival.sequence;
    let answered = handshake.answered == 1;
    let syn_ns = handshake.syn_ns;
    let is_datagram = handshake.client.is_datagram();
    let gives_up = is_datagram && retries >= MOST_DATAGRAM_RETRIES;
    drop(handshake);
    let Some(worker) = tables.backend(tried) else {
        return true;
    };
    if !is_same || !keeps_flows(worker) {
        return true;
    }
    if answered {
        return false;
    }
    if worker.state != state::UP {
        return true;
    }
    let silence = tables.now_ns().saturating_sub(syn_ns);
    if gives_up || silence < SOONEST_RETRY_NS {
        return false;
    }
    if !is_datagram {
        tables.count_unanswered(tried);
    }
    if start.backend == tried || !is_up(tables, start.backend) {
        start.backend = choose_another(tables, start.service, tried, retries);
    }
    start.retries = retries.wrapping_add(1);
    start.backend != 0
}

/// Writes a handshake whose tuples are in the workbench to `place`.
#[inline(never)]
fn write<T: Tables>(tables: &T, arrival: &Arrival, start: &Start, place: u32) {
    let now = tables.now_ns();
    // Whose place it was has no more of its handshake.
    retire(tables, place, Remains::Perhaps);
    let (Some(bench), Some(mut handshake)) = (tables.workbench(), tables.handshake(place)) else {
        return;
    };
    *handshake = Handshake {
        client: bench.claim.client,
        leaves: bench.claim.leaves,
        client_mac: arrival.source_mac,
        manager_mac: arrival.destination_mac,
        backend: start.backend,
        service: start.service,
        client_interface: arrival.interface,
        client_sequence: arrival.sequence,
        created_ns: now,
        syn_ns: now,
        retries: start.retries,
        ..Handshake::FREE
    };
    handshake.seal = handshake.expected_seal();
    take_note(tables, place, bench.claim.hash);
    port::note_handshake(tables, start.backend, &handshake.leaves, place);
}
