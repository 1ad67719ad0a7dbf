//! `memlb manager`: the balancer's control loop.

use std::path::{Path, PathBuf};

use memlb::{
    config::{Config, ConfigError, Overrides, PortRange},
    manager,
};

use super::{Outcome, block_on, unload};

/// Where a configuration is looked for.
const USUAL_CONFIG: &str = "/etc/memlb/memlb.toml";

/// Receive heartbeats, choose workers, steer connections
///
/// Without --config, /etc/memlb/memlb.toml is read if it exists; else the built-in three-node lab
/// example holds (`memlb check --example` prints it). Stopping the manager leaves the datapath
/// steering with the last selection; a new manager adopts it.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,

    /// Detach the programs and remove everything pinned, then exit
    #[arg(long)]
    detach: bool,
}

/// Where the configuration comes from.
#[derive(clap::Args)]
pub struct Source {
    /// Read the configuration from this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    overrides: Overrides,
}

pub fn run(args: Args) -> Outcome {
    let config = args.source.read()?;
    if args.detach {
        return unload::remove(&config.manager.pin_path);
    }
    Ok(block_on(manager::run(config))?)
}

impl Source {
    pub fn read(&self) -> Result<Config, ConfigError> {
        let usual = Path::new(USUAL_CONFIG);
        let file = match &self.config {
            Some(file) => Some(file.as_path()),
            None => usual.exists().then_some(usual),
        };
        match file {
            Some(file) => Config::read(file, &self.overrides, kernel_ports()),
            None => Config::example(&self.overrides, kernel_ports()),
        }
    }
}

/// The ports that the kernel gives to this machine's own connections.
pub fn kernel_ports() -> Option<PortRange> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next()?, numbers.next()?) {
        (Ok(first), Ok(last)) => Some(PortRange { first, last }),
        _ => None,
    }
}
