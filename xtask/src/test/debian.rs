//! A clean Debian 12 with systemd, made once and stored as an archive below the target folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use memlb_tests::command::run;
use nix::unistd::{getgid, getuid};

use crate::{
    debian::{SUITE, bootstrap},
    privilege::as_root,
    workspace::{print_message, target},
};

/// Returns the archive.
pub fn provide() -> Result<PathBuf> {
    let archive = target().join(format!("{SUITE}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    print_message("making a clean Debian 12 below the target folder; this takes a minute");
    // Not below the target folder, because its files belong to root.
    let folder = tempfile::tempdir().context("make a folder")?;
    let root = folder.path().join(SUITE);
    let made = make(&root, &archive);
    run(as_root("rm")
        .args(["--recursive", "--force", "--one-file-system"])
        .arg(&root))?;
    made.map(|()| archive)
}

fn make(root: &Path, archive: &Path) -> Result<()> {
    bootstrap(&[], root)?;
    // Atomic, so that an interrupted task leaves no incomplete archive.
    let draft = archive.with_extension("draft");
    run(as_root("tar")
        .args(["--create", "--numeric-owner"])
        .arg("--file")
        .arg(&draft)
        .arg("--directory")
        .arg(root)
        .arg("."))?;
    run(as_root("chown")
        .arg(format!("{}:{}", getuid(), getgid()))
        .arg(&draft))?;
    fs::rename(&draft, archive).with_context(|| format!("make {}", archive.display()))
}
