//! `memlb check`: is a configuration right?

use std::path::{Path, PathBuf};

use memlb::{
    config::{Config, Overrides},
    heartbeat::Authentication,
    keys,
};
use serde::Serialize;

use super::{Outcome, print_json, source::kernel_ports};

/// Check a configuration file and say what is wrong with it
#[derive(clap::Args)]
pub struct Args {
    /// The file to check
    #[arg(required_unless_present = "example")]
    config: Option<PathBuf>,

    /// Print the documented example instead
    #[arg(long, conflicts_with = "config")]
    example: bool,

    /// Print JSON
    #[arg(long, conflicts_with = "example")]
    json: bool,
}

/// What a right configuration has, as `--json` prints it.
#[derive(Serialize)]
struct Checked<'a> {
    file: &'a Path,
    services: usize,
    backends: usize,
    warnings: Vec<String>,
}

pub fn run(args: &Args) -> Outcome {
    let Some(path) = &args.config else {
        print!("{}", Config::EXAMPLE);
        return Ok(());
    };
    let config = Config::read(path, &Overrides::default(), kernel_ports())?;
    let warnings = config.warnings().into_iter();
    let warnings: Vec<String> = warnings.chain(missing_keys(&config)).collect();
    let backends: usize = config
        .services
        .iter()
        .map(|service| service.workers.len())
        .sum();
    let checked = Checked {
        file: path,
        services: config.services.len(),
        backends,
        warnings,
    };
    if args.json {
        return print_json(&checked);
    }
    for warning in &checked.warnings {
        eprintln!("warning: {warning}");
    }
    println!(
        "{}: fine, {} services with {backends} backends",
        path.display(),
        checked.services
    );
    Ok(())
}

/// Says what is wrong with the keys, as far as this user and this machine can tell.
fn missing_keys(config: &Config) -> Option<String> {
    if config.heartbeats.authentication == Authentication::Off {
        return None;
    }
    match keys::read_keys(&config.heartbeats.keys) {
        Ok(keys) if keys.is_empty() => Some(format!(
            "there are no keys at {}",
            config.heartbeats.keys.display()
        )),
        Ok(_) => None,
        Err(error) => Some(format!("{error:#}")),
    }
}
