//! Counters of the programs.

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
    /// Handshakes in which the client repeated its SYN, or acknowledged a SYN-ACK, while no reply of the backend had
    /// passed the manager.
    pub unanswered: u64,
}
