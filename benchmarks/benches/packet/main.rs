//! The cost of a packet in memlb's programs, by `BPF_PROG_TEST_RUN`, beside two baselines: a program that returns at
//! once, and the least that a balancer with full address translation and connection tracking does.
//!
//! Every figure is a difference to the first baseline, run a moment before, because the clock of a
//! machine moves by half. `cargo xtask bench packet` builds and starts this. It counts nanoseconds, which are
//! instructions in an emulated machine whose clock goes by them: so `--instructions` only says what they are.

mod growth;
mod headers;
mod rig;

use std::{env, fs};

use anyhow::{Context, Result};
use lb_common::verdict::Verdict;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    headers::{ACK, Headers, LINK, REPLY, REQUEST, SYN, UDP},
    rig::{Costs, Edge, Rig, Size},
};

/// A kind of packet, and its highest accepted cost.
#[derive(Debug)]
pub struct Case {
    label: &'static str,
    packet: Headers,
    outcome: Outcome,
    size: Size,
    /// Whether connections are reported to a peer.
    peers: bool,
    at_most: Limit,
}

/// The expected result for the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    ToBackend,
    ToClient,
    Begins(Ports),
    /// The client's acknowledgement completes the handshake. At an interface: what arrives at the loopback interface is
    /// reported to no peer.
    Establishes,
    Passes(Verdict),
}

/// The state of all ports to the worker before the first new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    Free,
    InTimeWait,
    /// Of connections that ended without a packet that says so.
    Used,
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    /// Ratio to the translating baseline.
    Times(f64),
    /// Nanoseconds above the baseline that returns at once.
    Nanoseconds(f64),
}

impl Case {
    fn begins_flows(&self) -> bool {
        matches!(self.outcome, Outcome::Begins(_) | Outcome::Establishes)
    }
}

const ONE_FLOW: Size = Size::of_flows(1);
const MANY_FLOWS: u32 = 1 << 16;

/// Few enough that the first tried port and slot of each handshake are free.
const NEW_FLOWS: u32 = 1 << 12;

/// Few enough that no bucket of handshakes is full.
const NEW_HANDSHAKES: u32 = 1 << 11;

const fn begins(label: &'static str, ports: Ports, at_most: f64) -> Case {
    Case {
        label,
        packet: Headers {
            flags: SYN,
            ..REQUEST
        },
        outcome: Outcome::Begins(ports),
        size: Size::of_flows(NEW_FLOWS),
        peers: false,
        at_most: Limit::Times(at_most),
    }
}

const fn establishes(label: &'static str, peers: bool) -> Case {
    Case {
        label,
        packet: Headers {
            link: LINK,
            ..REQUEST
        },
        outcome: Outcome::Establishes,
        size: Size::of_flows(NEW_HANDSHAKES),
        peers,
        at_most: Limit::Times(4.0),
    }
}

