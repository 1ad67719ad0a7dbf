//! The options of the benchmark of connections, which validates them, and its run in an emulated machine.

use std::{path::Path, time::Duration};

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::emulated::{self, REPORT};
use xtask::{kernels::Load, packages::Tool, test_binaries::build_benchmark, tools};

pub const TOOLS: &[Tool] = tools! {
    "haproxy" "haproxy" "is one of the contenders";
    "nft" "nftables" "is one of the contenders";
    "sysctl" "procps" "makes the manager forward packets, and queues long";
};

pub const EMULATED_TOOLS: &[Tool] = tools! {
    "haproxy" "haproxy" "is one of the contenders";
    "ipvsadm" "ipvsadm" "sets IPVS up, which is one of the contenders";
    "nft" "nftables" "is one of the contenders";
    "sysctl" "procps" "makes the manager forward packets, and queues long";
};

/// Modules and programs of the contenders in the emulated machine.
const MODULES: &[&str] = &[
    "ip_vs",
    "ip_vs_rr",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
];
const PROGRAMS: &[&str] = &["haproxy", "ipvsadm", "nft", "sysctl"];
const TASK: &str = "load";
/// Far more than it takes.
const DEADLINE: Duration = Duration::from_secs(6 * 60 * 60);

/// Defaults in the emulated machine: loads that one processor of 10⁹ instructions a second can carry.
const EMULATED_SCENARIOS: &str =
    "--scenario=rate-100,rate-300,server-resets,client-closes,client-resets,many-19900";
const EMULATED_BALANCERS: &str =
    "--balancers=direct,nftables,haproxy-tcp,ipvs,memlb-tc,memlb-routed";
const EMULATED_SECONDS: &str = "--seconds=10";

#[derive(Debug, Args)]
pub struct LoadOptions {
    /// Measure only these, such as rate-100 or one-38000; an unknown name lists all
    #[arg(long, value_name = "SCENARIO", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Compare only these, of direct, nftables, haproxy-tcp, ipvs, memlb-tc, memlb-xdp, memlb-dsr, memlb-routed,
    /// memlb-two-sources
    #[arg(long, value_name = "BALANCER", value_delimiter = ',')]
    balancers: Vec<String>,
    /// Number of rounds; each round measures every balancer once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Duration of a scenario with a rate [default: the scenario's]
    #[arg(long)]
    seconds: Option<u64>,
    /// Connections a second [default: the scenario's]
    #[arg(long)]
    rate: Option<u32>,
    /// Only check that everything works: short, and with few connections
    #[arg(long)]
    quick: bool,
    /// A setting of memlb's configuration, as for `memlb manager --set`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Measure on Debian's Linux 6.12 under emulation, which has IPVS, with loads that the emulated machine can carry
    #[arg(long)]
    pub emulated: bool,
}

impl LoadOptions {
    /// Returns them as the benchmark's arguments.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--rounds={}", self.rounds)];
        for (option, values) in [
            ("--scenario", &self.scenario),
            ("--balancers", &self.balancers),
            ("--set", &self.set),
        ] {
            arguments.extend(values.iter().map(|value| format!("{option}={value}")));
        }
        arguments.extend(self.rate.map(|rate| format!("--rate={rate}")));
        arguments.extend(self.seconds.map(|seconds| format!("--seconds={seconds}")));
        arguments.extend(self.quick.then(|| "--quick".to_owned()));
        arguments
    }

    /// Boots the machine and measures there. Returns the tables and the report.
    ///
    /// # Errors
    /// The machine cannot be made, or the benchmark failed there.
    pub fn measure_emulated(&self, memlb: &Path) -> Result<(String, Value)> {
        let benchmark = build_benchmark(TASK)?;
        let load = Load {
            modules: MODULES,
            programs: PROGRAMS,
            ..Load::of_task(memlb, TASK, &benchmark, &self.emulated_arguments())
        };
        emulated::run(TASK, &load, DEADLINE)
    }

    /// The benchmark's arguments in the machine.
    fn emulated_arguments(&self) -> String {
        let mut arguments = self.arguments();
        let defaults = [
            (self.scenario.is_empty(), EMULATED_SCENARIOS),
            (self.balancers.is_empty(), EMULATED_BALANCERS),
            (self.seconds.is_none() && !self.quick, EMULATED_SECONDS),
        ];
        let missing = defaults.iter().filter(|(is_missing, _)| *is_missing);
        arguments.extend(missing.map(|(_, argument)| (*argument).to_owned()));
        format!("--bench {} {REPORT}", arguments.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::LoadOptions;

    fn options(given: &str) -> LoadOptions {
        let command = LoadOptions::augment_args(Command::new("load"));
        let matches = command.get_matches_from(given.split(' '));
        LoadOptions::from_arg_matches(&matches).expect("valid options")
    }

    #[test]
    fn selects_loads_that_the_emulated_machine_can_carry() {
        let arguments = options("load --emulated --balancers ipvs").emulated_arguments();
        assert!(arguments.starts_with("--bench --rounds=1 --balancers=ipvs --scenario=rate-100,"));
    }

    #[test]
    fn passes_every_option_on() {
        let options =
            options("load --scenario a,b --balancers c --rate 9 --seconds 2 --quick --set d=e,f");
        assert_eq!(
            options.arguments().join(" "),
            "--rounds=1 --scenario=a --scenario=b --balancers=c --set=d=e,f --rate=9 --seconds=2 --quick"
        );
    }
}
