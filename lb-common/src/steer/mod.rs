//! The steering decision: which flow a packet belongs to, which backend serves it, how it leaves.
//!
//! Pure over [`Tables`], so that the TC program, the XDP program and the host tests run the same
//! code. A connection begins as a [`Handshake`] in a table of fixed slots, which a flood can fill
//! without harm, and becomes two entries of the flow table when the client proves that it received
//! the worker's SYN-ACK.

mod choice;
mod established;
mod flow;
mod handshake;
mod icmp_error;
mod new_connection;
mod port;
mod slot;

use core::ops::DerefMut;

use crate::{
    address::{Address, V4, V6},
    headers::TcpFlags,
    maps::{
        BY_ROUTE, Backend, Flow, FlowKey, Handshake, IN_FRAGMENTS, LOOPBACK, Mac, OwnerTags,
        Policy, PortPool, PortWord, Service, ServiceKey, Settings, mode,
    },
    verdict::Verdict,
};
use established::{established, recheck_established};
use flow::keeps_flows;
use new_connection::handle_new_connection;
use slot::{NO_SLOT, find_by_client, find_by_reply, find_by_routed_reply};

pub use choice::{COMPARED, choose};
pub use icmp_error::steer_error;
pub use new_connection::PendingConnection;
pub use port::PortState;

/// Where the packet met the program.
#[repr(u8)]
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
pub struct PacketMeta {
    /// With the VLAN tag of the frame.
    pub source_mac: Mac,
    pub destination_mac: Mac,
    /// Index of the interface it met the program on.
    pub interface: u32,
    pub hook: Hook,
    pub time_to_live: u8,
    /// None where the packet is no TCP segment.
    pub flags: TcpFlags,
    /// Whether it met XDP, behind which TC meets what XDP cannot send.
    pub in_driver: bool,
    /// Of an error message: the packet that it quotes would get through in fragments.
    pub fragmentation_needed: bool,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Packets and bytes on the wire that this one stands for.
    pub packets: u32,
    pub bytes: u32,
}

/// How a packet leaves.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Untouched, to whoever comes next in the kernel.
    Pass,
    Drop,
    /// Rewritten, on the way it was going.
    Local,
    /// Rewritten, to the decision's next hop.
    Backend,
    /// As it came, but for its time to live, to the decision's next hop.
    Dsr,
    /// Rewritten, to the decision's link addresses: back to where the client's packets come from.
    Client,
    /// Rewritten, to where the manager's own route to the client leads.
    ClientByRoute,
    /// As [`Exit::Client`], but so that routers may cut the packet up.
    ClientInFragments,
    /// Rewritten, to a client on the manager itself.
    Loopback,
}

/// What becomes of a packet. Flat, with every field always set: the verifier refuses to copy what
/// an enum leaves undefined. On the stack it also wants whole words in their places, which zeros all
/// over are written by.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Decision<A = V4> {
    /// The tuple to leave with, unless the packet passes or is dropped.
    pub translated: FlowKey<A>,
    /// With the VLAN tag to leave with.
    pub destination_mac: Mac,
    pub source_mac: Mac,
    pub next_hop: A,
    /// Index of the interface to leave by.
    pub interface: u32,
    /// The backend concerned; 0 for none.
    pub backend: u32,
    pub verdict: Verdict,
    pub exit: Exit,
    /// 1 if this packet began a connection.
    pub new_connection: u8,
    /// 1 if the packet's sender knows the connection's numbers: from others, nothing is learnt.
    pub plausible: u8,
}

impl<A: Address> Decision<A> {
    /// Nothing decided yet.
    pub const NONE: Self = Self {
        translated: FlowKey::NONE,
        destination_mac: Mac::NONE,
        source_mac: Mac::NONE,
        next_hop: A::NONE,
        interface: 0,
        backend: 0,
        verdict: Verdict::ToBackend,
        exit: Exit::Pass,
        new_connection: 0,
        plausible: 0,
    };
}

