//! Checks what runs outside of this machine, as far as it can be checked here.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use memlb_tests::command::run;

use crate::workspace::{find_program, root, target};

/// Checks every shell script of the project.
pub fn shellcheck() -> Result<()> {
    let mut scripts = files_below(&root().join("scripts"))?;
    scripts.push(root().join(".ci/run"));
    scripts.retain(|file| is_shell_script(file));
    run(Command::new("shellcheck")
        .args(["--external-sources", "--source-path=SCRIPTDIR"])
        .args(scripts))
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

/// Checks the manager's configuration with the manager itself.
pub fn configuration(memlb: &Path) -> Result<()> {
    run(Command::new(memlb)
        .arg("check")
        .arg(directory().join("memlb.toml")))
}

/// Checks the units of the services with systemd, where there is one.
pub fn units() -> Result<()> {
    let mut units = files_below(&directory())?;
    units.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "service")
    });
    ensure!(
        !units.is_empty(),
        "there are no units in {}",
        directory().display()
    );
    let verify = find_program("systemd-analyze")
        .context("systemd-analyze is missing: install systemd, or test on a machine that has it")?;
    run(Command::new(verify).arg("verify").args(units))
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

/// Shell scripts begin with `#!` and the name of a shell.
fn is_shell_script(file: &Path) -> bool {
    let text = fs::read(file).unwrap_or_default();
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    first.starts_with(b"#!") && first.ends_with(b"sh")
}
