//! Names, capacities and layouts of the pinned BPF maps: the contract between the kernel programs,
//! the manager and a person with bpftool.
//!
//! Values are `#[repr(C)]` without implicit padding. Ports of keys and of flows are bytes as on the
//! wire, because the datapath compares them unchanged; a backend's port is a plain number, because
//! people read and write it.

/// Version of everything in this file. A manager refuses pins of another version.
pub const LAYOUT_VERSION: u32 = 2;

/// Names of the maps, and of their pins.
pub mod name {
    pub const SETTINGS: &str = "settings";
    pub const SERVICES: &str = "services";
    pub const SELECTION: &str = "selection";
    pub const POLICIES: &str = "policies";
    pub const CHOICES: &str = "choices";
    pub const BACKENDS: &str = "backends";
    pub const NEIGHBOURS: &str = "neighbours";
    pub const FLOWS: &str = "flows";
    pub const HALF_OPEN: &str = "half_open";
    pub const NOTES: &str = "notes";
    pub const ACTIVE: &str = "active";
    pub const LOST: &str = "lost";
    pub const PORTS: &str = "ports";
    pub const VERDICTS: &str = "verdicts";
    pub const TRAFFIC: &str = "traffic";

    /// Every map.
    pub const ALL: &[&str] = &[
        SETTINGS, SERVICES, SELECTION, POLICIES, CHOICES, BACKENDS, NEIGHBOURS, PORTS, FLOWS,
        HALF_OPEN, NOTES, ACTIVE, LOST, VERDICTS, TRAFFIC,
    ];
}

/// Capacity of `services`, `selection` and `policies`.
pub const MAX_SERVICES: u32 = 64;
/// Most places of one generation of a service's choices.
pub const CHOICE_SLOTS: u32 = 4_096;
/// Capacity of `choices`: two generations for each service.
pub const MAX_CHOICES: u32 = MAX_SERVICES * 2 * CHOICE_SLOTS;
/// Capacity of `backends`, `neighbours` and `traffic` unless configured.
pub const DEFAULT_BACKENDS: u32 = 256;
/// Capacity of `flows` unless configured; a connection takes two entries.
pub const DEFAULT_FLOW_ENTRIES: u32 = 2 * 131_072;
/// Capacity of `half_open` unless configured: as many as ports towards the workers.
pub const DEFAULT_HANDSHAKES: u32 = 28_672;
/// How many places of `half_open`, and ports, a connection may take; of more handshakes in one column
/// of them, the oldest goes.
pub const ROWS: u32 = 16;

/// Value of `notes`, by column of `half_open`: a word for each row that tells whose handshake is there.
pub type Notes = [u32; ROWS as usize];

/// The single value of `settings`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub layout_version: u32,
    /// First source port used towards workers, and how many follow it.
    pub nat_port_first: u16,
    pub nat_port_count: u16,
    /// A flow without packets for this long, in nanoseconds, gives its port away when one is needed.
    pub established_idle_ns: u64,
    /// The same for a flow that both sides have closed or one has reset.
    pub closing_idle_ns: u64,
    /// The same for a handshake that was never completed.
    pub half_open_idle_ns: u64,
    /// `net.ipv4.conf.lo.accept_local` as it was before memlb, to be put back when memlb goes.
    pub accept_local_before: u32,
    /// How many columns of [`ROWS`] places `half_open` has.
    pub half_open_columns: u32,
}

/// Key of `services`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    pub address: [u8; 4],
    pub port: [u8; 2],
    pub protocol: u8,
    pub reserved: u8,
}

/// Value of `services`: which entry of `selection` names the chosen backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    pub id: u32,
}

/// Value of `selection`, indexed by service id, that leaves each new connection to the service's
/// [`Policy`]. Any other value is the id of the backend that gets all of them.
pub const SPREAD: u32 = u32::MAX;

/// Value of `policies`, indexed by service id: how `choices` are made from.
///
/// The generation that is not in force is filled first; then one write of this value puts it in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// One of [`policy`].
    pub kind: u32,
    /// 0 or 1: which half of the service's choices is in force, see [`first_choice`].
    pub generation: u32,
    /// How many places of that half are filled, from its first on.
    pub slots: u32,
    pub reserved: u32,
}

/// Kinds of a [`Policy`], and what the places hold: backend ids, in whatever order the kind wants.
pub mod policy {
    /// Two places are drawn at random, and the backend with fewer open connections for its weight is
    /// taken. Backends fill places in proportion to their weight.
    pub const BALANCED: u32 = 1;
    /// Each processor takes one place after the other.
    pub const ROUND_ROBIN: u32 = 2;
    /// The backend with the fewest open connections for its weight. Each backend fills one place.
    pub const LEAST_CONNECTIONS: u32 = 3;
    /// A hash of the client's address names the place. All [`super::CHOICE_SLOTS`] are filled.
    pub const SOURCE_HASH: u32 = 4;
    /// `selection` names the backend; the places hold all that are up, the most preferred first, for
    /// clients whose SYN that backend does not answer.
    pub const RANKED: u32 = 5;
}

