//! `memlb unload`: removes the datapath from the kernel.

use std::path::Path;

use clap::Arg;
use memlb::datapath::{self, dsr};
use serde::Serialize;

use super::{
    error::CliResult,
    output::{print, print_json},
    source::ConfigSource,
};

/// Detach the programs and remove all pins; open connections end
#[derive(clap::Args)]
#[command(mut_args(hide_other_options))]
pub struct Args {
    /// Remove the DSR translator of an agent (`memlb agent --dsr`) instead of the manager's programs
    #[arg(long, conflicts_with = "config")]
    agent: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: ConfigSource,
}

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct UnloadReport<'a> {
    pin_path: &'a Path,
    /// Whether anything was attached or pinned.
    removed: bool,
}

/// Hides the options of the configuration, other than those that determine the pins.
fn hide_other_options(option: Arg) -> Arg {
    let matters = ["agent", "json", "config", "pin_path"].contains(&option.get_id().as_str());
    option.hide(!matters)
}

pub fn run(args: &Args) -> CliResult {
    if args.agent {
        let usual = Path::new(dsr::DEFAULT_PIN_PATH);
        let pin_path = args.source.pin_path().unwrap_or(usual);
        return report(dsr::unload(pin_path)?, pin_path, args.json);
    }
    remove(&args.source.read()?.manager.pin_path, args.json)
}

pub fn remove(pin_path: &Path, json: bool) -> CliResult {
    report(datapath::unload(pin_path)?, pin_path, json)
}

fn report(removed: bool, pin_path: &Path, json: bool) -> CliResult {
    if json {
        return print_json(&UnloadReport { pin_path, removed });
    }
    let path = pin_path.display();
    print(&match removed {
        true => format!("detached, and removed {path}\n"),
        false => format!("nothing was attached or pinned at {path}\n"),
    });
    Ok(())
}
