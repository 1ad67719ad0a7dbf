//! Where the configuration of a verb comes from: a file, the built-in example, the command line.

use std::path::{Path, PathBuf};

use memlb::config::{Config, ConfigError, Overrides, PortRange};

/// Where a configuration is looked for.
pub const USUAL_CONFIG: &str = "/etc/memlb/memlb.toml";

/// Where the configuration comes from.
#[derive(clap::Args)]
pub struct Source {
    /// Read the configuration from this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    overrides: Overrides,
}

impl Source {
    /// Where the pins are, if the command line says it.
    pub fn pin_path(&self) -> Option<&Path> {
        self.overrides.pin_path.as_deref()
    }

    pub fn read(&self) -> Result<Config, ConfigError> {
        self.read_for(kernel_ports())
    }

    /// Reads it for a machine whose kernel takes its own ports from there.
    pub fn read_for(&self, kernel_ports: Option<PortRange>) -> Result<Config, ConfigError> {
        let usual = Path::new(USUAL_CONFIG);
        let file = match &self.config {
            Some(file) => Some(file.as_path()),
            None => usual.exists().then_some(usual),
        };
        match file {
            Some(file) => Config::read(file, &self.overrides, kernel_ports),
            None => Config::example(&self.overrides, kernel_ports),
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
