//! Tries the package: Debian's checker here, and the rest on clean machines, as root.

use std::{env, path::Path, process::Command};

use anyhow::{Context, Result};
use memlb_tests::command::run;

use super::debian;
use crate::{privilege::as_root, setup};

/// Tries the package from its first installation to its purge.
pub fn check(package: &Path) -> Result<()> {
    setup::for_tests()?;
    run(Command::new("lintian")
        .args("--allow-root --fail-on=error,warning --tag-display-limit=0".split(' '))
        .arg(package))
    .context("lintian finds fault with the package")?;
    let debian = debian::provide()?;
    let folder = tempfile::tempdir().context("make a folder")?;
    // All that it mounts ends with it.
    run(as_root("unshare")
        .args(["--mount", "--"])
        .arg(env::current_exe().context("find this program")?)
        .arg("try-package")
        .args([package, &debian, folder.path()]))
}