impl<A> Decision<A> {
    /// Whether the packet leaves the way that it was going.
    #[inline(always)]
    pub fn is_forwarded(&self) -> bool {
        !matches!(self.exit, Exit::Pass | Exit::Drop | Exit::Local)
    }
}

/// Why an entry was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    Exists,
    Full,
}

/// What a connection is made of while it is made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowScratch<A = V4> {
    pub request: Flow<A>,
    pub reply: Flow<A>,
    pub pending: PendingConnection<A>,
}

/// A loop's body, with what it works on.
pub trait Step<T> {
    /// Takes one step; returns whether it was the last.
    fn step(&mut self, tables: &T, number: u32) -> bool;
}

/// The maps and helpers from which a backend is chosen, see [`choose`].
pub trait ChoiceTables: Sized {
    fn selection(&self, service: u32) -> Option<u32>;
    fn policy(&self, service: u32) -> Option<Policy>;
    fn choice(&self, index: u32) -> Option<u32>;
    /// The number of this service's round-robin choices before this one.
    fn next_round_robin(&self, service: u32) -> u32;
    fn random(&self) -> u32;
    /// Takes the steps 0 to `count - 1`, until one says that it was the last. The verifier cannot
    /// follow a long loop, but the kernel can run one.
    ///
    /// Before Linux 6.8 (ab5cfac139ab) it verifies the first step only, and takes out of the program
    /// whatever that one cannot reach. So what a step changes begins [`barrier_var`](Self::barrier_var).
    fn repeat<S: Step<Self>>(&self, count: u32, steps: &mut S);
    /// The same number, unknown to the verifier.
    fn barrier_var(&self, number: u32) -> u32;
    /// Open connections of a backend.
    fn active_connections(&self, backend: u32) -> u32;
    fn backend(&self, id: u32) -> Option<&Backend>;
}

/// The maps of one family of addresses and the clock, as the decision needs them.
pub trait Tables: ChoiceTables {
    type Address: Address;

    /// An entry of a flow table, writable in place.
    type Entry<'a>: DerefMut<Target = Flow<Self::Address>>
    where
        Self: 'a;
    /// The owner tags of a bucket, writable in place.
    type OwnerTags<'a>: DerefMut<Target = OwnerTags>
    where
        Self: 'a;
    /// A slot of the half-open table, writable in place.
    type Slot<'a>: DerefMut<Target = Handshake<Self::Address>>
    where
        Self: 'a;
    type FlowScratch<'a>: DerefMut<Target = FlowScratch<Self::Address>>
    where
        Self: 'a;
    /// A pool of ports, writable in place.
    type Pool<'a>: DerefMut<Target = PortPool>
    where
        Self: 'a;

    /// CLOCK_MONOTONIC, in nanoseconds.
    fn now_ns(&self) -> u64;
    fn settings(&self) -> Option<&Settings>;
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// The interface by which packets of this address come: 0 for one of the manager's own, which come by none;
    /// nothing if it may be any client's.
    fn expected_interface(&self, address: Self::Address) -> Option<u32>;
    /// Whether the operator has denied the client at this address.
    fn is_denied(&self, client: &V6) -> bool;
    /// Whether the link addresses of a backend are known, without which XDP sends nothing there.
    fn has_neighbour(&self, backend: u32) -> bool;

    /// Room for what is being made: it is too large for the stack of a BPF program.
    fn flow_scratch(&self) -> Option<Self::FlowScratch<'_>>;

    /// Whose handshakes are in a bucket of the half-open table.
    fn owner_tags(&self, bucket: u32) -> Option<Self::OwnerTags<'_>>;
    /// A slot of the half-open table.
    fn handshake(&self, slot: u32) -> Option<Self::Slot<'_>>;

