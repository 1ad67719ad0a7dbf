//! `memlb status`: what a running manager knows.

use std::path::PathBuf;

use anyhow::Context;
use memlb::control;

use super::{Outcome, block_on};

/// Show workers, memory, selection and its reason, flows and counters
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// The manager's control socket
    #[arg(long, value_name = "PATH", default_value = "/run/memlb/manager.sock")]
    control_socket: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let status = block_on(control::ask_status(&args.control_socket))?;
    if args.json {
        let json = serde_json::to_string_pretty(&status).context("encode the status")?;
        println!("{json}");
    } else {
        print!("{status}");
    }
    Ok(())
}
