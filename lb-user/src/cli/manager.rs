//! `memlb manager`: the balancer's control loop.

use memlb::manager;
use tracing::{info, warn};

use super::{
    Outcome, block_on,
    source::{Source, USUAL_CONFIG},
    unload,
};

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

pub fn run(args: Args) -> Outcome {
    let config = args.source.read()?;
    let source = args.source;
    if args.detach {
        return unload::remove(&config.manager.pin_path, false);
    }
    let file = source.file();
    match &file {
        Some(file) => info!("the configuration is {}", file.display()),
        None => warn!(
            "there is no {USUAL_CONFIG}: the built-in example is used, the three-node lab \
             (`memlb check --example` prints it); write that file, or name yours with --config"
        ),
    }
    Ok(block_on(manager::run(
        config,
        file,
        std::sync::Arc::new(move || source.read()),
    ))?)
}
