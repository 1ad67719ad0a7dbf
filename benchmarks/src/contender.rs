//! The compared systems.

use clap::ValueEnum;
use serde::Serialize;

/// A way to get from the client to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// No balancer: the client connects to the worker
    Direct,
    /// The manager only forwards IP, without netfilter: the minimum cost of a hop
    Router,
    /// memlb, attached by TC
    MemlbTc,
    /// memlb, attached by XDP
    MemlbXdp,
    /// memlb in mode dsr: the worker replies to the client directly
    MemlbDsr,
    /// memlb in mode routed: the worker sees the client's address and replies through the manager
    MemlbRouted,
    /// nginx as the system of 2018 had it, reloading every 3 s
    Nginx2018,
    /// nginx that keeps connections to its workers alive, as its manual advises
    NginxKeepalive,
    /// HAProxy in TCP mode
    HaproxyTcp,
    /// nftables: DNAT and masquerade
    Nftables,
    /// IPVS: NAT; compared only on request, because few kernels have it
    Ipvs,
}

impl Contender {
    pub fn label(self) -> &'static str {
        match self {
            Self::Direct => "no balancer",
            Self::Router => "router hop",
            Self::MemlbTc => "memlb, TC",
            Self::MemlbXdp => "memlb, XDP",
            Self::MemlbDsr => "memlb, dsr",
            Self::MemlbRouted => "memlb, routed",
            Self::Nginx2018 => "nginx of 2018",
            Self::NginxKeepalive => "nginx, kept alive",
            Self::HaproxyTcp => "HAProxy, TCP mode",
            Self::Nftables => "nftables, DNAT",
            Self::Ipvs => "IPVS, NAT",
        }
    }

    /// The name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub fn is_memlb(self) -> bool {
        matches!(
            self,
            Self::MemlbTc | Self::MemlbXdp | Self::MemlbDsr | Self::MemlbRouted
        )
    }
}
