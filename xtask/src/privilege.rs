//! Root where root is needed, and only there: what is built stays the user's.

use std::{
    env,
    ffi::OsStr,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use memlb_tests::{cluster::BINARY, command::line};
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

/// Becomes `command`, whose signals and exit status are then this task's own.
/// Returns only when that fails.
pub fn become_command(mut command: Command) -> anyhow::Error {
    let error = command.exec();
    anyhow!(error).context(format!("start `{}`", line(&command)))
}

/// Returns xtask itself as root, without a task yet, to use `memlb` instead of building one.
pub fn with_memlb_as_root(memlb: &Path) -> Result<Command> {
    let mut command = as_root("env");
    command
        .arg(format!("{BINARY}={}", memlb.display()))
        .arg(this_program()?);
    Ok(command)
}

/// Starts this task again as root, with the `memlb` to use.
/// Returns only when that fails.
pub fn become_root_with(memlb: &Path) -> anyhow::Error {
    match with_memlb_as_root(memlb) {
        Ok(mut command) => {
            command.args(env::args_os().skip(1));
            become_command(command)
        }
        Err(error) => error,
    }
}

/// Starts this very task again as root unless it is root.
pub fn become_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let mut command = as_root(this_program()?);
    command.args(env::args_os().skip(1));
    Err(become_command(command))
}

/// Returns the file of this program.
pub fn this_program() -> Result<PathBuf> {
    env::current_exe().context("find this program")
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
