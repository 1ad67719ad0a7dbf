//! `memlb check`: validates a configuration.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use memlb::{
    config::{Config, HeartbeatSettings, Overrides},
    heartbeat::Authentication,
    keys::{self, KeyRing},
};
use serde::Serialize;

use lb_core::counted;

use super::{
    error::CliResult,
    output::{and_more, print, print_json, print_warning},
    source::{USUAL_CONFIG, kernel_ports},
    terminal::{Output, Paint},
};

/// The maximum number of workers without a key that are named.
const MAX_NAMED: usize = 5;

/// Validate a configuration file
///
/// Also reads the keys of workers and peers that the file names. A problem with keys is a warning, not an error: the
/// manager that needs them may run on another machine.
#[derive(clap::Args)]
pub struct Args {
    /// The file to validate [default: /etc/memlb/memlb.toml]
    config: Option<PathBuf>,

    /// Print the documented example instead
    #[arg(long, conflicts_with = "config")]
    example: bool,

    /// Print the settings that must be equal on all managers of a pair, and their digest
    #[arg(long, conflicts_with = "example")]
    shared: bool,

    /// Print JSON
    #[arg(long, conflicts_with_all = ["example", "shared"])]
    json: bool,
}

/// The result for a valid configuration, as `--json` prints it.
#[derive(Serialize)]
pub(super) struct CheckReport<'a> {
    pub file: &'a Path,
    pub services: usize,
    pub backends: usize,
    pub peers: usize,
    /// The digest of the settings that must be equal on all managers of a pair.
    pub digest: String,
    pub warnings: Vec<String>,
}

pub fn run(args: &Args) -> CliResult {
    if args.example {
        print(Config::example_text());
        return Ok(());
    }
    let path = args.config.as_deref();
    let path = path.unwrap_or_else(|| Path::new(USUAL_CONFIG));
    let config = Config::read(path, &Overrides::default(), kernel_ports())?;
    if args.shared {
        let (shared, digest) = (config.shared_settings(), config.digest());
        print(&format!("{shared}# digest {digest}\n"));
        return Ok(());
    }
    let warnings = config.warnings().into_iter();
    let warnings: Vec<String> = warnings
        .chain(authentication(&config))
        .chain(peer_keys(&config))
        .collect();
    let checked = CheckReport {
        file: path,
        services: config.services.len(),
        backends: config.workers().count(),
        peers: config.peers.len(),
        digest: config.digest().to_string(),
        warnings,
    };
    if args.json {
        return print_json(&checked);
    }
    for warning in &checked.warnings {
        print_warning(warning);
    }
    print(&summary(&checked, Output::stdout()));
    Ok(())
}

pub(super) fn summary(checked: &CheckReport, output: Output) -> String {
    let (verdict, paint) = match checked.warnings.len() {
        0 => ("fine".to_owned(), Paint::Good),
        1 => ("no error, but a warning".to_owned(), Paint::Warning),
        count => (format!("no error, but {count} warnings"), Paint::Warning),
    };
    let peers = match checked.peers {
        0 => String::new(),
        count => format!(", {}", counted(count, "peer")),
    };
    output.wrap_lines(&format!(
        "{}: {}; {} with {}{peers}",
        checked.file.display(),
        output.paint(&verdict, paint),
        counted(checked.services, "service"),
        counted(checked.backends, "backend")
    ))
}

/// Returns warnings of the peers' keys that this user cannot use on this machine.
fn peer_keys(config: &Config) -> Vec<String> {
    let files: BTreeSet<&Path> = config.peers.iter().map(|it| it.key.as_path()).collect();
    let errors = files
        .into_iter()
        .filter_map(|it| keys::read_peer_keys(it).err());
    errors.map(|error| unusable(&error)).collect()
}

/// Says why a key cannot be used.
fn unusable(error: &anyhow::Error) -> String {
    match keys::is_forbidden(error) {
        true => format!("{error:#}: run as root to check the keys"),
        false => format!("with these keys the manager would not start here: {error:#}"),
    }
}

/// Returns warnings of unauthenticated heartbeats, or of the workers' keys, as this user on this machine sees them.
fn authentication(config: &Config) -> Vec<String> {
    let HeartbeatSettings {
        authentication,
        keys: path,
    } = &config.heartbeats;
    if *authentication == Authentication::Off {
        let listen = config.manager.heartbeat_listen;
        let warning = (!listen.ip().is_loopback()).then(|| {
            format!(
                "heartbeats.authentication is \"off\": every host that can reach UDP {listen} can steer connections; \
                 make keys with memlb keygen and set \"enforce\", or keep the port to a trusted network"
            )
        });
        return warning.into_iter().collect();
    }
    let keys = match keys::read_keys(path) {
        Ok(keys) => keys,
        Err(error) => return vec![unusable(&error)],
    };
    // A file that was not read may be the missing key.
    let warnings = without_key(config, &keys).into_iter();
    warnings.chain(keys.warning(path)).collect()
}

/// Says which workers have no key.
fn without_key(config: &Config, keys: &KeyRing) -> Option<String> {
    let HeartbeatSettings {
        authentication,
        keys: path,
    } = &config.heartbeats;
    let without = keys.workers_without_key(config.workers().map(|worker| worker.name.as_str()));
    let path = path.display();
    let Some(first) = without.first() else {
        return (keys.is_empty()).then(|| format!("there are no keys at {path}, on this machine"));
    };
    let effect = match authentication {
        Authentication::Enforce => "the manager would refuse their heartbeats",
        _ => "any host can send heartbeats in their names",
    };
    let names: Vec<&str> = without.iter().copied().take(MAX_NAMED).collect();
    let more = and_more(without.len(), MAX_NAMED);
    Some(format!(
        "there is no key of {}{more} at {path}, on this machine: {effect}; memlb keygen --name {first} \
         --output {path}/{first}.key",
        names.join(", ")
    ))
}
