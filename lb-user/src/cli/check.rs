//! `memlb check`: is a configuration right?

use std::path::PathBuf;

use memlb::config::{Config, Overrides};

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
