//! Checks of all source files.

use std::process::Command;

use anyhow::Result;
use memlb_tests::command::run;

use super::python;
use crate::workspace::{cargo, root};

/// Checks spelling and retired words, by `.typos.toml`.
pub fn spelling() -> Result<()> {
    run(tool("typos")?.args(["--format", "brief"]))
}

/// Checks TOML files and their format, by `.taplo.toml`.
pub fn toml() -> Result<()> {
    run(tool("taplo")?
        .args(["format", "--check"])
        .env("RUST_LOG", "error"))
}

/// Checks crates, sources and licences by `deny.toml`, without the network: not the advisories.
pub fn dependencies() -> Result<()> {
    run(tool("cargo-deny")?
        .env("CARGO", cargo().get_program())
        .args(["--locked", "--offline", "check"])
        .args(["--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

fn tool(name: &str) -> Result<Command> {
    let mut command = Command::new(python::provide()?.join(name));
    command.current_dir(root());
    Ok(command)
}
