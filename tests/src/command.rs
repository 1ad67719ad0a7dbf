//! Runs commands, and reports their failures.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, bail};

/// Runs `command` on this process's terminal.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed.
///
/// Ctrl-C on the terminal does not reach it, because it may be part of a cleanup. It cannot read from the terminal
/// either.
///
/// # Errors
/// When it cannot be started or fails; the error has what it printed on stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .process_group(0)
        .output()
        .with_context(|| format!("start `{}`", line(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` ended with {}: {}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns `command` as it is typed in a shell.
pub fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