/// Index in `choices` of a generation's first place.
#[inline(always)]
pub fn first_choice(service: u32, generation: u32) -> u32 {
    (service * 2 + (generation & 1)) * CHOICE_SLOTS
}

/// Value of `backends`, indexed by backend id. Id 0 means "none" and stays empty.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    pub address: [u8; 4],
    pub port: u16,
    /// One of [`state`].
    pub state: u8,
    /// One of [`mode`].
    pub mode: u8,
    /// The manager's own address towards the worker.
    pub source: [u8; 4],
    /// The worker itself, or the router on the way to it.
    pub next_hop: [u8; 4],
    /// Index of the manager's interface towards the worker; 0 while no route is known.
    pub interface: u32,
    pub service: u32,
    /// Share of new connections relative to the service's other backends; 0 takes none by policy.
    pub weight: u32,
    pub reserved: u32,
    /// Memory of the worker as last heard.
    pub memory_available_bytes: u64,
    pub memory_total_bytes: u64,
}

/// States of a backend.
pub mod state {
    /// No such backend, or nothing heard of it yet.
    pub const UNKNOWN: u8 = 0;
    /// Takes new connections.
    pub const UP: u8 = 1;
    /// Takes no packet; its flows are answered with RST.
    pub const DOWN: u8 = 2;
    /// Takes no new connection, keeps its flows.
    pub const DRAINING: u8 = 3;
}

/// Forwarding modes of a backend.
pub mod mode {
    /// Both addresses are translated; the worker answers to the manager.
    pub const NAT: u8 = 0;
    /// The manager's own server: only the port is translated.
    pub const LOCAL: u8 = 1;
}

/// Value of `neighbours`, indexed by backend id: link addresses learnt from the worker's replies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    pub worker: Mac,
    pub manager: Mac,
}

impl Neighbour {
    /// Whether anything was learnt.
    #[inline(always)]
    pub fn is_known(&self) -> bool {
        self.worker != Mac::default()
    }
}

/// A link address as one word, first byte lowest, so that the datapath copies and compares it whole.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mac(u64);

impl Mac {
    #[inline(always)]
    pub fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }
}

impl From<[u8; 6]> for Mac {
    #[inline(always)]
    fn from([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }
}

/// Key of `flows`: the tuple a packet arrives with.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    /// IANA number.
    pub protocol: u32,
}

impl FlowKey {
    const NONE: Self = Self {
        source: [0; 4],
        destination: [0; 4],
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 0,
    };

    /// Equality by one comparison, which is one way to go for the verifier instead of four.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let differ =
            |one: [u8; 4], other: [u8; 4]| u32::from_ne_bytes(one) ^ u32::from_ne_bytes(other);
        let ports = |key: &Self| {
            u32::from(u16::from_ne_bytes(key.source_port)) << 16
                | u32::from(u16::from_ne_bytes(key.destination_port))
        };
        differ(self.source, other.source)
            | differ(self.destination, other.destination)
            | (ports(self) ^ ports(other))
            | (self.protocol ^ other.protocol)
            == 0
    }

    /// Both halves as one word each, mixed.
    #[inline(always)]
    fn mixed(&self) -> u64 {
        let word =
            |high: [u8; 4], low: u32| u64::from(u32::from_ne_bytes(high)) << 32 | u64::from(low);
        let ports = u32::from(u16::from_ne_bytes(self.source_port)) << 16
            | u32::from(u16::from_ne_bytes(self.destination_port));
        word(self.source, ports) ^ word(self.destination, self.protocol).rotate_left(32)
    }

    /// The tuple of the answers to this one.
    #[inline(always)]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }
}

/// Value of `flows`. Each connection has two entries, one a direction, and either can rebuild the
/// other. An entry outlives its connection, until the next one takes its place or it is evicted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The tuple the packet leaves with.
    pub leaves: FlowKey,
    /// Link address of the client, or of the router to it, as its packets show it.
    pub client_mac: Mac,
    /// The manager's link address towards the client.
    pub manager_mac: Mac,
    pub backend: u32,
    pub service: u32,
    /// Index of the interface on which the client is; [`LOOPBACK`] for the manager itself.
    pub client_interface: u32,
    /// One of [`direction`].
    pub direction: u8,
    /// Bits of [`ended`], of this direction only: each entry has one writer, so none gets lost.
    pub ended: u8,
    /// 1 while `active` counts the connection; of requests only.
    pub counted: u8,
    /// 1 once the tuple is free for the next connection: no packet goes this way any more.
    pub superseded: u8,
    /// When the entry was made and when it last carried a packet: CLOCK_MONOTONIC, nanoseconds.
    pub created_ns: u64,
    pub last_seen_ns: u64,
    /// When the entry of the other direction was last looked after.
    pub twin_seen_ns: u64,
    pub packets: u64,
    pub bytes: u64,
}

