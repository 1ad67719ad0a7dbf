//! Messages on stderr that never panic.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Prints `what` on stderr without the capture of test output. If stderr is closed, as after its terminal, cleanup must
/// continue, but `eprintln` would panic.
pub fn print_message(what: impl Display) {
    writeln!(io::stderr().lock(), "{what}").ok();
}
