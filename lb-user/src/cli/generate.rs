//! `memlb completions` and `memlb man`: files for packages, generated from the definition of the command line.

use std::path::PathBuf;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;
use memlb::config::Config;

use super::{error::CliResult, output::print};

/// Print a completion script for a shell
///
/// For bash: memlb completions bash > /usr/share/bash-completion/completions/memlb
#[derive(clap::Args)]
pub struct CompletionsArgs {
    shell: Shell,
}

/// Write the manual pages below a directory: man1/memlb.1 and its verbs, man5/memlb.toml.5
#[derive(clap::Args)]
pub struct ManArgs {
    /// The directory, such as /usr/share/man; created if it does not exist
    directory: PathBuf,
}

pub fn completions(args: &CompletionsArgs, mut command: Command) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "memlb", &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(())
}

pub fn man(args: &ManArgs, command: Command) -> CliResult {
    let directory = &args.directory;
    let context = || format!("write manual pages to {}", directory.display());
    let (verbs, files) = (directory.join("man1"), directory.join("man5"));
    for folder in [&verbs, &files] {
        std::fs::create_dir_all(folder).with_context(context)?;
    }
    clap_mangen::generate_to(command, verbs).with_context(context)?;
    std::fs::write(files.join("memlb.toml.5"), Config::manual()).with_context(context)?;
    Ok(())
}
