//! Words on stderr that never stand in the way.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Says `what` on stderr, past the capture of test output. If stderr
/// is closed, as when the terminal is gone, cleaning up must continue:
/// `eprintln` would panic.
pub fn say(what: impl Display) {
    writeln!(io::stderr().lock(), "{what}").ok();
}
