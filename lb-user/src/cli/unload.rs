//! `memlb unload`: takes the datapath out of the kernel.

use std::path::Path;

use memlb::datapath::{self, companion};
use serde::Serialize;

use super::{Outcome, print_json, source::Source};

/// Detach the programs and remove everything pinned; open connections end
#[derive(clap::Args)]
pub struct Args {
    /// Remove an agent's companion (`memlb agent --dsr`), not the manager's programs
    #[arg(long, conflicts_with = "config")]
    agent: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: Source,
}

/// What was done, as `--json` prints it.
#[derive(Serialize)]
struct Done<'a> {
    pin_path: &'a Path,
    /// Whether anything was there.
    removed: bool,
}

pub fn run(args: &Args) -> Outcome {
    if args.agent {
        let usual = Path::new(companion::USUAL_PINS);
        let pin_path = args.source.pin_path().unwrap_or(usual);
        return report(companion::unload(pin_path)?, pin_path, args.json);
    }
    remove(&args.source.read()?.manager.pin_path, args.json)
}

pub fn remove(pin_path: &Path, json: bool) -> Outcome {
    report(datapath::unload(pin_path)?, pin_path, json)
}

fn report(removed: bool, pin_path: &Path, json: bool) -> Outcome {
    if json {
        return print_json(&Done { pin_path, removed });
    }
    if removed {
        println!("detached, and removed {}", pin_path.display());
    } else {
        println!("nothing was attached or pinned at {}", pin_path.display());
    }
    Ok(())
}
