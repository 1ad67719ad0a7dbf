//! Builds the kernel programs to the object that lb-user embeds.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use memlb_tests::command::run;

use crate::{setup, workspace};

/// What one cargo needs to work on lb-ebpf, whether to build or to lint it.
pub const FOR_THE_KERNEL: &[&str] = &[
    "--package=lb-ebpf",
    "--release",
    "-Zbuild-std=core",
    "--target=bpfel-unknown-none",
    "--target-dir=target/ebpf",
];

/// Builds the kernel programs and returns the object's path.
pub fn build_ebpf() -> Result<PathBuf> {
    let compiler = setup::for_building()?;
    run(compiler.cargo().arg("build").args(FOR_THE_KERNEL)).context("build the kernel programs")?;

    let target = workspace::root().join("target/ebpf");
    let built = target.join("bpfel-unknown-none/release/memlb");
    let object = target.join("memlb.bpf.o");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    // A new time stamp on the same bytes would rebuild lb-user for nothing.
    if fs::read(&object).is_ok_and(|present| present == bytes) {
        return Ok(object);
    }
    fs::write(&object, bytes).with_context(|| format!("write {}", object.display()))?;
    Ok(object)
}
