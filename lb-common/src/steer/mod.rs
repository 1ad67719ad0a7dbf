//! The steering decision: the packet's flow, its backend, and how it leaves.
//!
//! Pure over [`Tables`], so that TC, XDP and host tests run the same code. A connection begins as a [`Handshake`] in
//! a table of fixed size, which a flood may fill without harm. It becomes two entries of the flow table when the
//! client proves that it received the worker's SYN-ACK.

mod admit;
mod choice;
mod client;
mod closing;
mod established;
mod flow;
mod handshake;
mod icmp_error;
mod new_connection;
mod pending_connection;
mod port;
mod reply;
mod report;
mod retry;
mod slot;
pub mod stages;
mod unknown;

use core::ops::DerefMut;

use crate::{
    address::{Address, V4, V6},
    headers::TcpFlags,
    maps::{
        BY_ROUTE, Backend, Flow, FlowEvent, FlowKey, FlowRecord, Handshake, IN_FRAGMENTS, LOOPBACK,
        Mac, OwnerTags, PeerLinks, PeerSwitch, Policy, PortPool, PortWord, Service, ServiceKey,
        ServiceRefusals, Settings, Traffic, UnknownFlow, mode, ticks,
    },
    verdict::Verdict,
};
use established::{established, recheck_established};
use flow::keeps_flows;
use new_connection::handle_new_connection;
use slot::NO_SLOT;
use stages::{AddressOf, FlowOf, KeyOf, stage_methods};
use unknown::unknown;

pub use admit::admit;
pub use choice::{COMPARED, Tried, choose};
pub use established::FlowEnd;
pub use icmp_error::steer_error;
pub use pending_connection::PendingConnection;
pub use port::{PortState, TimeWait};
pub use retry::{kept_slot, retry_refused};
pub use slot::Tuple;

/// The hook at which a program runs.
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

/// Metadata of a packet for the decision.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PacketMeta {
    /// With the VLAN tag of the frame.
    pub source_mac: Mac,
    pub destination_mac: Mac,
    /// Index of the interface at which the program runs.
    pub interface: u32,
    pub hook: Hook,
    pub time_to_live: u8,
    /// [`TcpFlags::NONE`] unless the packet is a TCP segment.
    pub flags: TcpFlags,
    /// Whether the program is XDP. TC then handles what XDP cannot send.
    pub in_driver: bool,
    /// The packet is the ICMP error "fragmentation needed" (IPv4) or "packet too big" (IPv6).
    pub fragmentation_needed: bool,
    /// The packet is the ICMP error "port unreachable".
    pub port_unreachable: bool,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Packets and bytes on the wire; more than one packet with GSO.
    pub packets: u32,
    pub bytes: u32,
}

/// How a packet leaves.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Unchanged, to the next program or the kernel.
    Pass,
    Drop,
    /// Rewritten, to the local stack or from it.
    Local,
    /// Rewritten, to the decision's next hop.
    Backend,
    /// Only with a reduced time to live, to the decision's next hop.
    Dsr,
    /// A copy arrives once more. The packet itself becomes a RST with the number [`PendingConnection::reset_sequence`],
    /// to the decision's next hop.
    Reset,
    /// Rewritten, to the decision's link addresses: where the client's packets come from.
    Client,
    /// Rewritten, by the manager's route to the client.
    ClientByRoute,
    /// As [`Exit::Client`], but without the DF bit (IPv4), or in smaller segments (IPv6).
    ClientInFragments,
    /// Rewritten, to a client on the manager itself.
    Loopback,
    /// With other link addresses only, to every living peer on the network of its interface.
    Peers,
}

