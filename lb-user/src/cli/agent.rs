//! `memlb agent`: a worker's heartbeats.

use std::{collections::BTreeSet, ops::RangeInclusive, path::PathBuf, time::Duration};

use memlb::{
    agent::{self, AgentSettings, CheckTarget, HealthCheck, MemorySources},
    datapath::dsr::{self, DsrMapping},
    heartbeat::{MAX_TRANSLATED, check_name, check_pause},
    keys::{credential, read_key},
};

use super::{
    error::{CliError, CliResult},
    runtime::block_on,
};

/// The name of the systemd credential that the packaged unit makes of `/etc/memlb/agent.key`.
pub const CREDENTIAL: &str = "memlb-agent.key";

/// Report this worker's available memory and the health of its service to the managers
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    hook: Option<Hook>,

    /// Address or name of a manager; may be repeated
    #[arg(long = "manager", value_name = "ADDR[:PORT]", required = true)]
    pub managers: Vec<String>,

    /// This worker's name in the configuration of the managers [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,

    /// Interval between heartbeats
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    interval: Duration,

    /// Sign heartbeats with the key in this file; `memlb keygen` makes one, and no other user may read it
    /// [default: the systemd credential memlb-agent.key, if there is one]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    #[command(flatten)]
    check: CheckArgs,

    #[command(flatten)]
    dsr: DsrArgs,

    /// Read memory from this file instead of /proc/meminfo; the format is the same
    #[arg(long, value_name = "FILE")]
    memory_file: Option<PathBuf>,

    /// Read pressure from this file instead of /proc/pressure/memory; the format is the same
    #[arg(long, value_name = "FILE")]
    pressure_file: Option<PathBuf>,

    /// Report the memory limit of this cgroup (version 2) and of those above it, not of the agent's own
    #[arg(long, value_name = "DIRECTORY")]
    cgroup: Option<PathBuf>,

    /// Do not print each heartbeat
    #[arg(long)]
    quiet: bool,
}

impl Args {
    /// Whether the arguments run an agent, not a hook.
    pub fn runs(&self) -> bool {
        self.hook.is_none()
    }

    /// The check of the worker's own service.
    pub fn check(&self) -> Option<HealthCheck> {
        let check = &self.check;
        Some(HealthCheck {
            target: check.target.clone()?,
            expect_status: check.expect_status.clone(),
            interval: check.check_interval,
            timeout: check.check_timeout,
            failures: check.check_failures,
        })
    }

    /// Where the agent reads memory and pressure.
    pub fn sources(&self) -> MemorySources {
        MemorySources {
            memory_file: self.memory_file.clone(),
            pressure_file: self.pressure_file.clone(),
            cgroup: self.cgroup.clone(),
        }
    }
}

/// Commands for hooks on the worker, which the running agent executes.
#[derive(clap::Subcommand)]
enum Hook {
    Pause(AnnouncePauseArgs),
}

/// Have the agent that runs here announce that this worker will be silent for a while
///
/// For a hook that runs before this machine or container is moved. The agent needs a key. Returns when
/// every manager has confirmed the pause, which is that of `memlb pause` on the manager.
#[derive(clap::Args)]
struct AnnouncePauseArgs {
    /// The worker's name, as its agent has it [default: the host's name]
    #[arg(long)]
    name: Option<String>,

    /// The longest that the worker may be silent, 1s to 1h
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Duration,
}

/// The check of the worker's own service.
#[derive(clap::Args)]
struct CheckArgs {
    /// Check this worker's own service, and report when it does not answer: tcp://HOST:PORT or
    /// http://HOST[:PORT][/PATH]
    #[arg(long = "check", value_name = "URL")]
    target: Option<CheckTarget>,

    /// HTTP status, or range of statuses, that counts as success
    #[arg(long, value_name = "N[-M]", default_value = "200-399", value_parser = agent::parse_status, requires = "target")]
    expect_status: RangeInclusive<u16>,

