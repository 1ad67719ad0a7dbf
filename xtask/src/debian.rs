//! A minimal Debian 12, by debootstrap.

use std::path::Path;

use anyhow::{Context, Result};
use memlb_tests::command::output;

use crate::privilege::as_root;

pub const SUITE: &str = "bookworm";

/// Installs a minimal Debian with systemd and `packages` to the folder `root`, whose files belong to root.
pub fn bootstrap(packages: &[&str], root: &Path) -> Result<()> {
    let include = [&["systemd", "dbus"], packages].concat().join(",");
    output(
        as_root("debootstrap")
            .args(["--variant=minbase", "--include", &include, SUITE])
            .arg(root),
    )
    .context("make a Debian 12")
    .map(drop)
}
