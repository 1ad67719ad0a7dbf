//! Root where root is needed, and only there: what is built stays the user's.

use std::{env, ffi::OsStr, os::unix::fs::MetadataExt, process::Command};

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::workspace;

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Returns a command that runs `program` as root, through sudo when need be.
pub fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg("--").arg(program);
    sudo
}

/// Stops a task that a user started through sudo in a tree of their own.
///
/// # Errors
/// When that is so: cargo would leave a `target` folder the user cannot write to.
pub fn refuse_to_run_under_sudo() -> Result<()> {
    let Some(user) = env::var("SUDO_UID")
        .ok()
        .and_then(|uid| uid.parse::<u32>().ok())
    else {
        return Ok(());
    };
    let root = workspace::root();
    let owner = root
        .metadata()
        .with_context(|| format!("look at {}", root.display()))?
        .uid();
    if is_root() && user != 0 && owner == user {
        bail!(
            "run `cargo xtask` without sudo: it asks for root itself where it needs it. What cargo \
             has built just now belongs to root; `sudo chown -R {user} {}` gives it back",
            workspace::target().display()
        );
    }
    Ok(())
}
