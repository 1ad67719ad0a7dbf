//! Tells tests that need root whether they can run.

use std::{env, thread};

use crate::notice::print_message;

/// Set to `1` where a test that cannot run must count as a failure, as in CI.
pub const REQUIRED: &str = "MEMLB_REQUIRE_ROOT";

/// Returns whether this test may go on; a test that may not ends at once.
///
/// # Panics
/// Without root where [`REQUIRED`] is set.
pub fn require_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let test = thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        env::var_os(REQUIRED).is_none_or(|value| value != "1"),
        "{test} needs root for network namespaces and BPF"
    );
    print_message(format_args!(
        "SKIPPED {test}: needs root; `cargo xtask test` runs it"
    ));
    false
}
