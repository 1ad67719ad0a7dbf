//! The steering decision: which flow a packet belongs to, which backend serves it, how it leaves.
//!
//! Pure over [`Tables`], so that the TC program, the XDP program and the host tests run the same
//! code. A connection starts in the half-open table, which a flood can fill without harm, and
//! moves to the established one when the client proves that it received the worker's SYN-ACK.

use core::ops::DerefMut;

use crate::{
    headers::TcpFlags,
    maps::{
        Backend, Flow, FlowKey, LOOPBACK, Mac, Service, ServiceKey, Settings, direction, ended,
        mode, state,
    },
    verdict::Verdict,
};

/// How many source ports are tried towards a worker before a connection is refused.
pub const PORT_ATTEMPTS: u32 = 16;

/// How often, in nanoseconds, a flow looks after its other direction's entry, so that the two
/// cannot be parted for long by the table's eviction.
const TWIN_CARE_NS: u64 = 1_000_000_000;

/// How far, in bytes, the acknowledgement that completes a handshake may lie beyond the SYN-ACK: a
/// worker may send data before it (RFC 7413).
const EARLY_DATA: u32 = 65_536;

/// Where the packet met the program.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Received from the network.
    Ingress,
    /// Sent to the network by the manager itself.
    Egress,
    /// Sent by the manager to one of its own addresses.
    Loopback,
}

/// A packet, as far as the decision needs it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub source_mac: Mac,
    pub destination_mac: Mac,
    pub hook: Hook,
    /// Index of the interface it met the program on.
    pub interface: u32,
    pub time_to_live: u32,
    pub flags: TcpFlags,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Packets and bytes on the wire that this one stands for.
    pub packets: u32,
    pub bytes: u32,
}

/// How a packet leaves.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Untouched, to whoever comes next in the kernel.
    Pass,
    Drop,
    /// Rewritten, on the way it was going.
    Here,
    /// Rewritten, to the decision's next hop.
    Backend,
    /// Rewritten, to the decision's link addresses: back to where the client's packets come from.
    Client,
    /// Rewritten, to a client on the manager itself.
    Loopback,
}

/// What becomes of a packet. Flat, with every field always set: the verifier refuses to copy what
/// an enum leaves undefined.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// The tuple to leave with, unless the packet passes or is dropped.
    pub leaves: FlowKey,
    pub destination_mac: Mac,
    pub source_mac: Mac,
    /// Index of the interface to leave by.
    pub interface: u32,
    pub next_hop: [u8; 4],
    /// The backend concerned; 0 for none.
    pub backend: u32,
    pub verdict: Verdict,
    pub exit: Exit,
    /// 1 if this packet began a connection.
    pub opened: u32,
}

impl Decision {
    #[inline(always)]
    fn pass(verdict: Verdict) -> Self {
        Self {
            leaves: FlowKey::default(),
            destination_mac: Mac::default(),
            source_mac: Mac::default(),
            interface: 0,
            next_hop: [0; 4],
            backend: 0,
            verdict,
            exit: Exit::Pass,
            opened: 0,
        }
    }
}

/// Why an entry was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    Exists,
    Full,
}

/// The two entries of a flow under construction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub request: Flow,
    pub reply: Flow,
}

/// The maps and the clock, as the decision needs them.
pub trait Tables {
    /// An entry of a flow table, writable in place.
    type Entry<'a>: DerefMut<Target = Flow>
    where
        Self: 'a;
    /// Where flows are built.
    type Workbench<'a>: DerefMut<Target = Pair>
    where
        Self: 'a;

    /// CLOCK_MONOTONIC, in nanoseconds.
    fn now_ns(&self) -> u64;
    fn settings(&self) -> Option<Settings>;
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    fn selection(&self, service: u32) -> Option<u32>;
    fn backend(&self, id: u32) -> Option<Backend>;

    /// Room to build the two entries of a flow in: they are too large for the stack of a BPF program.
    fn workbench(&self) -> Option<Self::Workbench<'_>>;

