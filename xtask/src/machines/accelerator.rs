//! Tests whether KVM works on this machine. The device alone is no evidence: in some virtual machines it can be opened,
//! but guests do not start.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use memlb_tests::Process;

use super::image::Image;
use crate::workspace::print_message;

const KVM: &[&str] = &["-accel", "kvm", "-cpu", "host"];
const EMULATION: &[&str] = &["-accel", "tcg", "-cpu", "max"];

/// A kernel prints its first line within a fraction of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns QEMU's options for KVM if a kernel starts with them, else for emulation.
pub fn choose(image: &Image, directory: &Path) -> Result<&'static [&'static str]> {
    if Path::new("/dev/kvm").exists() && starts(image, directory)? {
        return Ok(KVM);
    }
    print_message(
        "KVM does not work here, so the machines are emulated: each step takes minutes instead of seconds",
    );
    Ok(EMULATION)
}

fn starts(image: &Image, directory: &Path) -> Result<bool> {
    let log = directory.join("kvm.log");
    if log.exists() {
        fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
    }
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ])
    .args(KVM)
    .args(["-m", "256", "-serial", "stdio", "-append", "console=ttyS0"])
    .arg("-kernel")
    .arg(&image.kernel);
    let mut qemu = Process::start("the test of KVM", &mut qemu, &log)?;
    let started = qemu.wait_for_log(PATIENCE, "Linux version").is_ok();
    Ok(started)
}