    /// The number of the pool of ports towards a worker's endpoint.
    fn pool_of(&self, endpoint: &ServiceKey) -> Option<u32>;
    fn pool(&self, number: u32) -> Option<Self::Pool<'_>>;
    fn port_word(&self, index: u32) -> Option<PortWord>;
    /// Sets bits of a word of ports, and returns those set before, in one step.
    fn set_ports(&self, index: u32, state: PortState, bits: u64) -> u64;
    /// The same, but clears them.
    fn clear_ports(&self, index: u32, state: PortState, bits: u64) -> u64;
    /// The slot, plus 1, of the last handshake that was begun from a port; 0 for none.
    fn port_handshake(&self, index: u32) -> Option<u32>;
    fn set_port_handshake(&self, index: u32, slot: u32);
    /// One of the manager's addresses for NAT.
    fn nat_source(&self, index: u32) -> Option<V6>;

    fn established(&self, key: &FlowKey<Self::Address>) -> Option<Self::Entry<'_>>;
    /// Lets packets go the way of an entry that was superseded, after all that was written of it before.
    fn publish(&self, flow: &mut Flow<Self::Address>);
    /// Stores an entry unless one of the same key exists.
    fn add_established(
        &self,
        key: &FlowKey<Self::Address>,
        flow: &Flow<Self::Address>,
    ) -> Result<(), InsertError>;
    fn remove_established(&self, key: &FlowKey<Self::Address>);

    /// Sets bits of [`ended`](crate::maps::ended), which two processors may do at once.
    fn set_ended(&self, flow: &mut Flow<Self::Address>, bits: u8);
    /// Clears them.
    fn clear_ended(&self, flow: &mut Flow<Self::Address>, bits: u8);
    /// Takes the mark away that says that the connection is counted, and returns whether it was there: to
    /// one only of two processors that ask at once.
    fn clear_counted(&self, request: &mut Flow<Self::Address>) -> bool;
    /// Puts the mark back; returns whether it was not there: to one only of two that ask at once.
    fn set_counted(&self, request: &mut Flow<Self::Address>) -> bool;
    /// Marks a handshake as completed; returns whether it was not: to one only of two that ask at once.
    fn mark_completed(&self, handshake: &mut Handshake<Self::Address>) -> bool;
    /// Counts a backend's open connection, or no longer.
    fn count_active(&self, backend: u32, open: bool);
    /// Counts a handshake that the client went on with although no answer of the backend had passed here.
    fn count_unanswered(&self, backend: u32);
}

/// Decides what becomes of the packet that arrived with the tuple `key`.
#[inline(always)]
pub fn steer<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) {
    if !steer_established(tables, packet, key, decision) {
        steer_unestablished(tables, packet, key, decision);
    }
}

/// The first half of [`steer`]: returns whether the packet is one of an established flow.
#[inline(always)]
pub fn steer_established<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) -> bool {
    *decision = Decision::NONE;
    let Some(flow) = tables.established(key) else {
        return false;
    };
    match established(tables, packet, key, flow, decision) {
        Some(verdict) => {
            decision.verdict = verdict;
            true
        }
        None => false,
    }
}

/// The second half: the packet is none of an established flow.
#[inline(always)]
pub fn steer_unestablished<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) {
    decision.verdict = unestablished(tables, packet, key, decision);
}

/// A packet of no established flow: part of a handshake, a stray one, or none of ours.
///
/// What this calls stands apart from the way of established flows, so that theirs stays short and
/// the stack of a BPF program suffices. It takes room for the decision and returns a part that the
/// caller needs: the verifier lets no function leave a pointer to its caller's stack in the result
/// register, as a function that returns a structure, or nothing, does.
#[inline(always)]
fn unestablished<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let mut slot = find_by_reply(tables, packet.hook, key);
    let mut service = None;
    if slot == NO_SLOT {
        if packet.hook == Hook::Egress || key.destination.is_mapped() {
            return Verdict::NotOurs;
        }
        service = tables.service(&ServiceKey {
            address: key.destination.mapped(),
            port: key.destination_port,
            protocol: key.protocol as u8,
            reserved: 0,
        });
        if service.is_none() {
            slot = find_by_routed_reply(tables, packet.hook, key);
        }
    }
    if slot != NO_SLOT {
        return handshake::handle_worker_packet(tables, packet, slot, decision);
    }
    let Some(service) = service else {
        return recheck_established(tables, key, Verdict::NotOurs, decision);
    };
    if packet.hook == Hook::Ingress && !packet.source_mac.is_station() {
        // An answer would go to a group, or to nobody.
        decision.exit = Exit::Drop;
        return Verdict::Malformed;
    }
    // The manager ends the established flows of whom it denies: their packets come by here, too.
    if is_denied(tables, key) {
        decision.exit = Exit::Drop;
        return Verdict::Denied;
    }
    let slot = find_by_client(tables, key);
    if packet.flags.is_syn() || key.is_datagram() && !continues_exchange(tables, slot) {
        return handle_new_connection(tables, packet, key, service.id, slot, decision);
    }
    if slot == NO_SLOT {
        return recheck_established(tables, key, Verdict::NoFlow, decision);
    }
    handshake::handle_client_packet(tables, packet, key, slot, decision)
}