/// The decision on a packet. A flat structure whose fields are always set, because the verifier rejects copies of
/// uninitialized bytes, which an enum has. All zeros are written as whole aligned words, which it demands on the
/// stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Decision<A = V4> {
    /// The tuple after translation, unless the packet is passed or dropped.
    pub translated: FlowKey<A>,
    /// With the VLAN tag of the outgoing frame.
    pub destination_mac: Mac,
    pub source_mac: Mac,
    pub next_hop: A,
    /// Index of the outgoing interface.
    pub interface: u32,
    /// The packet's backend; 0: none.
    pub backend: u32,
    pub verdict: Verdict,
    pub exit: Exit,
    /// 1: the packet began a connection.
    pub new_connection: u8,
    /// 1: the sequence number is plausible. Link addresses are learned from such packets only.
    pub plausible: u8,
}

impl<A: Address> Decision<A> {
    /// An empty decision.
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
    /// Whether the packet leaves the manager rewritten.
    #[inline(always)]
    pub fn is_forwarded(&self) -> bool {
        !matches!(
            self.exit,
            Exit::Pass | Exit::Drop | Exit::Local | Exit::Peers
        )
    }
}

/// Why an entry was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    Exists,
    Full,
}

/// Scratch space for a new connection.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowScratch<A = V4> {
    pub request: Flow<A>,
    pub reply: Flow<A>,
    pub pending: PendingConnection<A>,
    pub record: FlowRecord,
}

/// The body of a loop and its state.
pub trait Step<T> {
    /// Executes one step; returns whether it was the last.
    fn step(&mut self, tables: &T, number: u32) -> bool;
}

/// The maps and helpers from which a backend is chosen, see [`choose`].
pub trait ChoiceTables: Sized {
    fn selection(&self, service: u32) -> Option<u32>;
    fn policy(&self, service: u32) -> Option<Policy>;
    fn choice(&self, index: u32) -> Option<u32>;
    /// Returns the service's round-robin counter, and increments it.
    fn next_round_robin(&self, service: u32) -> u32;
    fn random(&self) -> u32;
    /// Executes the steps 0 to `count - 1`, until one returns true (`bpf_loop`). The verifier cannot unroll a long
    /// loop.
    ///
    /// Before Linux 6.8 (ab5cfac139ab), the verifier checks the first step only, and removes the code that this step
    /// cannot reach. So the initial value of each variable that a step changes is a
    /// [`barrier_var`](Self::barrier_var).
    fn repeat<S: Step<Self>>(&self, count: u32, steps: &mut S);
    /// Returns `number`, which the verifier does not know.
    fn barrier_var(&self, number: u32) -> u32;
    /// Open connections of a backend.
    fn active_connections(&self, backend: u32) -> u32;
    fn backend(&self, id: u32) -> Option<&Backend>;
}

/// The maps of one address family, and the clock.
pub trait Tables: ChoiceTables {
    type Address: Address;

    /// A writable entry of a flow table.
    type Entry<'a>: DerefMut<Target = Flow<Self::Address>>
    where
        Self: 'a;
    /// The writable owner tags of a bucket.
    type OwnerTags<'a>: DerefMut<Target = OwnerTags>
    where
        Self: 'a;
    /// A writable slot of the handshake table.
    type Slot<'a>: DerefMut<Target = Handshake<Self::Address>>
    where
        Self: 'a;
    type FlowScratch<'a>: DerefMut<Target = FlowScratch<Self::Address>>
    where
        Self: 'a;
    /// A writable pool of ports.
    type Pool<'a>: DerefMut<Target = PortPool>
    where
        Self: 'a;

    /// CLOCK_MONOTONIC, in nanoseconds.
    fn now_ns(&self) -> u64;
    /// The same in [`ticks`]; may be a few milliseconds late.
    fn now_ticks(&self) -> u32 {
        ticks(self.now_ns())
    }
    fn settings(&self) -> Option<&Settings>;
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// The only interface on which packets from this address may arrive; 0: none, for the manager's own addresses.
    /// `None`: no restriction.
    fn expected_interface(&self, address: Self::Address) -> Option<u32>;
    /// Whether the operator has denied this client.
    fn is_denied(&self, client: &V6) -> bool;
    /// Whether the link addresses of a backend are known. XDP needs them.
    fn has_neighbour(&self, backend: u32) -> bool;

    /// Scratch space, because a new connection does not fit on a BPF program's stack.
    fn flow_scratch(&self) -> Option<Self::FlowScratch<'_>>;

