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
    /// SYNs that a client repeated, and SYN-ACKs that it acknowledged, while no reply of the backend had passed the
    /// manager.
    pub unanswered: u64,
    /// Handshakes that the backend answered: by SYN-ACK or first datagram, or, in mode `dsr`, as the client's first
    /// acknowledgement shows.
    pub answered: u64,
    /// TCP handshakes that the backend answered with RST, and ICMP errors "port unreachable" about handshakes.
    pub refused: u64,
    /// Handshakes that ended without an answer, a second or longer after their begin. Counted when their slot or their
    /// client's tuple is used again.
    pub expired: u64,
    /// Connections that the backend ended with RST after it had answered, and ICMP errors "port unreachable" about
    /// established datagram flows.
    pub resets: u64,
    /// Refused handshakes whose SYN the manager sent to another backend.
    pub retried: u64,
    /// When the backend last answered a handshake or sent a plausible packet of an established flow, by
    /// CLOCK_MONOTONIC; of each flow, about one packet a second is noted. 0: never.
    pub last_answer_ns: u64,
}

impl Traffic {
    /// The sum over processors; of times, the latest.
    pub fn sum<'a>(processors: impl IntoIterator<Item = &'a Self>) -> Self {
        let add = |sum: Self, one: &Self| Self {
            connections: sum.connections + one.connections,
            packets_in: sum.packets_in + one.packets_in,
            bytes_in: sum.bytes_in + one.bytes_in,
            packets_out: sum.packets_out + one.packets_out,
            bytes_out: sum.bytes_out + one.bytes_out,
            unanswered: sum.unanswered + one.unanswered,
            answered: sum.answered + one.answered,
            refused: sum.refused + one.refused,
            expired: sum.expired + one.expired,
            resets: sum.resets + one.resets,
            retried: sum.retried + one.retried,
            last_answer_ns: sum.last_answer_ns.max(one.last_answer_ns),
        };
        processors.into_iter().fold(Self::default(), add)
    }
}
