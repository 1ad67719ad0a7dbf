//! Words on stderr that never stand in the way.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Says `what` on stderr, past the capture of test output. Where nobody can
/// hear it, as when the terminal is gone, cleaning up must go on all the same:
/// `eprintln` would panic.
pub fn say(what: impl Display) {
    writeln!(io::stderr().lock(), "{what}").ok();
}
