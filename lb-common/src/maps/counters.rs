//! Counters of the programs.

use crate::verdict::Verdict;

/// Value of `verdicts`, per CPU, indexed by [`crate::verdict::Verdict`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// Value of `service_refusals`, per CPU, indexed by service id: first packets of connections that the manager refused,
/// by verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceRefusals {
    pub no_backend: u64,
    pub no_route: u64,
    pub client_limit: u64,
    pub workers_full: u64,
    pub ports_exhausted: u64,
}

impl ServiceRefusals {
    /// The sum over processors.
    pub fn sum<'a>(processors: impl IntoIterator<Item = &'a Self>) -> Self {
        let add = |sum: Self, one: &Self| Self {
            no_backend: sum.no_backend + one.no_backend,
            no_route: sum.no_route + one.no_route,
            client_limit: sum.client_limit + one.client_limit,
            workers_full: sum.workers_full + one.workers_full,
            ports_exhausted: sum.ports_exhausted + one.ports_exhausted,
        };
        processors.into_iter().fold(Self::default(), add)
    }

    /// The counts by verdict.
    pub fn by_verdict(&self) -> [(Verdict, u64); 5] {
        [
            (Verdict::NoBackend, self.no_backend),
            (Verdict::NoRoute, self.no_route),
            (Verdict::ClientLimit, self.client_limit),
            (Verdict::WorkersFull, self.workers_full),
            (Verdict::PortsExhausted, self.ports_exhausted),
        ]
    }
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