/// Value of `half_open`: a connection whose client has not proved yet that it is there.
///
/// Each of the manager's ports towards the workers has one place; see `steer::place`. Nothing is ever
/// full here: the oldest handshake makes room.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The tuple of the client's packets.
    pub client: FlowKey,
    /// The tuple they leave with.
    pub leaves: FlowKey,
    pub client_mac: Mac,
    pub manager_mac: Mac,
    /// 0: the place is free.
    pub backend: u32,
    pub service: u32,
    pub client_interface: u32,
    /// The client's initial sequence number.
    pub client_sequence: u32,
    /// Mixed from what identifies the handshake, to recognize one that two processors wrote at once.
    pub seal: u64,
    pub created_ns: u64,
    /// When the client sent its last SYN.
    pub syn_ns: u64,
    /// The worker's initial sequence number, once it has answered.
    pub worker_sequence: u32,
    /// 1 once the worker has answered the SYN.
    pub answered: u8,
    /// Bits of [`ended`], of the worker's direction.
    pub ended: u8,
    /// How often the SYN was repeated and another worker chosen.
    pub retries: u8,
    pub reserved: u8,
    pub packets_in: u32,
    pub bytes_in: u32,
    pub packets_out: u32,
    pub bytes_out: u32,
}

impl Handshake {
    /// A place without a handshake.
    pub const FREE: Self = Self {
        client: FlowKey::NONE,
        leaves: FlowKey::NONE,
        client_mac: Mac(0),
        manager_mac: Mac(0),
        backend: 0,
        service: 0,
        client_interface: 0,
        client_sequence: 0,
        seal: 0,
        created_ns: 0,
        syn_ns: 0,
        worker_sequence: 0,
        answered: 0,
        ended: 0,
        retries: 0,
        reserved: 0,
        packets_in: 0,
        bytes_in: 0,
        packets_out: 0,
        bytes_out: 0,
    };

    /// What `seal` must be.
    #[inline(always)]
    pub fn expected_seal(&self) -> u64 {
        let ends = self.client.mixed() ^ self.leaves.mixed().rotate_left(17);
        let backend = u64::from(self.backend) << 32 | u64::from(self.service);
        ends ^ backend.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Whether this is a handshake, and whole.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.backend != 0 && self.seal == self.expected_seal()
    }
}

/// Index of the loopback interface in every network namespace (`LOOPBACK_IFINDEX`, Linux 2.6.24).
pub const LOOPBACK: u32 = 1;

/// Directions of a flow entry.
pub mod direction {
    /// Client to backend.
    pub const REQUEST: u8 = 0;
    /// Backend to client.
    pub const REPLY: u8 = 1;
}

/// How one side has ended its part of a connection.
pub mod ended {
    pub const FIN: u8 = 1;
    pub const RESET: u8 = 2;

    /// Whether a connection is over whose two sides have ended thus.
    #[inline(always)]
    pub fn both(one: u8, other: u8) -> bool {
        (one | other) & RESET != 0 || one & other & FIN != 0
    }
}

/// Index in `ports` of the word in which a port has its bit: first the ports that a client or a
/// worker may send to, then those from which the manager's own servers answer. A TCP packet without
/// its bit is nobody's business here.
#[inline(always)]
pub fn port_word(port: [u8; 2], is_source: bool) -> u32 {
    let word = u32::from(u16::from_be_bytes(port)) / 64;
    if is_source { PORT_WORDS + word } else { word }
}

/// The port's bit in its word.
#[inline(always)]
pub fn port_bit(port: [u8; 2]) -> u64 {
    1 << (u16::from_be_bytes(port) % 64)
}

/// Words of one of the two bit fields in `ports`.
pub const PORT_WORDS: u32 = 65_536 / 64;

/// Value of `verdicts`, per CPU, indexed by [`crate::verdict::Verdict`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// Value of `traffic`, per CPU, indexed by backend id. `in` is towards the backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub connections: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

const _: () = {
    assert!(size_of::<Settings>() == 40 && align_of::<Settings>() == 8);
    assert!(size_of::<ServiceKey>() == 8 && align_of::<ServiceKey>() == 1);
    assert!(size_of::<Service>() == 4);
    assert!(size_of::<Policy>() == 16);
    assert!(size_of::<Backend>() == 48 && align_of::<Backend>() == 8);
    assert!(size_of::<Neighbour>() == 16);
    assert!(size_of::<FlowKey>() == 16 && align_of::<FlowKey>() == 8);
    assert!(size_of::<Flow>() == 88 && align_of::<Flow>() == 8);
    assert!(size_of::<Handshake>() == 112 && align_of::<Handshake>() == 8);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<Traffic>() == 40);
};

#[cfg(feature = "aya")]
mod pod {
    use super::*;

    macro_rules! pod {
        ($($type:ty),+) => {
            $(
                // SAFETY: `repr(C)`, integers and byte arrays only, and no padding, as the sizes
                // asserted above show: every bit pattern is a value.
                unsafe impl aya::Pod for $type {}
            )+
        };
    }

    pod!(
        Settings, ServiceKey, Service, Policy, Backend, Mac, Neighbour, FlowKey, Flow, Handshake,
        Counter, Traffic
    );
}
