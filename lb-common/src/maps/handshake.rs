//! Handshakes: connections whose client has not yet proved that it receives packets.

use super::{FlowKey, Mac};
use crate::address::{Address, V4};

/// Value of `half_open` and, for IPv6, of `half_open6`. The table never refuses a handshake: a new one replaces the
/// oldest of its bucket, see `steer::slot`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake<A = V4> {
    /// The tuple of the client's packets.
    pub client: FlowKey<A>,
    /// The tuple after translation.
    pub translated: FlowKey<A>,
    pub client_mac: Mac,
    pub manager_mac: Mac,
    /// 0: the slot is free.
    pub backend: u32,
    pub service: u32,
    pub client_interface: u32,
    /// The client's initial sequence number.
    pub client_sequence: u32,
    /// A hash of tuples, backend and service. A mismatch means that two processors wrote the slot at the same time.
    pub integrity_tag: u64,
    pub created_ns: u64,
    /// When the client sent its last SYN.
    pub syn_ns: u64,
    /// The worker's initial sequence number, once it has replied.
    pub worker_sequence: u32,
    /// 1: the worker has replied to the SYN, or may have, in mode `dsr`.
    pub answered: u8,
    /// Bits of [`super::ended`] of the worker's direction.
    pub ended: u8,
    /// How often a repeated SYN or datagram led to another worker.
    pub retries: u8,
    /// 1: the client has completed the handshake. Exactly one processor sets it.
    pub completed: u8,
    pub bytes_in: u32,
    pub bytes_out: u32,
    /// One of [`progress`].
    pub progress: u8,
    /// 1: `syns` holds the SYN, unless it cannot be sent again. Another backend gets it after a RST.
    pub keeps_syn: u8,
    pub reserved: [u8; 2],
    /// The backends that refused the handshake, in order; 0: none.
    pub refused_by: [u32; MAX_REFUSALS],
}

/// Most refusals after which the SYN goes to another backend. The RST of the next one reaches the client.
pub const MAX_REFUSALS: usize = 3;

impl<A: Address> Handshake<A> {
    /// A free slot.
    pub const FREE: Self = Self {
        client: FlowKey::NONE,
        translated: FlowKey::NONE,
        client_mac: Mac::NONE,
        manager_mac: Mac::NONE,
        backend: 0,
        service: 0,
        client_interface: 0,
        client_sequence: 0,
        integrity_tag: 0,
        created_ns: 0,
        syn_ns: 0,
        worker_sequence: 0,
        answered: 0,
        ended: 0,
        retries: 0,
        completed: 0,
        bytes_in: 0,
        bytes_out: 0,
        progress: progress::NONE,
        keeps_syn: 0,
        reserved: [0; 2],
        refused_by: [0; MAX_REFUSALS],
    };

    /// The tag of these contents.
    #[inline(always)]
    pub fn compute_integrity_tag(&self) -> u64 {
        let ends = self.client.mixed() ^ self.translated.mixed().rotate_left(17);
        let backend = u64::from(self.backend) << 32 | u64::from(self.service);
        ends ^ backend.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Whether the slot holds a handshake that one processor wrote.
    #[inline(always)]
    pub fn is_valid(&self) -> bool {
        self.backend != 0 && self.integrity_tag == self.compute_integrity_tag()
    }
}

/// Progress of a handshake after the first reply. A flood of spoofed packets reaches the first step only.
pub mod progress {
    pub const NONE: u8 = 0;
    /// The client has sent its next datagram or, in mode `dsr`, its first acknowledgement.
    pub const CLIENT: u8 = 1;
    /// The worker has replied again; datagrams only.
    pub const WORKER: u8 = 2;
}
