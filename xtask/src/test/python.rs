//! Installs programs from PyPI, in a virtual environment below the target folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use memlb_tests::command::run;

use crate::workspace::{print_message, root, target};

/// Returns the folder of the programs, installed in the versions that `requirements.txt` pins.
pub fn provide() -> Result<PathBuf> {
    let environment = target().join("python");
    let requirements = root().join("xtask/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("read {}", requirements.display()))?;
    // Written last: the requirements whose installation is complete.
    let installed = environment.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(environment.join("bin"));
    }
    print_message("installing programs from PyPI below the target folder");
    install(&environment, &requirements).context("install programs from PyPI")?;
    fs::write(&installed, wanted).with_context(|| format!("write {}", installed.display()))?;
    Ok(environment.join("bin"))
}

fn install(environment: &Path, requirements: &Path) -> Result<()> {
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(environment))?;
    run(Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .arg("--requirement")
        .arg(requirements))
}
