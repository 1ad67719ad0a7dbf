//! Checks scripts, units and configurations that run on other machines.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use memlb_tests::{cluster::BINARY, command::run};

use crate::{
    privilege::{as_root, this_program_as_root},
    workspace::{root, target},
};

/// Checks every shell script of the project.
pub fn shellcheck() -> Result<()> {
    let mut scripts = files_below(&root().join("scripts"))?;
    scripts.push(root().join(".ci/run"));
    for script in [
        "test/nodes.sh",
        "kernels/guest.sh",
        "machines/nodes.sh",
        "machines/image.sh",
        "machines/pair.sh",
    ] {
        scripts.push(root().join("xtask/src").join(script));
    }
    scripts.push(root().join("benchmarks/src/migration/guest.sh"));
    scripts.retain(|file| is_shell_script(file));
    run(Command::new("shellcheck")
        .args(["--external-sources", "--source-path=SCRIPTDIR"])
        .args(scripts))
}

/// Checks the alert rules, and runs their tests.
pub fn alert_rules() -> Result<()> {
    let monitoring = root().join("scripts/monitoring");
    for arguments in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "memlb.rules.yml"],
        ["test", "rules", "memlb.rules.test.yml"],
    ] {
        run(Command::new("promtool")
            .args(arguments)
            .current_dir(&monitoring))?;
    }
    Ok(())
}

/// Checks the Vagrantfile, without VirtualBox.
pub fn vagrant() -> Result<()> {
    let home = target().join("vagrant");
    fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
    run(Command::new("vagrant")
        .args(["validate", "--ignore-provider"])
        .current_dir(directory())
        .env("VAGRANT_HOME", &home)
        .env("VAGRANT_DOTFILE_PATH", home.join("machines")))
}

/// Runs the provisioning of the virtual machines below a folder. The script checks the configuration itself.
pub fn provisioning(package: &Path) -> Result<()> {
    let machine = tempfile::tempdir().context("make a folder")?;
    for role in ["manager", "worker"] {
        run(Command::new(directory().join("provision/memlb.sh"))
            .arg(role)
            .arg(package)
            .arg("192.168.56.101")
            .env("DESTDIR", machine.path()))?;
    }
    Ok(())
}

/// Checks the package's units and those of the virtual machines with this machine's systemd.
pub fn units() -> Result<()> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let mut copies = Vec::new();
    let mut units = files_below(&root().join("scripts/package/systemd"))?;
    units.extend(files_below(&directory().join("systemd"))?);
    let mut others = files_below(&root().join("scripts/ha"))?;
    others.retain(|file| file.extension().is_some_and(|it| it == "service"));
    units.extend(others);
    for unit in units {
        let text = fs::read_to_string(&unit).with_context(|| format!("read {}", unit.display()))?;
        // systemd-analyze requires that the programs exist.
        let text = text
            .replace("/usr/bin/memlb", "/bin/true")
            .replace("/usr/bin/docker", "/bin/true")
            .replace("/usr/local/sbin/memlb-announce", "/bin/true");
        let copy = folder
            .path()
            .join(unit.file_name().context("every unit has a name")?);
        fs::write(&copy, text).with_context(|| format!("write {}", copy.display()))?;
        copies.push(copy);
    }
    run(Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(copies))
}

/// Runs the virtual machines' smoke test in the lab on this machine.
pub fn smoke(memlb: &Path) -> Result<()> {
    run(this_program_as_root(BINARY, memlb)?
        .args(["lab", "up"])
        .stdout(Stdio::null()))?;
    let smoke = run(as_root("env")
        .arg(format!("{BINARY}={}", memlb.display()))
        .arg(format!(
            "MEMLB_NODES={}",
            root().join("xtask/src/test/nodes.sh").display()
        ))
        .arg(directory().join("smoke.sh")));
    run(this_program_as_root(BINARY, memlb)?.args(["lab", "down"]))?;
    smoke
}

fn directory() -> PathBuf {
    root().join("scripts/vagrant")
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .with_context(|| format!("list {}", directory.display()))?;
    for path in entries.into_iter().map(|entry| entry.path()) {
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether the file begins with `#!` and a shell, or with shellcheck's directive that names a shell.
fn is_shell_script(file: &Path) -> bool {
    let text = fs::read(file).unwrap_or_default();
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    (first.starts_with(b"#!") && first.ends_with(b"sh"))
        || first.starts_with(b"# shellcheck shell=")
}
