//! `memlb unload`: takes the datapath out of the kernel.

use std::path::Path;

use memlb::datapath::{self, companion};

use super::{Outcome, source::Source};

/// Detach the programs and remove everything pinned; open connections end
#[derive(clap::Args)]
pub struct Args {
    /// Remove an agent's companion (`memlb agent --dsr`), not the manager's programs
    #[arg(long, conflicts_with = "config")]
    agent: bool,

    #[command(flatten)]
    source: Source,
}

pub fn run(args: &Args) -> Outcome {
    if args.agent {
        let usual = Path::new(companion::USUAL_PINS);
        return remove_companion(args.source.pin_path().unwrap_or(usual));
    }
    remove(&args.source.read()?.manager.pin_path)
}

pub fn remove(pin_path: &Path) -> Outcome {
    report(datapath::unload(pin_path)?, pin_path)
}

fn remove_companion(pin_path: &Path) -> Outcome {
    report(companion::unload(pin_path)?, pin_path)
}

fn report(removed: bool, pin_path: &Path) -> Outcome {
    if removed {
        println!("detached, and removed {}", pin_path.display());
    } else {
        println!("nothing was attached or pinned at {}", pin_path.display());
    }
    Ok(())
}
