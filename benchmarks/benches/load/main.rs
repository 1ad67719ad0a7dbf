//! Connections at a rate and many at once through memlb at its defaults, nftables, HAProxy and no balancer, in turn.
//!
//! `cargo xtask bench load` builds and starts this.

mod laboratory;
mod measure;
mod report;
mod scenario;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, builder::PossibleValuesParser};
use memlb_tests::{load::raise_open_files, notice::print_message};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

use crate::{
    laboratory::{Balancer, Laboratory},
    measure::Measured,
    scenario::{SCENARIOS, Scenario},
};

#[derive(Debug, Parser)]
struct Options {
    /// Measures only these [default: all]
    #[arg(long, value_name = "SCENARIO", value_delimiter = ',', value_parser = names())]
    scenario: Vec<String>,
    /// Compares only these [default: direct,nftables,haproxy-tcp,memlb-tc]
    #[arg(long, value_name = "BALANCER", value_delimiter = ',')]
    balancers: Vec<Balancer>,
    /// How often everything is measured; every balancer has its turn in each round
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long connections are opened at a rate [default: the scenario's]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// How many connections are opened a second [default: the scenario's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Only tries whether everything works: short, and with few connections
    #[arg(long)]
    quick: bool,
    /// A setting of memlb's configuration, as for `memlb manager --set`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Writes everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by cargo to what it starts as a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` starts benchmarks, too.
        println!("nothing to test here; `cargo xtask bench load` measures");
        return Ok(());
    }
    let options = Options::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(&stop))
            .with_context(|| format!("catch signal {signal}"))?;
    }
    let mut measured = Vec::new();
    let outcome = options.measure(raise_open_files()?, &stop, &mut measured);
    // Written also after an error or an interrupt.
    if let Some(file) = &options.json {
        let json = format!("{:#}\n", report::json(&measured));
        fs::write(file, json).with_context(|| format!("write {}", file.display()))?;
    }
    outcome
}

impl Options {
    /// Measures each scenario round by round, with every balancer in a new laboratory each time, and prints
    /// each one's table.
    fn measure(
        &self,
        open_files: u64,
        stop: &AtomicBool,
        measured: &mut Vec<Measured>,
    ) -> Result<()> {
        let balancers = self.balancers();
        for scenario in self.scenarios() {
            print_message(format_args!("measuring {}", scenario.name));
            let mut rows: Vec<_> = balancers
                .iter()
                .map(|balancer| Measured::of(scenario, *balancer))
                .collect();
            for round in 0..self.rounds {
                // Alternating order, so that a drift of the machine favours no balancer.
                let mut turn: Vec<&mut Measured> = rows.iter_mut().collect();
                if round % 2 == 1 {
                    turn.reverse();
                }
                for row in turn {
                    ensure!(!stop.load(Ordering::Relaxed), "interrupted");
                    let laboratory =
                        Laboratory::build(row.balancer, &scenario, &self.set, open_files)?;
                    row.measure(&laboratory, stop).with_context(|| {
                        format!("measure {} of {}", scenario.name, row.balancer.label())
                    })?;
                }
            }
            println!("\n{}", report::table(&scenario, &rows));
            measured.extend(rows);
        }
        Ok(())
    }

    fn balancers(&self) -> &[Balancer] {
        match self.balancers.is_empty() {
            true => &Balancer::USUAL,
            false => &self.balancers,
        }
    }

    fn scenarios(&self) -> impl Iterator<Item = Scenario> {
        let wanted = |scenario: &&Scenario| {
            self.scenario.is_empty() || self.scenario.iter().any(|name| name == scenario.name)
        };
        SCENARIOS
            .iter()
            .filter(wanted)
            .map(|scenario| scenario.changed(self.rate, self.seconds, self.quick))
    }
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(SCENARIOS.iter().map(|scenario| scenario.name))
}