    fn established(&self, key: &FlowKey) -> Option<Self::Entry<'_>>;
    /// Stores an entry, replacing one of the same key.
    fn put_established(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;
    fn remove_established(&self, key: &FlowKey);

    fn half_open(&self, key: &FlowKey) -> Option<Self::Entry<'_>>;
    /// Stores an entry, replacing one of the same key.
    fn put_half_open(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;
    /// Stores an entry unless one of the same key exists.
    fn add_half_open(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;
    fn remove_half_open(&self, key: &FlowKey);
}

/// Decides what becomes of the packet that arrived with the tuple `key`.
#[inline(always)]
pub fn steer<T: Tables>(tables: &T, arrival: &Arrival, key: &FlowKey) -> Decision {
    let mut decision = Decision::pass(Verdict::NotOurs);
    let known = match tables.established(key) {
        Some(flow) => established(tables, arrival, key, flow, &mut decision),
        None => half_open(tables, arrival, key, &mut decision),
    };
    decision.verdict = match known {
        Some(verdict) => verdict,
        None if arrival.hook == Hook::Egress => Verdict::NotOurs,
        None => unknown(tables, arrival, key, &mut decision),
    };
    decision
}

/// The way of an established flow's packet; `None` if it begins a new connection.
#[inline(always)]
fn established<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey,
    mut flow: T::Entry<'_>,
    decision: &mut Decision,
) -> Option<Verdict> {
    let Some(backend) = tables.backend(flow.backend) else {
        return Some(Verdict::NoBackend);
    };
    let is_request = flow.direction == direction::REQUEST;
    let keeps = keeps_flows(&backend);
    if is_request && (arrival.flags.opens() || !keeps) {
        match dismiss(tables, arrival.flags, key, &flow, keeps) {
            Dismissal::None => {}
            Dismissal::Over => return None,
            Dismissal::BackendDown => return Some(Verdict::BackendDown),
        }
    }

    let now = tables.now_ns();
    flow.ended |= ending(arrival.flags);
    let moved = is_request && has_moved(&flow, arrival);
    if moved {
        flow.client_interface = arrival.interface;
        flow.client_mac = arrival.source_mac;
        flow.manager_mac = arrival.destination_mac;
    }
    if moved || now.wrapping_sub(flow.twin_seen_ns) > TWIN_CARE_NS {
        if !look_after_twin(tables, key, &flow) {
            drop(flow);
            tables.remove_established(key);
            return Some(Verdict::NoFlow);
        }
        flow.twin_seen_ns = now;
    }
    carry(&mut flow, arrival, now);
    Some(leave(&flow, &backend, arrival, decision))
}

/// Whether an established flow had to go.
#[repr(u32)]
enum Dismissal {
    None,
    /// It was over, and its client begins a new one.
    Over,
    BackendDown,
}

/// Removes both entries of a flow that a SYN finds over, or whose backend is down.
#[inline(never)]
fn dismiss<T: Tables>(
    tables: &T,
    flags: TcpFlags,
    key: &FlowKey,
    flow: &Flow,
    keeps: bool,
) -> Dismissal {
    let twin_key = flow.leaves.reversed();
    let twin = tables
        .established(&twin_key)
        .filter(|twin| are_twins(key, twin));
    let over = flags.opens()
        && is_over(tables, flow, twin.as_deref(), tables.now_ns(), |settings| {
            settings.established_idle_ns
        });
    if !over && keeps {
        return Dismissal::None;
    }
    let has_twin = twin.is_some();
    drop(twin);
    if has_twin {
        tables.remove_established(&twin_key);
    }
    tables.remove_established(key);
    if over {
        Dismissal::Over
    } else {
        Dismissal::BackendDown
    }
}

/// Brings the other direction's entry in line with `flow`, and back if it was evicted. Returns whether
/// the flow may go on: not when another one has taken the place of an evicted entry.
#[inline(never)]
fn look_after_twin<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) -> bool {
    let twin_key = flow.leaves.reversed();
    if let Some(mut twin) = tables.established(&twin_key) {
        if !are_twins(key, &twin) {
            return false;
        }
        if flow.direction == direction::REQUEST {
            twin.client_interface = flow.client_interface;
            twin.client_mac = flow.client_mac;
            twin.manager_mac = flow.manager_mac;
        }
    } else if let Some(mut pair) = tables.workbench() {
        pair.reply = twin(key, flow);
        // A full table is counted where a connection is refused, not where one goes on.
        _ = tables.put_established(&twin_key, &pair.reply);
    }
    true
}

/// The way of a packet of a handshake; `None` if there is none, or it begins anew.
///
/// This and [`unknown`] stand apart from the way of established flows, so that theirs stays short.
/// They take room for the decision and return a part that the caller needs: the verifier lets no
/// function leave a pointer to its caller's stack in the result register, as a function that
/// returns a structure, or nothing, does.
#[inline(never)]
fn half_open<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey,
    decision: &mut Decision,
) -> Option<Verdict> {
    let mut flow = tables.half_open(key)?;
    let Some(backend) = tables.backend(flow.backend) else {
        return Some(Verdict::NoBackend);
    };
    let now = tables.now_ns();
    let flags = arrival.flags;
    let is_request = flow.direction == direction::REQUEST;
    let twin_key = flow.leaves.reversed();
    let twin = tables
        .half_open(&twin_key)
        .filter(|twin| are_twins(key, twin));
    // A repeated SYN of a handshake that has lost its worker begins anew with another one.
    let begins = is_request
        && flags.opens()
        && (backend.state != state::UP
            || is_over(tables, &flow, twin.as_deref(), now, |settings| {
                settings.half_open_idle_ns
            }));
    let lost = is_request && !keeps_flows(&backend);
    let has_twin = twin.is_some();
    if begins || lost || (!has_twin && !goes_on_alone(tables, &twin_key, is_request, flags)) {
        drop((flow, twin));
        if has_twin {
            tables.remove_half_open(&twin_key);
        }
        tables.remove_half_open(key);
        return if is_request && flags.opens() {
            None
        } else if lost {
            Some(Verdict::BackendDown)
        } else {
            Some(Verdict::NoFlow)
        };
    }

    carry(&mut flow, arrival, now);
    flow.ended |= ending(flags);
    let verdict = leave(&flow, &backend, arrival, decision);
    if is_request && completes(&flow, arrival) {
        let twin_ended = twin.map_or(0, |twin| twin.ended);
        flow.twin_seen_ns = now;
        if promote(tables, key, &twin_key, &flow, twin_ended).is_err() {
            decision.exit = Exit::Pass;
            return Some(Verdict::TableFull);
        }
    } else if !is_request
        && flags.accepts()
        && let Some(mut request) = twin
    {
        request.answered = 1;
        request.worker_sequence = arrival.sequence;
    }
    Some(verdict)
}

