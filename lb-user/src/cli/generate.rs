//! `memlb completions` and `memlb man`: what packages install, made from the command line's own
//! definition.

use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CliResult, print};

/// Print a completion script for a shell
///
/// For bash: memlb completions bash > /usr/share/bash-completion/completions/memlb
#[derive(clap::Args)]
pub struct CompletionsArgs {
    shell: Shell,
}

/// Write the manual pages into a directory
#[derive(clap::Args)]
pub struct ManArgs {
    /// The directory; created if it does not exist
    directory: PathBuf,
}

pub fn completions(args: &CompletionsArgs) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "memlb", &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(())
}

pub fn man(args: &ManArgs) -> CliResult {
    let directory = &args.directory;
    let context = || format!("write manual pages to {}", directory.display());
    std::fs::create_dir_all(directory).with_context(context)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(context)?;
    Ok(())
}
