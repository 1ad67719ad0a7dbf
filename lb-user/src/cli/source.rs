//! The source of a verb's configuration: a file or the built-in example, with settings of the command line.

use std::path::{Path, PathBuf, absolute};

use memlb::config::{Config, ConfigError, Overrides, PortRange};

/// The usual configuration file.
pub const USUAL_CONFIG: &str = "/etc/memlb/memlb.toml";

/// The source of the configuration.
#[derive(clap::Args)]
pub struct ConfigSource {
    /// Read the configuration from this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    overrides: Overrides,
}

impl ConfigSource {
    /// The directory of the pins, if the command line has it.
    pub fn pin_path(&self) -> Option<&Path> {
        self.overrides.pin_path()
    }

    pub fn read(&self) -> Result<Config, ConfigError> {
        self.read_for(kernel_ports())
    }

    /// Reads the configuration for a machine whose kernel uses `kernel_ports` for its own connections.
    pub fn read_for(&self, kernel_ports: Option<PortRange>) -> Result<Config, ConfigError> {
        match self.chosen() {
            Some(file) => self.read_file(file, kernel_ports),
            None => Config::example(&self.overrides, kernel_ports),
        }
    }

    /// Reads another file than the one that was chosen.
    pub fn read_file(
        &self,
        file: &Path,
        kernel_ports: Option<PortRange>,
    ) -> Result<Config, ConfigError> {
        Config::read(file, &self.overrides, kernel_ports)
    }

    /// The absolute path of the file; `None` for the built-in example.
    pub fn file(&self) -> Option<PathBuf> {
        let file = self.chosen()?;
        Some(absolute(file).unwrap_or_else(|_| file.to_owned()))
    }

    /// Whether the command line names the file.
    pub fn is_given(&self) -> bool {
        self.config.is_some()
    }

    /// Whether the command line has a file or settings.
    pub fn names_config(&self) -> bool {
        self.is_given() || !self.overrides.is_empty()
    }

    fn chosen(&self) -> Option<&Path> {
        let usual = Path::new(USUAL_CONFIG);
        match &self.config {
            Some(file) => Some(file),
            None => usual.exists().then_some(usual),
        }
    }
}

/// The ports that the kernel uses for this machine's own connections.
pub fn kernel_ports() -> Option<PortRange> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next()?, numbers.next()?) {
        (Ok(first), Ok(last)) => Some(PortRange { first, last }),
        _ => None,
    }
}
