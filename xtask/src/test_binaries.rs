//! The test programs of the package `memlb-tests`, built and found.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use memlb_tests::command::line;
use serde_json::Value;

use crate::workspace::cargo;

/// Builds the tests that `selection`, arguments for cargo, names, and returns their names and files.
pub fn build(selection: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = cargo();
    cargo
        .args(["test", "--package=memlb-tests", "--no-run"])
        .args(selection)
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