/// Whether a handshake may go on whose other direction's entry was evicted, as a flood does: only
/// towards its end, which brings the entry back, and unless another flow has taken the place.
#[inline(always)]
fn goes_on_alone<T: Tables>(
    tables: &T,
    twin_key: &FlowKey,
    is_request: bool,
    flags: TcpFlags,
) -> bool {
    is_request
        && !flags.opens()
        && tables.half_open(twin_key).is_none()
        && tables.established(twin_key).is_none()
}

/// Whether the client acknowledges the worker's SYN-ACK, which only its true receiver can.
#[inline(always)]
fn completes(flow: &Flow, arrival: &Arrival) -> bool {
    let beyond = arrival
        .acknowledgement
        .wrapping_sub(flow.worker_sequence)
        .wrapping_sub(1);
    flow.answered == 1 && arrival.flags.acknowledges() && beyond < EARLY_DATA
}

/// Moves a completed handshake to the established table.
#[inline(always)]
fn promote<T: Tables>(
    tables: &T,
    key: &FlowKey,
    twin_key: &FlowKey,
    flow: &Flow,
    twin_ended: u8,
) -> Result<(), InsertError> {
    let mut pair = tables.workbench().ok_or(InsertError::Full)?;
    pair.request = *flow;
    pair.reply = twin(key, flow);
    pair.reply.ended = twin_ended;
    tables.put_established(twin_key, &pair.reply)?;
    tables.put_established(key, &pair.request)?;
    tables.remove_half_open(key);
    tables.remove_half_open(twin_key);
    Ok(())
}

/// A packet of no flow: the first of a connection, a stray one, or none of ours.
#[inline(never)]
fn unknown<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey,
    decision: &mut Decision,
) -> Verdict {
    let service_key = ServiceKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol as u8,
        reserved: 0,
    };
    let Some(service) = tables.service(&service_key) else {
        return Verdict::NotOurs;
    };
    if !arrival.flags.opens() {
        return Verdict::NoFlow;
    }
    let id = tables.selection(service.id).unwrap_or(0);
    let backend = match tables.backend(id) {
        Some(backend) if backend.state == state::UP => backend,
        _ => return Verdict::NoBackend,
    };
    let Some(mut pair) = tables.workbench() else {
        return Verdict::TableFull;
    };
    pair.request.backend = id;
    pair.request.service = service.id;
    match open(tables, arrival, key, &backend, &mut pair) {
        Ok(()) => {
            decision.opened = 1;
            leave(&pair.request, &backend, arrival, decision)
        }
        Err(verdict) => verdict,
    }
}

