//! Builds the `memlb` binary.

use std::path::PathBuf;

use anyhow::{Context, Result};
use memlb_tests::command::run;

use crate::{build_ebpf, workspace};

/// Builds the kernel programs and `memlb` in release mode. Returns the path of `memlb`.
pub fn memlb() -> Result<PathBuf> {
    build_ebpf::build_ebpf()?;
    run(workspace::cargo().args(["build", "--release", "--package=lb-user"]))
        .context("build memlb")?;
    Ok(workspace::target().join("release/memlb"))
}