    /// The owner tags of a bucket of the handshake table.
    fn owner_tags(&self, bucket: u32) -> Option<Self::OwnerTags<'_>>;
    /// Clears `bits` of the owner tag of a slot of a bucket atomically.
    fn clear_owner_tag(&self, bucket: u32, index: u32, bits: u32);
    /// Whether the SYN of the handshake in a slot is kept.
    fn keeps_syn(&self, slot: u32, client: &FlowKey<Self::Address>, sequence: u32) -> bool;
    /// A slot of the handshake table.
    fn handshake(&self, slot: u32) -> Option<Self::Slot<'_>>;

    /// The pool of ports towards a worker's endpoint.
    fn pool_of(&self, endpoint: &ServiceKey) -> Option<u32>;
    fn pool(&self, number: u32) -> Option<Self::Pool<'_>>;
    fn port_word(&self, index: u32) -> Option<PortWord>;
    /// Sets bits of a word of ports atomically, and returns the former bits.
    fn set_ports(&self, index: u32, state: PortState, bits: u64) -> u64;
    /// Clears bits of a word of ports atomically, and returns the former bits.
    fn clear_ports(&self, index: u32, state: PortState, bits: u64) -> u64;
    /// The slot, plus 1, of the last handshake from a port; 0: none.
    fn port_handshake(&self, index: u32) -> Option<u32>;
    fn set_port_handshake(&self, index: u32, slot: u32);
    /// One of the manager's NAT addresses.
    fn nat_source(&self, index: u32) -> Option<V6>;

    fn established(&self, key: &FlowKey<Self::Address>) -> Option<Self::Entry<'_>>;
    /// Makes a superseded entry live, after all earlier writes to it.
    fn publish(&self, flow: &mut Flow<Self::Address>);
    /// Stores an entry unless the key exists.
    fn add_established(
        &self,
        key: &FlowKey<Self::Address>,
        flow: &Flow<Self::Address>,
    ) -> Result<(), InsertError>;
    fn remove_established(&self, key: &FlowKey<Self::Address>);

    /// Sets bits of [`ended`](crate::maps::ended) atomically.
    fn set_ended(&self, flow: &mut Flow<Self::Address>, bits: u8);
    /// Clears bits of [`ended`](crate::maps::ended) atomically.
    fn clear_ended(&self, flow: &mut Flow<Self::Address>, bits: u8);
    /// Clears `counted` atomically; returns true to exactly one processor.
    fn clear_counted(&self, request: &mut Flow<Self::Address>) -> bool;
    /// Sets `counted` atomically; returns true to exactly one processor.
    fn set_counted(&self, request: &mut Flow<Self::Address>) -> bool;
    /// Sets `completed` atomically; returns true to exactly one processor.
    fn mark_completed(&self, handshake: &mut Handshake<Self::Address>) -> bool;
    /// Adds an open connection to a backend's count, or removes one.
    fn count_active(&self, backend: u32, open: bool);
    /// The counted connections of the client with this [`prefix`](Address::prefix).
    fn client_connections(&self, client: &V6) -> u64;
    /// Adds a connection to a client's count, or removes one.
    fn count_client(&self, client: &V6, begins: bool);
    /// What the manager has switched on for its peers.
    fn peer_switch(&self) -> PeerSwitch;
    /// The living peers on the network of an interface.
    fn peers(&self, interface: u32) -> Option<&PeerLinks>;
    /// Whether it is a NAT address of this manager or of a peer.
    fn is_peer_address(&self, address: &V6) -> bool;
    /// Reports a connection to the peers: calls `fill` on an empty event in the ring, if the ring has room.
    fn report(&self, fill: impl FnOnce(&mut FlowEvent<Self::Address>));
    /// The lookup of an unknown connection; `None`: there was none.
    fn unknown_flow(&self, tuple: &FlowKey<V6>) -> Option<UnknownFlow>;
    fn set_unknown_flow(&self, tuple: &FlowKey<V6>, flow: &UnknownFlow);
    /// Reports an unknown client to the manager; returns whether there was room.
    fn report_unknown(&self, record: &FlowRecord) -> bool;
    /// Changes a backend's counters.
    fn count_traffic(&self, backend: u32, change: impl FnOnce(&mut Traffic));
    /// Changes a service's counters of refused connections.
    fn count_refusal(&self, service: u32, change: impl FnOnce(&mut ServiceRefusals));

