//! Prints what verbs output. Nothing else prints.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

use super::{error::CliResult, terminal::Output};

/// Prints to standard output. A reader such as `head` that closes it early is not an error.
pub fn print(text: &str) {
    let mut output = std::io::stdout().lock();
    let written = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    if let Err(error) = written {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        print_error(&format!("memlb: write to standard output: {error}"));
        std::process::exit(1);
    }
}

/// Prints a line to standard error; if that fails, only the exit status remains.
pub fn print_error(line: &str) {
    _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints a warning to standard error.
pub fn print_warning(text: &str) {
    print_error(&Output::stderr().warning(text));
}

pub fn print_json(value: &impl Serialize) -> CliResult {
    let json = serde_json::to_string_pretty(value).context("encode the output")?;
    print(&format!("{json}\n"));
    Ok(())
}

/// The end of a list of which only the first `named` entries are printed.
pub fn and_more(count: usize, named: usize) -> String {
    match count.saturating_sub(named) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}
