//! The options of the benchmark of connections, which checks them itself.

use clap::Args;

use xtask::{packages::Tool, tools};

pub const TOOLS: &[Tool] = tools! {
    "haproxy" "haproxy" "is one of the contenders";
    "nft" "nftables" "is one of the contenders";
    "sysctl" "procps" "makes the manager forward packets, and queues long";
};

#[derive(Debug, Args)]
pub struct Options {
    /// Measures only these, such as rate-100 or one-38000; an unknown name lists all
    #[arg(long, value_name = "SCENARIO", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Compares only these, of direct, nftables, haproxy-tcp, memlb-tc, memlb-xdp, memlb-dsr, memlb-routed,
    /// memlb-two-sources
    #[arg(long, value_name = "BALANCER", value_delimiter = ',')]
    balancers: Vec<String>,
    /// How often everything is measured; every balancer has its turn in each round
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long connections are opened at a rate [default: the scenario's]
    #[arg(long)]
    seconds: Option<u64>,
    /// How many connections are opened a second [default: the scenario's]
    #[arg(long)]
    rate: Option<u32>,
    /// Only tries whether everything works: short, and with few connections
    #[arg(long)]
    quick: bool,
    /// A setting of memlb's configuration, as for `memlb manager --set`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Options {
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
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::Options;

    #[test]
    fn passes_every_option_on() {
        let command = Options::augment_args(Command::new("load"));
        let given = "load --scenario a,b --balancers c --rate 9 --seconds 2 --quick --set d=e,f";
        let matches = command.get_matches_from(given.split(' '));
        let options = Options::from_arg_matches(&matches).expect("valid options");
        assert_eq!(
            options.arguments().join(" "),
            "--rounds=1 --scenario=a --scenario=b --balancers=c --set=d=e,f --rate=9 --seconds=2 --quick"
        );
    }
}
