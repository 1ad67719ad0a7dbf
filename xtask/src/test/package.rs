//! Tests the package: by lintian, and in clean containers as root.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use memlb_tests::command::run;

use super::debian;
use crate::{
    privilege::{as_root, this_program},
    setup,
};

/// Tests the package from its installation to its purge.
pub fn check(package: &Path) -> Result<()> {
    setup::for_tests()?;
    run(Command::new("lintian")
        .args("--allow-root --fail-on=error,warning --tag-display-limit=0".split(' '))
        .arg(package))
    .context("check the package by lintian")?;
    let debian = debian::provide()?;
    let folder = tempfile::tempdir().context("make a folder")?;
    // Its mounts end with its mount namespace.
    run(as_root("unshare")
        .args(["--mount", "--"])
        .arg(this_program()?)
        .arg("try-package")
        .args([package, &debian, folder.path()]))
}
