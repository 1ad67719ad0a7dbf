//! The `memlb` program: command line in, exit status out.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
