//! Runs `memlb` as an operator does, and checks its exit status and output.

use std::process::{Command, Output};

use crate::{cluster::Cluster, command::line};

/// Runs `memlb` against this system's manager, the verb first in `arguments`.
///
/// # Panics
/// When it cannot be started.
pub fn memlb(cluster: &Cluster, arguments: &[&str]) -> Output {
    let (verb, arguments) = arguments.split_first().expect("a verb");
    output(cluster.memlb(verb).args(arguments))
}

/// Runs `memlb` as [`memlb`] does, and returns what it printed.
///
/// # Panics
/// When it does not succeed.
pub fn succeed(cluster: &Cluster, arguments: &[&str]) -> String {
    stdout(&memlb(cluster, arguments))
}

/// Runs a command and returns its output, whatever its exit status.
///
/// # Panics
/// When it cannot be started.
pub fn output(command: &mut Command) -> Output {
    let output = command.output();
    output.unwrap_or_else(|error| panic!("start `{}`: {error}", line(command)))
}

/// Returns what a command that succeeded has printed.
///
/// # Panics
/// When it did not succeed.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// # Panics
/// Unless the exit status is this one and the error messages contain each of these texts.
pub fn assert_failure(output: &Output, status: i32, says: &[&str]) {
    let said = text(&output.stderr);
    let missing: Vec<_> = says
        .iter()
        .filter(|words| !said.contains(**words))
        .collect();
    assert!(
        output.status.code() == Some(status) && missing.is_empty(),
        "{} (wanted {status}), without {missing:?}:\n{said}\n{}",
        output.status,
        text(&output.stdout)
    );
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
