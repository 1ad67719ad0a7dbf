//! The outcomes of packets: name, class, counter and explanation of each.

crate::named_enum! {
    /// What a verdict means for the client.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum VerdictClass {
        /// The packet reaches its receiver.
        Forwarded = "forwarded",
        /// memlb leaves the packet to the kernel or to the next program; no connection through memlb suffers.
        Passed = "passed",
        /// A new connection is refused.
        Refused = "refused",
        /// An existing connection is reset.
        Reset = "reset",
        /// The packet is dropped.
        Dropped = "dropped",
    }
}

impl VerdictClass {
    /// Whether the client loses a packet or its connection.
    pub fn is_loss(self) -> bool {
        matches!(self, Self::Refused | Self::Reset | Self::Dropped)
    }
}

/// Defines [`Verdict`] once: variant, name in counters and logs, class, explanation for the operator.
macro_rules! verdicts {
    ($($variant:ident = $name:literal, $class:ident, $explanation:literal;)+) => {
        crate::named_enum! {
            /// The outcome of one packet; its number is its index in the `verdicts` map.
            #[repr(u8)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum Verdict {
                $(#[doc = $explanation] $variant = $name,)+
            }
        }

        impl Verdict {
            /// What it means for the client.
            pub fn class(self) -> VerdictClass {
                match self {
                    $(Self::$variant => VerdictClass::$class,)+
                }
            }

            /// One sentence for the operator.
            pub fn explanation(self) -> &'static str {
                match self {
                    $(Self::$variant => $explanation,)+
                }
            }
        }
    };
}

verdicts! {
    ToBackend = "to_backend", Forwarded, "A client's packet was sent to a worker.";
    ToClient = "to_client", Forwarded, "A worker's packet was sent to its client.";
    ToManager = "to_manager", Forwarded, "A client's packet was delivered to the manager's own server.";
    FromManager = "from_manager", Forwarded, "A reply of the manager's own server was sent to its client.";
    NotIp = "not_ip", Passed, "Neither IPv4 nor IPv6 (ARP, two VLAN tags, …): passed untouched.";
    OtherProtocol = "other_protocol", Passed, "Neither TCP nor UDP nor an ICMP error (ping, neighbour discovery, …): passed untouched.";
    NotOurs = "not_ours", Passed, "Of no service and no flow: passed untouched.";
    Truncated = "truncated", Passed, "Shorter than its headers say: passed to the kernel, which drops it.";
    Malformed = "malformed", Passed, "Header fields contradict each other, or no client can be the sender: passed to the kernel, which drops it, or dropped here if the link address is a group's or zero.";
    IpOptions = "ip_options", Passed, "IPv4 options are not forwarded: passed to the kernel.";
    ExtensionHeaders = "extension_headers", Passed, "IPv6 extension headers too many, too long or of an unknown kind: passed to the kernel.";
    Fragment = "fragment", Passed, "A fragment carries no ports to steer by: passed to the kernel.";
    NotForUs = "not_for_us", Passed, "Addressed to a group or to another station: passed untouched.";
    NoFlow = "no_flow", Reset, "Mid-connection packet of no known flow: the kernel answers with RST.";
    BackendDown = "backend_down", Reset, "Packet of a flow whose worker is down: the kernel answers with RST.";
    NoBackend = "no_backend", Refused, "New connection while no backend is selected and up: the kernel answers with RST, or ICMP for UDP.";
    NoRoute = "no_route", Refused, "New connection to a worker without a known route: the kernel answers with RST.";
    PortsExhausted = "ports_exhausted", Refused, "No free source port towards the worker: the kernel answers with RST.";
    ClientLimit = "client_limit", Refused, "New connection of a client that has as many as limits.per_client allows: the kernel answers with RST, or ICMP for UDP.";
    TableFull = "table_full", Refused, "The flow could not be stored: the kernel answers with RST.";
    TimeToLive = "time_to_live", Dropped, "A worker's new connection to the service with a time to live of 0 or 1, which may loop between managers: dropped.";
    WrongInterface = "wrong_interface", Passed, "With a worker's address, but on another interface than that of the route to the worker: passed to the kernel.";
    NarrowPath = "narrow_path", Passed, "An ICMP error says that the MTU of a client's path is too small for a worker's segments: dropped; later segments are smaller, or leave without the DF bit.";
    HandedOver = "handed_over", Passed, "XDP left the packet to the TC program (next hop not yet known, VLAN tag, …).";
    Denied = "denied", Dropped, "From a client that the operator has denied: dropped.";
    ImplausibleError = "implausible_error", Dropped, "An ICMP error quotes a segment that its sender cannot have sent just now: dropped.";
    HandshakeEvicted = "handshake_evicted", Passed, "The table of handshakes was full: the oldest handshake ended with a RST to its worker, and a new connection took its slot.";
    TooLarge = "too_large", Dropped, "Larger than the MTU of the next link: dropped, with an ICMP error to the sender unless the packet may be fragmented.";
    Retried = "retried", Passed, "A worker refused a connection: its RST is dropped, and the client's SYN goes to another worker.";
    WorkersFull = "workers_full", Refused, "New connection while every worker has its max_connections: the kernel answers with RST, or ICMP for UDP.";
    ToPeer = "to_peer", Forwarded, "Of an unknown connection: sent unchanged to the peers, one of which may know it.";
    UnknownToPeer = "unknown_to_peer", Dropped, "From a peer, of a connection that is unknown here, too: dropped.";
    LookupPending = "lookup_pending", Dropped, "Of an unknown connection, while the manager queries the workers' agents which one has it: dropped; the client sends it again.";
}

impl Verdict {
    /// The number of verdicts: the capacity of the `verdicts` map.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The verdict of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_order_and_names_are_unique() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index);
            let same = Verdict::ALL
                .iter()
                .filter(|other| other.name() == verdict.name());
            assert_eq!(same.count(), 1, "{}", verdict.name());
        }
    }
}