/// Begins a flow from the client's tuple `key` to `backend`.
#[inline(always)]
fn open<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey,
    backend: &Backend,
    pair: &mut Pair,
) -> Result<(), Verdict> {
    let now = tables.now_ns();
    pair.request = Flow {
        leaves: FlowKey {
            destination: backend.address,
            destination_port: backend.port.to_be_bytes(),
            ..*key
        },
        client_interface: arrival.interface,
        client_mac: arrival.source_mac,
        manager_mac: arrival.destination_mac,
        direction: direction::REQUEST,
        ended: 0,
        answered: 0,
        reserved: [0; 5],
        worker_sequence: 0,
        created_ns: now,
        last_seen_ns: now,
        twin_seen_ns: now,
        packets: 0,
        bytes: 0,
        ..pair.request
    };
    pair.reply = twin(key, &pair.request);
    if backend.mode == mode::LOCAL {
        let reply_key = pair.request.leaves.reversed();
        tables
            .put_half_open(&reply_key, &pair.reply)
            .map_err(|_| Verdict::TableFull)?;
    } else {
        if backend.interface == 0 {
            return Err(Verdict::NoRoute);
        }
        pair.request.leaves.source = backend.source;
        claim_port(tables, key, pair, now)?;
    }
    carry(&mut pair.request, arrival, now);
    tables
        .put_half_open(key, &pair.request)
        .map_err(|_| Verdict::TableFull)
}

/// Gives a new flow a source port towards its worker, by storing the reply entry that only one flow
/// can hold.
///
/// The first try adds the client's port to an offset that depends on its address only: as long as
/// the range is no smaller than the client's own, a client's connections never share a port, and
/// a port comes back to the worker no sooner than to the client, whose TIME_WAIT then protects both.
#[inline(always)]
fn claim_port<T: Tables>(
    tables: &T,
    key: &FlowKey,
    pair: &mut Pair,
    now: u64,
) -> Result<(), Verdict> {
    let settings = tables.settings().ok_or(Verdict::PortsExhausted)?;
    let count = u32::from(settings.nat_port_count);
    let address = u32::from_be_bytes(key.source);
    let start = (address.wrapping_mul(0x9e37_79b1) >> 8)
        .wrapping_add(u32::from(u16::from_be_bytes(key.source_port)));
    let stride = (count >> 5) | 1;
    for attempt in 0..PORT_ATTEMPTS {
        let offset = start
            .wrapping_add(attempt.wrapping_mul(stride))
            .checked_rem(count)
            .ok_or(Verdict::PortsExhausted)?;
        let port = settings.nat_port_first.wrapping_add(offset as u16);
        pair.request.leaves.source_port = port.to_be_bytes();
        let reply_key = pair.request.leaves.reversed();

        if !clear_established(tables, &reply_key, now) {
            continue;
        }
        match tables.add_half_open(&reply_key, &pair.reply) {
            Ok(()) => return Ok(()),
            Err(InsertError::Exists) if clear_half_open(tables, &reply_key, now) => {
                if tables.add_half_open(&reply_key, &pair.reply).is_ok() {
                    return Ok(());
                }
            }
            Err(InsertError::Exists) => {}
            Err(InsertError::Full) => return Err(Verdict::TableFull),
        }
    }
    Err(Verdict::PortsExhausted)
}

/// Makes room at `reply_key` in the established table; not if a live flow is there.
#[inline(always)]
fn clear_established<T: Tables>(tables: &T, reply_key: &FlowKey, now: u64) -> bool {
    let Some(holder) = tables.established(reply_key) else {
        return true;
    };
    let holder_key = holder.leaves.reversed();
    let twin = tables
        .established(&holder_key)
        .filter(|twin| are_twins(reply_key, twin));
    if !is_over(tables, &holder, twin.as_deref(), now, |settings| {
        settings.established_idle_ns
    }) {
        return false;
    }
    let has_twin = twin.is_some();
    drop((holder, twin));
    if has_twin {
        tables.remove_established(&holder_key);
    }
    tables.remove_established(reply_key);
    true
}

