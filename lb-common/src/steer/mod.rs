//! The steering decision: which flow a packet belongs to, which backend serves it, how it leaves.
//!
//! Pure over [`Tables`], so that the TC program, the XDP program and the host tests run the same
//! code. A connection starts in the half-open table, which a flood can fill without harm, and
//! moves to the established one when the client proves that it received the worker's SYN-ACK.

mod begin;
mod choice;
mod established;
mod flow;
mod handshake;

use core::ops::DerefMut;

use crate::{
    headers::TcpFlags,
    maps::{
        Backend, Flow, FlowKey, LOOPBACK, Mac, Policy, Service, ServiceKey, Settings, direction,
        mode,
    },
    verdict::Verdict,
};
use begin::unknown;
use established::established;
use handshake::half_open;

pub use begin::PORT_ATTEMPTS;
pub use choice::{COMPARED, Scan};

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
    fn policy(&self, service: u32) -> Option<Policy>;
    fn choice(&self, index: u32) -> Option<u32>;
    /// The number of this service's round-robin choices before this one.
    fn turn(&self, service: u32) -> u32;
    fn random(&self) -> u32;
    /// Calls [`Scan::step`] with each number below `count`. The verifier cannot follow a long loop,
    /// but the kernel can run one.
    fn scan(&self, count: u32, scan: &mut Scan);
    /// Open connections of a backend.
    fn active(&self, backend: u32) -> u32;
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
