//! What can become of a packet: one name, one counter and one explanation for every outcome.

/// Defines [`Verdict`] once: variant, name in counters and logs, explanation for the operator.
macro_rules! verdicts {
    ($($variant:ident = $name:literal, $explanation:literal;)+) => {
        /// The outcome of one packet; its number is its index in the `verdicts` map.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Verdict {
            $(#[doc = $explanation] $variant,)+
        }

        impl Verdict {
            /// Every verdict, in the order of the `verdicts` map.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable name, in snake case, used by status, logs and metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
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
    ToBackend = "to_backend", "A client's packet was sent to a worker.";
    ToClient = "to_client", "A worker's packet was sent to its client.";
    ToManager = "to_manager", "A client's packet was given to the manager's own server.";
    FromManager = "from_manager", "A reply of the manager's own server was sent to its client.";
    NotIp = "not_ip", "Neither IPv4 nor IPv6 (ARP, two VLAN tags, …): passed untouched.";
    OtherProtocol = "other_protocol", "Neither TCP nor UDP nor an ICMP error (ping, neighbour discovery, …): passed untouched.";
    NotOurs = "not_ours", "Of no service and no flow: passed untouched.";
    Truncated = "truncated", "Shorter than its headers say: passed to the kernel, which drops it.";
    Malformed = "malformed", "Header fields contradict each other, or no client can be the sender: passed to the kernel, which drops it, or dropped here if the link address is a group's or zero.";
    IpOptions = "ip_options", "IPv4 options are not forwarded: passed to the kernel.";
    ExtensionHeaders = "extension_headers", "IPv6 extension headers too many, too long or of an unknown kind: passed to the kernel.";
    Fragment = "fragment", "A fragment carries no ports to steer by: passed to the kernel.";
    NotForUs = "not_for_us", "Addressed to a group or to another station: passed untouched.";
    NoFlow = "no_flow", "Mid-connection packet of no known flow: the kernel answers with RST.";
    BackendDown = "backend_down", "Packet of a flow whose worker is down: the kernel answers with RST.";
    NoBackend = "no_backend", "New connection while no backend is selected and up: the kernel answers with RST, or ICMP for UDP.";
    NoRoute = "no_route", "New connection to a worker without a known route: the kernel answers with RST.";
    PortsExhausted = "ports_exhausted", "No free source port towards the worker: the kernel answers with RST.";
    TableFull = "table_full", "The flow could not be stored: the kernel answers with RST.";
    TimeToLive = "time_to_live", "A worker's new connection to the service, with no time to live left, which may go round between managers: dropped.";
    WrongInterface = "wrong_interface", "With a worker's address, but on another interface than the one that leads to it: passed to the kernel.";
    NarrowPath = "narrow_path", "An error message says that a client's path is too narrow for a worker's segments: dropped, and they leave so that routers may cut them up.";
    HandedOver = "handed_over", "XDP left the packet to the TC program (next hop not yet known, VLAN tag, …).";
    Denied = "denied", "From a client that the operator has denied: dropped.";
    ImplausibleError = "implausible_error", "An error message quotes a segment that its sender cannot have sent just now: dropped.";
    TooLarge = "too_large", "Too large for the next link: answered with an ICMP error, or dropped where it may be fragmented.";
}

impl Verdict {
    /// How many verdicts there are: the capacity of the `verdicts` map.
    pub const COUNT: u32 = Self::ALL.len() as u32;
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