/// Makes room at `reply_key` in the half-open table; not if a handshake is under way there.
#[inline(always)]
fn clear_half_open<T: Tables>(tables: &T, reply_key: &FlowKey, now: u64) -> bool {
    let Some(holder) = tables.half_open(reply_key) else {
        return true;
    };
    let holder_key = holder.leaves.reversed();
    let twin = tables
        .half_open(&holder_key)
        .filter(|twin| are_twins(reply_key, twin));
    if !is_over(tables, &holder, twin.as_deref(), now, |settings| {
        settings.half_open_idle_ns
    }) {
        return false;
    }
    let has_twin = twin.is_some();
    drop((holder, twin));
    if has_twin {
        tables.remove_half_open(&holder_key);
    }
    tables.remove_half_open(reply_key);
    true
}

/// The entry of the other direction, from an entry and its key.
#[inline(always)]
fn twin(key: &FlowKey, flow: &Flow) -> Flow {
    Flow {
        leaves: key.reversed(),
        ended: 0,
        direction: flow.direction ^ (direction::REQUEST ^ direction::REPLY),
        packets: 0,
        bytes: 0,
        ..*flow
    }
}

/// Whether `other`, stored where the answers to the flow of `key` are looked up, belongs to it.
#[inline(always)]
fn are_twins(key: &FlowKey, other: &Flow) -> bool {
    other.leaves.reversed() == *key
}

/// Whether a flow has ended, or both directions have been silent for so long that its tuple may be
/// used again.
#[inline(always)]
fn is_over<T: Tables>(
    tables: &T,
    flow: &Flow,
    twin: Option<&Flow>,
    now: u64,
    idle_ns: impl Fn(&Settings) -> u64,
) -> bool {
    let Some(settings) = tables.settings() else {
        return false;
    };
    let (twin_ended, twin_seen) = twin.map_or((0, 0), |twin| (twin.ended, twin.last_seen_ns));
    let idle = now.saturating_sub(flow.last_seen_ns.max(twin_seen));
    if ended::both(flow.ended, twin_ended) {
        // Seen from the client, a closed connection is over at once; its port is kept for a while.
        flow.direction == direction::REQUEST || idle > settings.closing_idle_ns
    } else {
        idle > idle_ns(&settings)
    }
}

/// Whether packets of existing flows still go to `backend`.
#[inline(always)]
fn keeps_flows(backend: &Backend) -> bool {
    matches!(backend.state, state::UP | state::DRAINING)
}

/// Which bits of [`ended`] a segment sets.
#[inline(always)]
fn ending(flags: TcpFlags) -> u8 {
    let fin = if flags.finishes() { ended::FIN } else { 0 };
    let reset = if flags.resets() { ended::RESET } else { 0 };
    fin | reset
}

/// Whether the client's packets now come from another link address or interface.
#[inline(always)]
fn has_moved(flow: &Flow, arrival: &Arrival) -> bool {
    flow.client_mac != arrival.source_mac
        || flow.client_interface != arrival.interface
        || flow.manager_mac != arrival.destination_mac
}

/// Accounts the packet to its flow.
#[inline(always)]
fn carry(flow: &mut Flow, arrival: &Arrival, now: u64) {
    flow.last_seen_ns = now;
    flow.packets += u64::from(arrival.packets);
    flow.bytes += u64::from(arrival.bytes);
}

/// Decides how a packet of `flow` leaves.
#[inline(always)]
fn leave(flow: &Flow, backend: &Backend, arrival: &Arrival, decision: &mut Decision) -> Verdict {
    let is_request = flow.direction == direction::REQUEST;
    let local = backend.mode == mode::LOCAL;
    decision.backend = flow.backend;
    if !local && arrival.time_to_live <= 1 {
        decision.exit = Exit::Drop;
        return Verdict::TimeToLive;
    }
    decision.leaves = flow.leaves;
    if local {
        decision.exit = Exit::Here;
        return if is_request {
            Verdict::ToManager
        } else {
            Verdict::FromManager
        };
    }
    if is_request {
        decision.exit = Exit::Backend;
        decision.interface = backend.interface;
        decision.next_hop = backend.next_hop;
        return Verdict::ToBackend;
    }
    decision.exit = if flow.client_interface == LOOPBACK {
        Exit::Loopback
    } else {
        Exit::Client
    };
    decision.interface = flow.client_interface;
    decision.destination_mac = flow.client_mac;
    decision.source_mac = flow.manager_mac;
    Verdict::ToClient
}
