//! Handshakes: connections whose client has not proved yet that it is there.

use super::{FlowKey, Mac};
use crate::address::{Address, V4};

/// Value of `half_open` and, for IPv6, of `half_open6`: a connection whose client has not proved yet that it is there.
///
/// Each of the manager's ports towards the workers has one slot; see `steer::slot`. Nothing is ever
/// full here: the oldest handshake makes room.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake<A = V4> {
    /// The tuple of the client's packets.
    pub client: FlowKey<A>,
    /// The tuple they leave with.
    pub translated: FlowKey<A>,
    pub client_mac: Mac,
    pub manager_mac: Mac,
    /// 0: the slot is free.
    pub backend: u32,
    pub service: u32,
    pub client_interface: u32,
    /// The client's initial sequence number.
    pub client_sequence: u32,
    /// Mixed from what identifies the handshake, to recognize one that two processors wrote at once.
    pub integrity_tag: u64,
    pub created_ns: u64,
    /// When the client sent its last SYN.
    pub syn_ns: u64,
    /// The worker's initial sequence number, once it has answered.
    pub worker_sequence: u32,
    /// 1 once the worker has answered the SYN, or may have where its answers do not come by here.
    pub answered: u8,
    /// Bits of [`super::ended`], of the worker's direction.
    pub ended: u8,
    /// How often the SYN, or an unanswered datagram, was repeated and another worker chosen.
    pub retries: u8,
    /// 1 once the client has proved that it is there: set by one only of the processors that see it.
    pub completed: u8,
    pub bytes_in: u32,
    pub bytes_out: u32,
    /// How far client and worker have gone on since the first answer: one of [`progress`].
    pub progress: u8,
    pub reserved: [u8; 7],
}

impl<A: Address> Handshake<A> {
    /// A slot without a handshake.
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
        reserved: [0; 7],
    };

    /// What `integrity_tag` must be.
    #[inline(always)]
    pub fn compute_integrity_tag(&self) -> u64 {
        let ends = self.client.mixed() ^ self.translated.mixed().rotate_left(17);
        let backend = u64::from(self.backend) << 32 | u64::from(self.service);
        ends ^ backend.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Whether this is a handshake, and whole.
    #[inline(always)]
    pub fn is_valid(&self) -> bool {
        self.backend != 0 && self.integrity_tag == self.compute_integrity_tag()
    }
}

/// How far the two sides of a handshake have gone on since the first answer, or what may have been one. A flood of
/// forged packets gets no further than the first step, and displaces only what is not established, either.
pub mod progress {
    pub const NONE: u8 = 0;
    /// The client has gone on: its next datagram, or its first acknowledgement where answers do not come by here.
    pub const CLIENT: u8 = 1;
    /// The worker has answered again; of datagrams only.
    pub const WORKER: u8 = 2;
}
