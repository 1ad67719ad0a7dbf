//! The scenarios of the benchmark.

use std::time::Duration;

use memlb_tests::load::{Ending, Sources};
use serde::Serialize;

/// A load.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// Number of workers.
    pub workers: usize,
    pub sources: Sources,
    pub kind: Kind,
    /// Connections a second that one more address opens and resets at once meanwhile.
    pub attacker_per_second: Option<u32>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Short connections at a rate.
    Rate {
        per_second: u32,
        seconds: u64,
        #[serde(skip)]
        ending: Ending,
    },
    /// Connections at the same time, and as many again right after the client has reset them.
    AtOnce { connections: u32 },
    /// SYNs at a rate, while clients with a [`ROUND_TRIP`] connect.
    Flood {
        syns_per_second: u32,
        is_aimed: bool,
        seconds: u64,
    },
}

/// Clients a second during a flood, and their round trip.
pub const CLIENTS_IN_FLOOD: u32 = 100;
pub const ROUND_TRIP: Duration = Duration::from_millis(100);

/// Limits of scenarios with `--quick`.
const QUICK_SECONDS: u64 = 2;
const QUICK_RATE: u32 = 2_000;
const QUICK_PART: u32 = 20;

/// 99 % of the ports that memlb has towards one worker, at its defaults.
const ALL_PORTS: u32 = 28_385;

pub const SCENARIOS: &[Scenario] = &[
    rate("rate-100", 1, Sources::EverNew, 100, 60, Ending::ServerFin),
    rate("rate-300", 1, Sources::EverNew, 300, 60, Ending::ServerFin),
    rate("rate-1000", 2, FEW, 1_000, 40, Ending::ServerFin),
    rate("server-resets", 2, FEW, 1_000, 20, Ending::ServerReset),
    rate("client-closes", 2, FEW, 1_000, 20, Ending::ClientFin),
    rate("client-resets", 2, FEW, 1_000, 20, Ending::ClientReset),
    rate("rate-2500", 2, Sources::One, 2_500, 15, Ending::ClientReset),
    rate(
        "rate-20000",
        2,
        Sources::EverNew,
        20_000,
        60,
        Ending::ClientResetAtOnce,
    ),
    at_once("one-10000", 1, Sources::One, 10_000),
    at_once("one-14000", 1, Sources::One, 14_000),
    at_once("one-19900", 1, Sources::One, 19_900),
    at_once("one-28385", 1, Sources::One, ALL_PORTS),
    at_once("one-38000", 2, Sources::One, 38_000),
    at_once("many-19900", 1, Sources::EverNew, 19_900),
    at_once("many-28385", 1, Sources::EverNew, ALL_PORTS),
    at_once("many-38000", 2, Sources::EverNew, 38_000),
    flood("flood-20000", 20_000, false),
    flood("flood-60000", 60_000, false),
    flood("flood-20000-aimed", 20_000, true),
    Scenario {
        attacker_per_second: Some(6_000),
        ..rate(
            "one-resets-6000",
            2,
            Sources::EverNew,
            300,
            15,
            Ending::ServerFin,
        )
    },
];

const FEW: Sources = Sources::Few(200);

const fn rate(
    name: &'static str,
    workers: usize,
    sources: Sources,
    per_second: u32,
    seconds: u64,
    ending: Ending,
) -> Scenario {
    Scenario {
        name,
        workers,
        sources,
        kind: Kind::Rate {
            per_second,
            seconds,
            ending,
        },
        attacker_per_second: None,
    }
}

const fn at_once(
    name: &'static str,
    workers: usize,
    sources: Sources,
    connections: u32,
) -> Scenario {
    Scenario {
        name,
        workers,
        sources,
        kind: Kind::AtOnce { connections },
        attacker_per_second: None,
    }
}

const fn flood(name: &'static str, syns_per_second: u32, is_aimed: bool) -> Scenario {
    Scenario {
        name,
        workers: 2,
        sources: Sources::EverNew,
        kind: Kind::Flood {
            syns_per_second,
            is_aimed,
            seconds: 10,
        },
        attacker_per_second: None,
    }
}

impl Scenario {
    /// Returns the scenario with another rate and duration, reduced if `quick`.
    pub fn changed(self, rate: Option<u32>, seconds: Option<u64>, quick: bool) -> Self {
        let kind = match self.kind {
            Kind::Rate {
                per_second,
                seconds: usual,
                ending,
            } => Kind::Rate {
                per_second: rate.unwrap_or(per_second.min(if quick {
                    QUICK_RATE
                } else {
                    u32::MAX
                })),
                seconds: seconds.unwrap_or(if quick { QUICK_SECONDS } else { usual }),
                ending,
            },
            Kind::AtOnce { connections } if quick => Kind::AtOnce {
                connections: connections / QUICK_PART,
            },
            Kind::Flood {
                syns_per_second,
                is_aimed,
                seconds: usual,
            } => Kind::Flood {
                syns_per_second: rate.unwrap_or(syns_per_second.min(if quick {
                    QUICK_RATE
                } else {
                    u32::MAX
                })),
                is_aimed,
                seconds: seconds.unwrap_or(if quick { QUICK_SECONDS } else { usual }),
            },
            other @ Kind::AtOnce { .. } => other,
        };
        let of_attacker = |rate: u32| rate.min(if quick { QUICK_RATE } else { u32::MAX });
        Self {
            kind,
            attacker_per_second: self.attacker_per_second.map(of_attacker),
            ..self
        }
    }

    /// Returns the greatest number of connections that are open at the same time.
    pub fn connections(&self) -> u64 {
        let attacker = u64::from(self.attacker_per_second.unwrap_or(0));
        match self.kind {
            Kind::Rate { per_second, .. } => attacker + u64::from(per_second),
            Kind::Flood { .. } => CLIENTS_IN_FLOOD.into(),
            Kind::AtOnce { connections } => connections.into(),
        }
    }

    /// Describes the scenario.
    pub fn describe(&self) -> String {
        let from = match self.sources {
            Sources::One => "one address".to_owned(),
            Sources::Few(count) => format!("{count} addresses"),
            Sources::EverNew => "ever new addresses".to_owned(),
        };
        let workers = match self.workers {
            1 => "one worker".to_owned(),
            count => format!("{count} workers"),
        };
        match self.kind {
            Kind::Rate {
                per_second,
                seconds,
                ending,
            } => {
                let ends = match ending {
                    Ending::ServerFin => "the server closes first",
                    Ending::ServerReset => "the server resets",
                    Ending::ClientFin => "the client closes first",
                    Ending::ClientReset => "the client resets",
                    Ending::ClientResetAtOnce => "the client resets without a request",
                };
                let attack = self.attacker_per_second.map_or(String::new(), |rate| {
                    format!("; one more address opens and resets {rate}/s")
                });
                format!("{per_second}/s from {from} to {workers} for {seconds} s, {ends}{attack}")
            }
            Kind::Flood {
                syns_per_second,
                is_aimed,
                seconds,
            } => {
                let aim = if is_aimed {
                    "the clients' own addresses"
                } else {
                    "random addresses"
                };
                format!(
                    "{syns_per_second} SYNs/s from {aim}, and {CLIENTS_IN_FLOOD} clients/s with a round \
                     trip of {} ms to {workers} for {seconds} s",
                    ROUND_TRIP.as_millis()
                )
            }
            Kind::AtOnce { connections } => {
                format!("{connections} at once from {from} to {workers}")
            }
        }
    }
}
