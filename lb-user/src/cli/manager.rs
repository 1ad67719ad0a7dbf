//! `memlb manager`: the balancer's control loop.

use memlb::daemon;
use tracing::{info, warn};

use super::{
    error::CliResult,
    runtime::block_on,
    source::{ConfigSource, USUAL_CONFIG},
    unload,
};

/// Receive heartbeats, choose workers, steer connections
///
/// Without --config, the manager reads /etc/memlb/memlb.toml if it exists, and otherwise uses the
/// built-in example of the three-node lab (`memlb check --example` prints it). When the manager stops,
/// the packet programs continue with the last selection. A new manager adopts them.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: ConfigSource,

    /// Detach the programs, remove all pins, then exit
    #[arg(long)]
    detach: bool,
}

pub fn run(args: Args) -> CliResult {
    let config = args.source.read()?;
    let source = args.source;
    if args.detach {
        return unload::remove(&config.manager.pin_path, false);
    }
    let file = source.file();
    match &file {
        Some(file) => info!("the configuration is {}", file.display()),
        None => warn!(
            "there is no {USUAL_CONFIG}: the manager uses the built-in example, the three-node lab \
             (`memlb check --example` prints it); write that file, or name yours with --config"
        ),
    }
    Ok(block_on(daemon::run(
        config,
        file,
        std::sync::Arc::new(move || source.read()),
    ))?)
}
