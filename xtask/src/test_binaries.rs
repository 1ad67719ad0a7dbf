//! Builds test programs and benchmarks, and finds their files.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use memlb_tests::command::line;
use serde_json::Value;

use crate::workspace::cargo;

/// Builds the tests of the package `memlb-tests` that `selection`, arguments of cargo, selects. Returns their names and
/// files.
pub fn build(selection: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    build_with(
        cargo()
            .args(["test", "--package=memlb-tests"])
            .args(selection),
    )
}

/// Builds a benchmark of the package `memlb-benchmarks`, as this user. Returns its file.
pub fn build_benchmark(name: &str) -> Result<PathBuf> {
    let built = build_with(cargo().args(["bench", "--package=memlb-benchmarks", "--bench", name]))?;
    let file = built.into_iter().find(|(built, _)| built == name);
    file.map(|(_, file)| file)
        .with_context(|| format!("cargo built no benchmark {name}"))
}

/// Builds what `cargo` selects without running it. Returns names and files of the test programs and benchmarks.
fn build_with(cargo: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    cargo
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("start `{}`", line(cargo)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}", line(cargo), output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let built: Vec<_> = messages
        .lines()
        .filter_map(|message| serde_json::from_str(message).ok())
        .filter_map(|message: Value| test_of(&message))
        .collect();
    if built.is_empty() {
        bail!("`{}` built nothing", line(cargo));
    }
    Ok(built)
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