    /// Interval between checks
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "500ms",
        value_parser = humantime::parse_duration,
        requires = "target"
    )]
    check_interval: Duration,

    /// Timeout of one check
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration, requires = "target")]
    check_timeout: Duration,

    /// How many checks in a row must fail before the worker is unhealthy; one success ends that
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=1000), requires = "target")]
    check_failures: u32,
}

/// Direct server return.
#[derive(clap::Args)]
struct DsrArgs {
    /// Answer the clients of this service of mode "dsr" directly. SERVICE is its address, port and, unless
    /// it is tcp, protocol: 192.168.56.101:80 or [2001:db8::1]:53/udp. PORT is the port, or address and
    /// port, of this worker's own server. May be repeated. Needs root
    #[arg(long, value_name = "SERVICE=PORT")]
    dsr: Vec<DsrMapping>,

    /// Also attach to this interface, in addition to those of the routes to the services' addresses; may be
    /// repeated
    #[arg(long = "interface", value_name = "NAME", requires = "dsr")]
    interfaces: Vec<String>,

    /// Pin the programs of --dsr in this directory
    #[arg(long, value_name = "DIRECTORY", default_value = dsr::DEFAULT_PIN_PATH, requires = "dsr")]
    pin_path: PathBuf,
}

impl DsrArgs {
    fn settings(self) -> Result<Option<dsr::DsrSettings>, CliError> {
        let usage = |text| Err(CliError::usage(text));
        if self.dsr.len() > MAX_TRANSLATED {
            return usage(format!("--dsr can be given {MAX_TRANSLATED} times at most"));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.dsr.iter().find(|it| !seen.insert(it.service)) {
            return usage(format!("--dsr names {} twice", twice.service));
        }
        let settings = dsr::DsrSettings {
            mappings: self.dsr,
            interfaces: self.interfaces,
            pin_path: self.pin_path,
        };
        Ok((!settings.mappings.is_empty()).then_some(settings))
    }
}

pub fn run(args: Args) -> CliResult {
    if let Some(Hook::Pause(hook)) = args.hook {
        return pause(hook);
    }
    let hour = Duration::from_secs(3_600);
    for (option, duration) in [
        ("--interval", args.interval),
        ("--check-interval", args.check.check_interval),
        ("--check-timeout", args.check.check_timeout),
    ] {
        if duration < Duration::from_millis(1) || duration > hour {
            return Err(CliError::usage(format!("{option} must be from 1ms to 1h")));
        }
    }
    let (check, sources) = (args.check(), args.sources());
    let name = worker_name(args.name)?;
    for manager in &args.managers {
        agent::with_port(manager).map_err(|error| CliError::usage(format!("--manager {error}")))?;
    }
    let key = match args.key.or_else(|| credential(CREDENTIAL)).as_deref() {
        Some(path) => Some(read_key(path, &name).map_err(CliError::Usage)?),
        None => None,
    };
    let dsr = args.dsr.settings()?;
    Ok(block_on(agent::run(AgentSettings {
        managers: args.managers,
        name,
        interval: args.interval,
        sources,
        check,
        dsr,
        key,
        quiet: args.quiet,
    }))?)
}

fn pause(args: AnnouncePauseArgs) -> CliResult {
    let name = worker_name(args.name)?;
    check_pause(args.duration).map_err(|problem| CliError::usage(format!("--for: {problem}")))?;
    Ok(block_on(agent::announce_pause(&name, args.duration))?)
}

/// Returns the worker's name: the one given, or the host's.
pub fn worker_name(given: Option<String>) -> Result<String, CliError> {
    let (name, origin) = match given {
        Some(name) => (name, "--name"),
        None => (
            host_name().map_err(CliError::Usage)?,
            "the host's name (give another with --name)",
        ),
    };
    match check_name(&name) {
        Ok(()) => Ok(name),
        Err(problem) => {
            let text = format!("{origin}: {name:?} cannot name a worker: {problem}");
            Err(CliError::usage(text))
        }
    }
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname()?;
    name.into_string().map_err(|name| {
        anyhow::anyhow!("the host's name {name:?} is not text; give one with --name")
    })
}
