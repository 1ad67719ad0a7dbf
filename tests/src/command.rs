//! Runs commands whose failure must not pass unseen.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end, on this process's own terminal.
///
/// # Errors
/// When it cannot be started or ends with anything but success.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs `command` to its end and returns what it printed.
///
/// Ctrl-C on the terminal does not reach it: it may be part of taking
/// something down. So it cannot ask questions there either.
///
/// # Errors
/// When it cannot be started or ends with anything but success; the error then
/// carries what it said on stderr.
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

/// Returns `command` as one would type it.
pub fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
