//! `memlb unload`: takes the datapath out of the kernel.

use std::path::Path;

use memlb::datapath;

use super::{Outcome, source::Source};

/// Detach the programs and remove everything pinned; open connections end
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
}

pub fn run(args: &Args) -> Outcome {
    remove(&args.source.read()?.manager.pin_path)
}

pub fn remove(pin_path: &Path) -> Outcome {
    if datapath::unload(pin_path)? {
        println!("detached, and removed {}", pin_path.display());
    } else {
        println!("nothing was attached or pinned at {}", pin_path.display());
    }
    Ok(())
}