    crate::for_stages!(stage_methods);
}

/// Decides on a packet with the tuple `key`.
#[inline(always)]
pub fn steer<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) {
    if !steer_established(tables, packet, key, decision) {
        steer_unestablished(tables, packet, key, decision);
        if decision.verdict == Verdict::Retried {
            retry_refused(tables, packet, decision);
        }
    }
}

/// The first half of [`steer`]: returns whether the packet belongs to an established flow.
#[inline(always)]
pub fn steer_established<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) -> bool {
    *decision = Decision::NONE;
    // Before the look-up, after which the compiler would read the key again.
    let is_datagram = key.is_datagram();
    let Some(flow) = tables.established(key) else {
        return false;
    };
    match established(tables, packet, key, is_datagram, flow, decision) {
        Some(verdict) => {
            decision.verdict = verdict;
            true
        }
        None => false,
    }
}

/// The second half of [`steer`]: the packet belongs to no established flow. After [`Verdict::Retried`],
/// [`retry_refused`] completes the decision.
#[inline(always)]
pub fn steer_unestablished<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) {
    let verdict = unestablished(tables, packet, key, decision);
    decision.verdict = match verdict {
        Verdict::NoFlow | Verdict::NotOurs => unknown(tables, packet, key, verdict, decision),
        verdict => verdict,
    };
}

/// Decides on a packet of no established flow: part of a handshake, a stray packet, or an unrelated one.
///
/// The functions that it calls are not inlined, so that the path of established flows stays short and the stack of a
/// BPF program suffices. They write to the caller's decision and return a scalar: the verifier rejects a pointer to
/// the caller's stack in the result register, which a function without a scalar result leaves there.
#[inline(always)]
fn unestablished<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let mut slot = tables.find_by_reply(packet.hook, key);
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
            slot = tables.find_by_routed_reply(packet.hook, key);
        }
    }
    if slot != NO_SLOT {
        return handshake::handle_worker_packet(tables, packet, slot, decision);
    }
    let Some(service) = service else {
        return recheck_established(tables, key, Verdict::NotOurs, decision);
    };
    if packet.hook == Hook::Ingress && !packet.source_mac.is_station() {
        // A reply would go to a multicast address or to none.
        decision.exit = Exit::Drop;
        return Verdict::Malformed;
    }
    // The manager ends the established flows of denied clients, so their packets arrive here, too.
    if is_denied(tables, key) {
        decision.exit = Exit::Drop;
        return Verdict::Denied;
    }
    let slot = tables.find_by_client(key);
    if packet.flags.is_syn() || key.is_datagram() && !continues_exchange(tables, slot) {
        if let Some(mut scratch) = tables.flow_scratch() {
            scratch.pending.flags = service.flags;
        }
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

/// Whether a datagram follows its handshake: the worker has replied and serves existing flows.
#[inline(always)]
fn continues_exchange<T: Tables>(tables: &T, slot: u32) -> bool {
    let Some(handshake) = tables.handshake(slot) else {
        return false;
    };
    let backend = tables.backend(handshake.backend);
    handshake.answered == 1 && backend.is_some_and(keeps_flows)
}

/// How to forward a packet of a flow or handshake.
#[derive(Clone, Copy)]
struct Forwarding<A> {
    is_request: bool,
    translated: FlowKey<A>,
    backend: u32,
    client_interface: u32,
    client_mac: Mac,
    manager_mac: Mac,
}

/// Whether XDP passes the packet to TC, which decides again. Then this decision must not change state.
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

/// Subtracts a packet that XDP passes to TC from its flow's bytes.
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
