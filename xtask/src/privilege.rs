//! Commands as root, only where root is needed: cargo's output stays the user's.

use std::{
    env,
    ffi::OsStr,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use memlb_tests::command::line;
use nix::unistd::geteuid;

use crate::workspace;

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Returns a command that runs `program` as root, by sudo if this process is not root.
pub fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg("--").arg(program);
    sudo
}

/// Replaces this process by `command`. Returns only on failure.
pub fn replace_process(mut command: Command) -> anyhow::Error {
    let error = command.exec();
    anyhow!(error).context(format!("start `{}`", line(&command)))
}

/// Returns a command that runs this program as root, without arguments yet. `variable` names a file that it shall use
/// instead of building it.
pub fn this_program_as_root(variable: &str, file: &Path) -> Result<Command> {
    let mut command = as_root("env");
    command
        .arg(format!("{variable}={}", file.display()))
        .arg(this_program()?);
    Ok(command)
}

/// Restarts this task as root, with such a `variable`. Returns only on failure.
pub fn restart_as_root(variable: &str, file: &Path) -> anyhow::Error {
    match this_program_as_root(variable, file) {
        Ok(mut command) => {
            command.args(env::args_os().skip(1));
            replace_process(command)
        }
        Err(error) => error,
    }
}

/// Restarts this task as root unless it is root.
pub fn run_as_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let mut command = as_root(this_program()?);
    command.args(env::args_os().skip(1));
    Err(replace_process(command))
}

/// Returns the file of this program.
pub fn this_program() -> Result<PathBuf> {
    env::current_exe().context("find this program")
}

/// # Errors
/// When a user has started this task by sudo in their own tree: cargo would leave a `target` folder that the user
/// cannot write to.
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
        .with_context(|| format!("read the owner of {}", root.display()))?
        .uid();
    if is_root() && user != 0 && owner == user {
        bail!(
            "run `cargo xtask` without sudo: it runs sudo itself where it needs root. Files that cargo has just built \
             belong to root; `sudo chown -R {user} {}` repairs that",
            workspace::target().display()
        );
    }
    Ok(())
}
