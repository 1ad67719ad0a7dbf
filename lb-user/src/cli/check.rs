//! `memlb check`: is a configuration right?

use std::path::PathBuf;

use memlb::{
    config::{Config, Overrides},
    heartbeat::Authentication,
    keys,
};

use super::{Outcome, source::kernel_ports};

/// Check a configuration file and say what is wrong with it
#[derive(clap::Args)]
pub struct Args {
    /// The file to check
    #[arg(required_unless_present = "example")]
    config: Option<PathBuf>,

    /// Print the documented example instead
    #[arg(long, conflicts_with = "config")]
    example: bool,
}

pub fn run(args: &Args) -> Outcome {
    let Some(path) = &args.config else {
        print!("{}", Config::EXAMPLE);
        return Ok(());
    };
    let config = Config::read(path, &Overrides::default(), kernel_ports())?;
    for warning in config.warnings() {
        eprintln!("warning: {warning}");
    }
    if let Some(problem) = missing_keys(&config) {
        eprintln!("warning: {problem}");
    }
    let workers: usize = config
        .services
        .iter()
        .map(|service| service.workers.len())
        .sum();
    println!(
        "{}: fine, {} services with {workers} backends",
        path.display(),
        config.services.len()
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
