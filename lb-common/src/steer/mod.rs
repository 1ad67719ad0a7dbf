//! The steering decision: which flow a packet belongs to, which backend serves it, how it leaves.
//!
//! Pure over [`Tables`], so that the TC program, the XDP program and the host tests run the same
//! code. A connection begins as a [`Handshake`] in a table of fixed places, which a flood can fill
//! without harm, and becomes two entries of the flow table when the client proves that it received
//! the worker's SYN-ACK.

mod begin;
mod choice;
mod established;
mod flow;
mod handshake;
mod place;

use core::ops::DerefMut;

use crate::{
    headers::TcpFlags,
    maps::{
        Backend, Flow, FlowKey, Handshake, LOOPBACK, Mac, Notes, Policy, Service, ServiceKey,
        Settings, mode,
    },
    verdict::Verdict,
};
use begin::begin;
use established::established;
use place::{NOWHERE, find_client, find_worker};

pub use begin::Claim;
pub use choice::COMPARED;

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
pub struct Arrival {
    pub source_mac: Mac,
    pub destination_mac: Mac,
    /// Index of the interface it met the program on.
    pub interface: u32,
    pub hook: Hook,
    pub time_to_live: u8,
    pub flags: TcpFlags,
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
    pub opened: u8,
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

/// What a connection is made of while it is made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Workbench {
    pub request: Flow,
    pub reply: Flow,
    pub claim: Claim,
}

/// A loop's body, with what it works on.
pub trait Step {
    /// Takes one step; returns whether it was the last.
    fn step<T: Tables>(&mut self, tables: &T, number: u32) -> bool;
}

/// The maps and the clock, as the decision needs them.
pub trait Tables {
    /// An entry of a flow table, writable in place.
    type Entry<'a>: DerefMut<Target = Flow>
    where
        Self: 'a;
    /// The notes of a column, writable in place.
    type Notes<'a>: DerefMut<Target = Notes>
    where
        Self: 'a;
    /// A place of the half-open table, writable in place.
    type Place<'a>: DerefMut<Target = Handshake>
    where
        Self: 'a;
    type Workbench<'a>: DerefMut<Target = Workbench>
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
    /// Takes the steps 0 to `count - 1`, until one says that it was the last. The verifier cannot
    /// follow a long loop, but the kernel can run one.
    fn repeat<S: Step>(&self, count: u32, steps: &mut S);
    /// Open connections of a backend.
    fn active(&self, backend: u32) -> u32;
    fn backend(&self, id: u32) -> Option<Backend>;

    /// Room for what is being made: it is too large for the stack of a BPF program.
    fn workbench(&self) -> Option<Self::Workbench<'_>>;

    /// Whose handshakes are in a column of the half-open table.
    fn notes(&self, column: u32) -> Option<Self::Notes<'_>>;
    /// A place of the half-open table.
    fn handshake(&self, place: u32) -> Option<Self::Place<'_>>;

    fn established(&self, key: &FlowKey) -> Option<Self::Entry<'_>>;
    /// Stores an entry unless one of the same key exists.
    fn add_established(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;
    fn remove_established(&self, key: &FlowKey);

    /// Counts a backend's open connection, or no longer.
    fn count_active(&self, backend: u32, open: bool);
}

/// Decides what becomes of the packet that arrived with the tuple `key`.
#[inline(always)]
pub fn steer<T: Tables>(tables: &T, arrival: &Arrival, key: &FlowKey) -> Decision {
    let mut decision = Decision::pass(Verdict::NotOurs);
    let known = match tables.established(key) {
        Some(flow) => established(tables, arrival, key, flow, &mut decision),
        None => None,
    };
    decision.verdict = match known {
        Some(verdict) => verdict,
        None => unknown(tables, arrival, key, &mut decision),
    };
    decision
}

/// A packet of no established flow: part of a handshake, a stray one, or none of ours.
///
/// What this calls stands apart from the way of established flows, so that theirs stays short and
/// the stack of a BPF program suffices. It takes room for the decision and returns a part that the
/// caller needs: the verifier lets no function leave a pointer to its caller's stack in the result
/// register, as a function that returns a structure, or nothing, does.
#[inline(always)]
fn unknown<T: Tables>(
    tables: &T,
    arrival: &Arrival,
    key: &FlowKey,
    decision: &mut Decision,
) -> Verdict {
    let place = find_worker(tables, arrival.hook, key);
    if place != NOWHERE {
        return handshake::answer(tables, arrival, place, decision);
    }
    if arrival.hook == Hook::Egress {
        return Verdict::NotOurs;
    }
    let service_key = ServiceKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol as u8,
        reserved: 0,
    };
    let Some(service) = tables.service(&service_key) else {
        return Verdict::NotOurs;
    };
    if arrival.flags.opens() {
        return begin(tables, arrival, key, service.id, decision);
    }
    let place = find_client(tables, key);
    if place == NOWHERE {
        return Verdict::NoFlow;
    }
    handshake::go_on(tables, arrival, key, place, decision)
}

/// What it takes to send a packet on.
#[derive(Clone, Copy)]
struct Way {
    is_request: bool,
    leaves: FlowKey,
    backend: u32,
    client_interface: u32,
    client_mac: Mac,
    manager_mac: Mac,
}

/// Decides how a packet leaves.
#[inline(always)]
fn leave(way: &Way, backend: &Backend, arrival: &Arrival, decision: &mut Decision) -> Verdict {
    let local = backend.mode == mode::LOCAL;
    decision.backend = way.backend;
    if !local && arrival.time_to_live <= 1 {
        decision.exit = Exit::Drop;
        return Verdict::TimeToLive;
    }
    decision.leaves = way.leaves;
    if local {
        decision.exit = Exit::Here;
        return if way.is_request {
            Verdict::ToManager
        } else {
            Verdict::FromManager
        };
    }
    if way.is_request {
        decision.exit = Exit::Backend;
        decision.interface = backend.interface;
        decision.next_hop = backend.next_hop;
        return Verdict::ToBackend;
    }
    decision.exit = if way.client_interface == LOOPBACK {
        Exit::Loopback
    } else {
        Exit::Client
    };
    decision.interface = way.client_interface;
    decision.destination_mac = way.client_mac;
    decision.source_mac = way.manager_mac;
    Verdict::ToClient
}
