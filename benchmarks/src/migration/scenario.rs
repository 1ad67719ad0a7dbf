//! The compared migrations.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// Longer than the default of `failover.down_after`.
const LONG: Duration = Duration::from_secs(3);

/// Port of the workers' servers and of memlb's service.
pub const PORT: u16 = 9000;
/// The manager's address.
const SERVICE: &str = "192.168.56.101";

/// What moves, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A process, with its connections, by TCP_REPAIR
    Process,
    /// A virtual machine, by QEMU's pre-copy
    Machine,
    /// A process, with its connections, by CRIU, between virtual machines
    Criu,
}

/// The balancer between clients and worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Between {
    /// No balancer at all
    Nothing,
    /// memlb in mode nat, attached by TC
    MemlbNat,
    /// memlb in mode nat, attached by XDP
    MemlbXdp,
    /// memlb in mode dsr
    MemlbDsr,
    /// HAProxy in TCP mode, with health checks
    Haproxy,
    /// nftables: DNAT and masquerade
    Nftables,
}

/// Duration of the worker's stop, and whether memlb is told before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Silence {
    /// As short as can be
    Short,
    /// 3 s
    Long,
    /// 3 s, after `memlb pause`
    Announced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Scenario {
    pub what: Method,
    pub between: Between,
    pub silence: Silence,
}

impl Scenario {
    /// Returns the valid combinations of the given parts; no parts: all.
    pub fn of(what: &[Method], between: &[Between], silence: &[Silence]) -> Vec<Self> {
        let mut scenarios = Vec::new();
        for what in all_or(what) {
            for silence in all_or(silence) {
                for stands in all_or(between) {
                    let scenario = Self {
                        what,
                        between: stands,
                        silence,
                    };
                    if scenario.is_valid() && (!between.is_empty() || scenario.is_usual()) {
                        scenarios.push(scenario);
                    }
                }
            }
        }
        scenarios
    }

    fn is_valid(self) -> bool {
        self.silence != Silence::Announced || self.between.memlb().is_some()
    }

    /// Machines boot slowly, and differ from processes less than the balancers differ.
    fn is_usual(self) -> bool {
        use Between::{MemlbDsr, MemlbNat, Nothing};
        self.what == Method::Process || matches!(self.between, Nothing | MemlbNat | MemlbDsr)
    }

    pub fn label(self) -> String {
        format!("{}, {}", self.between.label(), self.silence.label())
    }
}

fn all_or<T: ValueEnum + Copy>(given: &[T]) -> Vec<T> {
    match given {
        [] => T::value_variants().to_vec(),
        some => some.to_vec(),
    }
}

impl Between {
    /// Returns how memlb is attached and whether its mode is `dsr`.
    pub fn memlb(self) -> Option<(&'static str, bool)> {
        match self {
            Self::MemlbNat => Some(("tc", false)),
            Self::MemlbXdp => Some(("xdp", false)),
            Self::MemlbDsr => Some(("tc", true)),
            Self::Nothing | Self::Haproxy | Self::Nftables => None,
        }
    }

    /// Returns what the workers' agents translate in mode `dsr`.
    pub fn translations(self) -> Vec<String> {
        match self {
            Self::MemlbDsr => ["", "/udp"]
                .map(|protocol| format!("{SERVICE}:{PORT}{protocol}={PORT}"))
                .to_vec(),
            _ => Vec::new(),
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Nothing => "no balancer",
            Self::MemlbNat => "memlb, nat",
            Self::MemlbXdp => "memlb, nat, XDP",
            Self::MemlbDsr => "memlb, dsr",
            Self::Haproxy => "HAProxy",
            Self::Nftables => "nftables",
        }
    }
}

impl Method {
    pub fn label(self) -> &'static str {
        match self {
            Self::Process => "a process by TCP_REPAIR",
            Self::Machine => "a virtual machine by pre-copy",
            Self::Criu => "a process by CRIU",
        }
    }
}

impl Silence {
    pub fn duration(self) -> Duration {
        match self {
            Self::Short => Duration::ZERO,
            Self::Long | Self::Announced => LONG,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "3 s",
            Self::Announced => "3 s, paused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Between, Method, Scenario, Silence};

    #[test]
    fn only_memlb_is_paused() {
        let all = Scenario::of(&[Method::Process], &[], &[]);
        let announced = all.iter().filter(|it| it.silence == Silence::Announced);
        assert!(announced.clone().all(|it| it.between.memlb().is_some()));
        assert_eq!(announced.count(), 3);
        let one = Scenario::of(
            &[Method::Process],
            &[Between::Nftables],
            &[Silence::Long, Silence::Announced],
        );
        assert_eq!(one.len(), 1);
    }
}
