//! The tests that need root: built as the user, run as root, so that the
//! target folder stays the user's.

use std::{env, path::Path};

use anyhow::{Context, Result, bail};
use memlb_tests::{cluster::BINARY, command, document::XTASK, privilege::REQUIRED};

use super::schemathesis;
use crate::{
    privilege::as_root,
    test_binaries::build,
    workspace::{root, say},
};

/// Runs every test of the package `memlb-tests`, whatever fails on the way.
pub fn run_all(memlb: &Path) -> Result<()> {
    let schemathesis = schemathesis::provide();
    if let Err(error) = &schemathesis {
        // The one test that needs it fails; the others need not wait for that.
        say(format!("{error:#}"));
    }
    let xtask = env::current_exe().context("find this program")?;
    let mut failed = Vec::new();
    for (name, binary) in build(&["--lib", "--tests"])? {
        say(format!("running {name} as root"));
        let mut test = as_root("env");
        test.current_dir(root().join("tests"))
            .arg(format!("{REQUIRED}=1"))
            .arg(format!("{BINARY}={}", memlb.display()))
            .arg(format!("{XTASK}={}", xtask.display()))
            .args(
                schemathesis
                    .iter()
                    .map(|program| schemathesis::variable(program)),
            )
            .arg(binary)
            // They measure time, and would take it from each other.
            .arg("--test-threads=1");
        if command::run(&mut test).is_err() {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
