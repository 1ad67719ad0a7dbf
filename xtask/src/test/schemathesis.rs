//! Provides schemathesis, which checks the HTTP API against its description, in a Python
//! environment of its own below the target folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use memlb_tests::command::run;

use crate::workspace::{root, say, target};

/// Returns the program, installed in the versions that `requirements.txt` pins.
pub fn provide() -> Result<PathBuf> {
    let environment = target().join("schemathesis");
    let program = environment.join("bin/schemathesis");
    let requirements = root().join("tests/http/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("read {}", requirements.display()))?;
    // Written last: what was installed completely, and from which requirements.
    let installed = environment.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(program);
    }
    say("installing schemathesis below the target folder");
    install(&environment, &requirements).context("install schemathesis")?;
    fs::write(&installed, wanted).with_context(|| format!("write {}", installed.display()))?;
    Ok(program)
}

/// Returns what tells the tests where the program is.
pub fn variable(program: &Path) -> String {
    format!("MEMLB_SCHEMATHESIS={}", program.display())
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
