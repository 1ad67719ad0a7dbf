//! Builds and starts the benchmark of the programs themselves, packet by packet.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use memlb_tests::command::{line, run};
use serde_json::Value;

use crate::{build_ebpf, privilege::as_root, workspace};

/// Measures in so many `rounds`.
pub fn measure(rounds: u16, json: Option<&Path>) -> Result<()> {
    build_ebpf::build_ebpf()?;
    let mut benchmark = as_root(build()?);
    benchmark.args(["--bench", "--rounds", &rounds.to_string()]);
    if let Some(file) = json {
        benchmark.arg("--json").arg(file);
    }
    run(&mut benchmark)
}

/// Builds as the user what root then runs.
fn build() -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo
        .args(["bench", "--package=memlb-tests", "--bench=packet"])
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("start `{}`", line(&cargo)))?;
    ensure!(
        output.status.success(),
        "`{}` ended with {}",
        line(&cargo),
        output.status
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|message| serde_json::from_str::<Value>(message).ok())
        .filter(|message| message["target"]["name"] == "packet")
        .find_map(|message| Some(message["executable"].as_str()?.into()))
        .with_context(|| format!("`{}` built no benchmark", line(&cargo)))
}
