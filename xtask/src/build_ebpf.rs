//! Builds the kernel programs to the objects that lb-user embeds.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use memlb_tests::command::run;

use crate::{setup, workspace};

/// Arguments of cargo to build or to lint lb-ebpf.
pub const FOR_THE_KERNEL: &[&str] = &[
    "--package=lb-ebpf",
    "--release",
    "-Zbuild-std=core",
    "--target=bpfel-unknown-none",
    "--target-dir=target/ebpf",
];

/// The programs that lb-user embeds, by the name of their binary.
const EMBEDDED: [&str; 2] = ["memlb", "dsr"];

/// Builds the kernel programs and returns the objects' paths.
pub fn build_ebpf() -> Result<Vec<PathBuf>> {
    let compiler = setup::for_building()?;
    run(compiler.cargo().arg("build").args(FOR_THE_KERNEL)).context("build the kernel programs")?;
    EMBEDDED.into_iter().map(provide).collect()
}

/// Returns the object of the packet benchmark's baselines.
pub fn baseline() -> PathBuf {
    built("baseline")
}

/// Copies a built object to where lb-user embeds it from.
fn provide(name: &str) -> Result<PathBuf> {
    let built = built(name);
    let object = target().join(name).with_extension("bpf.o");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    // A new time stamp of an unchanged object would rebuild lb-user.
    if fs::read(&object).is_ok_and(|present| present == bytes) {
        return Ok(object);
    }
    fs::write(&object, bytes).with_context(|| format!("write {}", object.display()))?;
    Ok(object)
}

fn built(name: &str) -> PathBuf {
    target().join("bpfel-unknown-none/release").join(name)
}

fn target() -> PathBuf {
    workspace::root().join("target/ebpf")
}
