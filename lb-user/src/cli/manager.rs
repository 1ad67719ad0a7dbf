//! `memlb manager`: the balancer's control loop.

use memlb::manager;

use super::{Outcome, block_on, source::Source, unload};

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
    Ok(block_on(manager::run(
        config,
        file,
        std::sync::Arc::new(move || source.read()),
    ))?)
}