#[inline(never)]
fn is_denied<T: Tables>(tables: &T, key: &FlowKey<T::Address>) -> bool {
    tables.is_denied(&key.source.mapped())
}

/// Whether a datagram goes where those before it went: the worker has answered, and still does.
#[inline(always)]
fn continues_exchange<T: Tables>(tables: &T, slot: u32) -> bool {
    let Some(handshake) = tables.handshake(slot) else {
        return false;
    };
    let backend = tables.backend(handshake.backend);
    handshake.answered == 1 && backend.is_some_and(keeps_flows)
}

/// What it takes to send a packet on.
#[derive(Clone, Copy)]
struct Forwarding<A> {
    is_request: bool,
    translated: FlowKey<A>,
    backend: u32,
    client_interface: u32,
    client_mac: Mac,
    manager_mac: Mac,
}

/// Whether XDP leaves the packet to TC, which decides once more: so this time, it may change nothing.
#[inline(always)]
fn is_left_to_tc<T: Tables>(
    tables: &T,
    forwarding: &Forwarding<T::Address>,
    backend: &Backend,
    packet: &PacketMeta,
) -> bool {
    if !packet.in_driver || backend.mode == mode::LOCAL {
        return false;
    }
    if forwarding.is_request {
        !tables.has_neighbour(forwarding.backend)
    } else {
        forwarding.client_interface == LOOPBACK || forwarding.client_mac.tag() != 0
    }
}

/// Takes back what a packet that XDP leaves to TC has added to its flow.
#[inline(always)]
pub fn undo_accounting<T: Tables>(tables: &T, packet: &PacketMeta, key: &FlowKey<T::Address>) {
    if let Some(mut flow) = tables.established(key) {
        flow.bytes = flow.bytes.saturating_sub(packet.bytes.into());
    }
}

/// Decides how a packet leaves.
#[inline(always)]
fn decide_exit<A: Address>(
    forwarding: &Forwarding<A>,
    backend: &Backend,
    decision: &mut Decision<A>,
) -> Verdict {
    let local = backend.mode == mode::LOCAL;
    decision.backend = forwarding.backend;
    decision.translated = forwarding.translated;
    if local {
        decision.exit = Exit::Local;
        return if forwarding.is_request {
            Verdict::ToManager
        } else {
            Verdict::FromManager
        };
    }
    if forwarding.is_request {
        decision.exit = if backend.mode == mode::DSR {
            Exit::Dsr
        } else {
            Exit::Backend
        };
        decision.interface = backend.interface;
        decision.next_hop = A::from_mapped(&backend.next_hop);
        return Verdict::ToBackend;
    }
    decision.interface = forwarding.client_interface;
    decision.exit = if (LOOPBACK + 1..IN_FRAGMENTS).contains(&forwarding.client_interface) {
        Exit::Client
    } else if forwarding.client_interface == LOOPBACK {
        Exit::Loopback
    } else {
        decision.interface = forwarding.client_interface & !(BY_ROUTE | IN_FRAGMENTS);
        if forwarding.client_interface & BY_ROUTE != 0 {
            Exit::ClientByRoute
        } else {
            Exit::ClientInFragments
        }
    };
    decision.destination_mac = forwarding.client_mac;
    decision.source_mac = forwarding.manager_mac;
    Verdict::ToClient
}
