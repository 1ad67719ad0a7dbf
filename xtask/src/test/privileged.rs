//! The tests that need root: built as the user, run as root, so that the
//! target folder stays the user's.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use memlb_tests::{
    cluster::BINARY,
    command::{self, line},
    privilege::REQUIRED,
};
use serde_json::Value;

use super::schemathesis;
use crate::{
    privilege::as_root,
    workspace::{cargo, root, say},
};

/// Runs every test of the package `memlb-tests`, whatever fails on the way.
pub fn run_all(memlb: &Path) -> Result<()> {
    let schemathesis = schemathesis::provide();
    if let Err(error) = &schemathesis {
        // The one test that needs it fails; the others need not wait for that.
        say(format!("{error:#}"));
    }
    let mut failed = Vec::new();
    for (name, binary) in build()? {
        say(format!("running {name} as root"));
        let mut test = as_root("env");
        test.current_dir(root().join("tests"))
            .arg(format!("{REQUIRED}=1"))
            .arg(format!("{BINARY}={}", memlb.display()))
            .args(
                schemathesis
                    .iter()
                    .map(|program| schemathesis::variable(program)),
            )
            .arg(binary)
            // They measure time, and would take it from each other.
            .arg("--test-threads=1");
        if command::run(&mut test).is_err() {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Builds the tests and returns their names and files.
fn build() -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = cargo();
    cargo
        .args([
            "test",
            "--package=memlb-tests",
            "--lib",
            "--tests",
            "--no-run",
        ])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    let messages = succeed(&mut cargo)?;
    let tests: Vec<_> = messages
        .lines()
        .filter_map(|message| serde_json::from_str(message).ok())
        .filter_map(|message: Value| test_of(&message))
        .collect();
    if tests.is_empty() {
        bail!("`{}` built no tests", line(&cargo));
    }
    Ok(tests)
}

fn succeed(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}", line(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn test_of(message: &Value) -> Option<(String, PathBuf)> {
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let binary = message["executable"].as_str()?;
    let name = message["target"]["name"].as_str()?;
    is_test.then(|| (name.into(), binary.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::test_of;

    #[test]
    fn finds_tests_among_what_cargo_builds() {
        let mut message = json!({
            "reason": "compiler-artifact",
            "target": {"name": "failover"},
            "profile": {"test": true},
            "executable": "/there/failover-1",
        });
        assert_eq!(
            test_of(&message),
            Some(("failover".into(), "/there/failover-1".into()))
        );
        message["profile"]["test"] = false.into();
        assert_eq!(test_of(&message), None);
        assert_eq!(test_of(&json!({"reason": "build-finished"})), None);
    }
}
