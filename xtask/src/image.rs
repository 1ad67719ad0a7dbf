//! Makes the container image of the agent: a file system with memlb only, for `docker import`. Neither the build nor
//! the import needs a registry.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use memlb_tests::command::{output, run};

use crate::{
    build_ebpf,
    workspace::{cargo, find_program, print_message, target},
};

/// Target with a statically linked C library, for this machine's processor.
const TARGET: &str = match cfg!(target_arch = "aarch64") {
    true => "aarch64-unknown-linux-musl",
    false => "x86_64-unknown-linux-musl",
};

/// Builds a static memlb and packs it into target/image/memlb-agent.tar.
pub fn make() -> Result<PathBuf> {
    provide_target()?;
    build_ebpf::build_ebpf()?;
    run(cargo().args([
        "build",
        "--release",
        "--package=lb-user",
        "--target",
        TARGET,
    ]))
    .context("build a static memlb")?;
    let memlb = target().join(TARGET).join("release/memlb");
    let (root, archive) = (
        target().join("image/root"),
        target().join("image/memlb-agent.tar"),
    );
    pack(&memlb, &root, &archive)?;
    let size = fs::metadata(&archive)
        .with_context(|| format!("read the size of {}", archive.display()))?
        .len();
    print_message(format!(
        "made {} ({} MiB); on each node: docker import --change 'ENTRYPOINT [\"/memlb\"]' memlb-agent.tar memlb-agent",
        archive.display(),
        size / (1 << 20)
    ));
    Ok(archive)
}

fn pack(memlb: &Path, root: &Path, archive: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("remove {}", root.display()))?;
    }
    fs::create_dir_all(root).with_context(|| format!("make {}", root.display()))?;
    fs::copy(memlb, root.join("memlb")).with_context(|| format!("copy {}", memlb.display()))?;
    run(Command::new("strip").arg(root.join("memlb"))).context("strip memlb")?;
    // Reproducible: the same memlb gives the same archive.
    run(Command::new("tar")
        .args("--create --sort=name --owner=0 --group=0 --numeric-owner".split(' '))
        .args(["--mtime=@0", "--mode=755", "--directory"])
        .arg(root)
        .arg("--file")
        .arg(archive)
        .arg("memlb"))
    .with_context(|| format!("write {}", archive.display()))
}

/// Installs Rust's standard library for the target if it is missing.
fn provide_target() -> Result<()> {
    let mut rustc = Command::new("rustc");
    let library = output(rustc.args(["--print", "target-libdir", "--target", TARGET]))?;
    if Path::new(library.trim()).exists() {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!(
            "Rust's standard library for {TARGET} is missing: install it, for example by `rustup target add {TARGET}`"
        );
    }
    print_message(format!(
        "Rust's standard library for {TARGET} is missing: the image's memlb needs it"
    ));
    run(Command::new("rustup").args(["target", "add", TARGET]))
        .with_context(|| format!("install Rust's standard library for {TARGET}"))
}