const CASES: [Case; 12] = [
    Case {
        label: "established, in, 1 flow",
        packet: REQUEST,
        outcome: Outcome::ToBackend,
        size: ONE_FLOW,
        peers: false,
        at_most: Limit::Times(1.5),
    },
    Case {
        label: "established, in, 1 flow, a peer",
        packet: REQUEST,
        outcome: Outcome::ToBackend,
        size: ONE_FLOW,
        peers: true,
        at_most: Limit::Times(1.5),
    },
    Case {
        label: "established, in, 64 k flows",
        packet: REQUEST,
        outcome: Outcome::ToBackend,
        size: Size::of_flows(MANY_FLOWS),
        peers: false,
        at_most: Limit::Times(1.15),
    },
    Case {
        label: "established, out, 1 flow",
        packet: REPLY,
        outcome: Outcome::ToClient,
        size: ONE_FLOW,
        peers: false,
        at_most: Limit::Times(1.5),
    },
    Case {
        label: "established, out, 64 k flows",
        packet: REPLY,
        outcome: Outcome::ToClient,
        size: Size::of_flows(MANY_FLOWS),
        peers: false,
        at_most: Limit::Times(1.15),
    },
    begins("new flow", Ports::Free, 1.2),
    begins("new flow, ports in TIME_WAIT", Ports::InTimeWait, 2.0),
    begins("new flow, ports of idle flows", Ports::Used, 2.0),
    establishes("new flow, established", false),
    establishes("new flow, established, a peer", true),
    Case {
        label: "not ours, another TCP port",
        packet: Headers {
            destination_port: 22,
            flags: ACK,
            ..REQUEST
        },
        outcome: Outcome::Passes(Verdict::NotOurs),
        size: ONE_FLOW,
        peers: false,
        at_most: Limit::Nanoseconds(10.0),
    },
    Case {
        label: "not ours, UDP",
        packet: Headers {
            destination_port: 53,
            protocol: UDP,
            ..REQUEST
        },
        outcome: Outcome::Passes(Verdict::NotOurs),
        size: ONE_FLOW,
        peers: false,
        at_most: Limit::Nanoseconds(10.0),
    },
];

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` starts benchmarks, too.
        println!("nothing to test here; `cargo xtask bench packet` measures");
        return Ok(());
    }
    let instructions = arguments
        .iter()
        .any(|argument| argument == "--instructions");
    let baseline = value("--baseline").map_or(rig::BASELINE, String::as_str);
    let rounds = value("--rounds").map_or(Ok(51), |rounds| rounds.parse())?;
    pin_to_one_cpu()?;
    // The emulated machine has only the loopback interface.
    if !instructions {
        rig::make_interface()?;
    }
    let mut measured = Vec::new();
    for edge in [Edge::Tc, Edge::Xdp] {
        let mut rig = Rig::load(baseline, edge, Size::of_flows(MANY_FLOWS))?;
        let has_interface = edge == Edge::Tc && !instructions;
        let is_measured =
            |case: &&Case| has_interface || !matches!(case.outcome, Outcome::Establishes);
        for case in CASES.iter().filter(is_measured) {
            let costs = rig
                .measure(case, rounds)
                .with_context(|| format!("{}: {}", edge.name(), case.label))?;
            measured.push((edge, case, costs));
        }
    }
    let unit = if instructions { "instructions" } else { "ns" };
    println!(
        "  {:<36}{:>10}{:>22}{:>10}{}",
        format!("{unit} per packet over"),
        "memlb",
        "address translation",
        "ratio",
        if instructions { "" } else { "   at most" }
    );
    println!("  a program that returns at once");
    let mut cases = Vec::new();
    for (edge, case, costs) in &measured {
        let limit = if instructions {
            String::new()
        } else {
            limit(case, costs)
        };
        println!("{}{limit}", line(*edge, case, costs));
        cases.push(as_json(*edge, case, costs));
    }
    let mut report = json!({ "unit": unit, "ways": cases });
    if !instructions {
        let growth = growth::measure(rounds)?;
        println!("\n{}", growth::table(&growth));
        report["growth"] = growth::as_json(&growth);
    }
    if let Some(file) = value("--json") {
        fs::write(file, format!("{report:#}\n")).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

fn line(edge: Edge, case: &Case, costs: &Costs) -> String {
    let label = format!("{}: {}", edge.name(), case.label);
    let Costs { memlb, translation } = *costs;
    let ratio = match case.at_most {
        Limit::Times(_) => format!("{:.2}", memlb / translation),
        Limit::Nanoseconds(_) => "–".into(),
    };
    format!("  {label:<36}{memlb:>10.0}{translation:>22.0}{ratio:>10}")
}

fn limit(case: &Case, costs: &Costs) -> String {
    let Costs { memlb, translation } = *costs;
    let (limit, reached) = match case.at_most {
        Limit::Times(times) => (format!("{times:.2} ×"), memlb <= times * translation),
        Limit::Nanoseconds(most) => (format!("{most:.0} ns"), memlb <= most),
    };
    let verdict = if reached { "reached" } else { "MISSED" };
    format!("   {limit}  {verdict}")
}

fn as_json(edge: Edge, case: &Case, costs: &Costs) -> Value {
    json!({
        "edge": edge.name(),
        "way": case.label,
        "flows": case.size.flows,
        "memlb": costs.memlb,
        "translation": costs.translation,
    })
}

fn pin_to_one_cpu() -> Result<()> {
    let mut processor = CpuSet::new();
    processor.set(0)?;
    sched_setaffinity(Pid::this(), &processor).context("stay on one processor")
}
